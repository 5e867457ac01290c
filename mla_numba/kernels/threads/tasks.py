"""How workers share the tasks of a parallel region, and wait for those of an earlier phase.

Each worker begins with its own even range, so that it streams weights front to back, and then takes what is left of the
others', where there are `groups` of its own first: no worker idles while there is work, however fast or slow its core
is, or however late its thread wakes up.

A region has phases. `counters` is int64, `n_counters` of them, zeros at its begin: for each phase a line for each
worker's next task and one for the tasks that are done. Who waits for a phase waits for tasks that a running worker has
drawn, never for a worker, so a region ends whatever number of threads there really are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import Index, Int64
from ..scalars import window
from .atomics import fetch_add, load_acquire, yield_core

# int64 elements between two counters: 128 bytes, since cores fetch cache lines in pairs.
COUNTER_STRIDE = 16
_FAREWELL = 64  # looks, some microseconds
_PATIENCE = 256  # looks
_SPINS = 4096  # looks at a counter before the core is given to whoever else wants it


def n_counters(n_workers: int, n_phases: int = 1) -> int:
    """Elements of `counters`."""
    return n_phases * (n_workers + 1) * COUNTER_STRIDE


@callee
def ceil_div(a: Index, b: Index) -> Index:
    """The least n with n * b >= a, for a >= 0 and b > 0."""
    return (a + b - 1) // b


@callee
def block_start(rows: Index, n_blocks: Index, block: Index) -> Index:
    """First row of a block when `rows` are cut into `n_blocks` nearly even ones; block n_blocks starts at `rows`."""
    return rows * block // n_blocks


@callee
def block_of(rows: Index, n_blocks: Index, block: Index) -> tuple[Index, Index]:
    """(first row, rows) of a block."""
    first = block_start(rows, n_blocks, block)
    return first, block_start(rows, n_blocks, block + 1) - first


@callee
def _counter(counters: Int64, phase: Index, n_workers: Index, worker: Index) -> Int64:
    return window(counters, (phase * (n_workers + 1) + worker) * COUNTER_STRIDE, 1)


class Workers(NamedTuple):
    """Workers begin up to end."""

    begin: Index
    end: Index


@callee
def draw_among(
    counters: Int64, phase: Index, worker: Index, owners: Workers, n_workers: Index, n_tasks: Index, grain: Index
) -> tuple[Index, Index]:
    """The next tasks (first, end) for a worker of the ranges that `owners`, this worker among them, begin with.

    They are at most `grain`; first == end where none is left.
    """
    grain = max(min(grain, n_tasks), 1)  # a counter goes on when its tasks are gone, and must not wrap
    n = owners.end - owners.begin
    for other in range(n):
        owner = owners.begin + (worker - owners.begin + other) % n
        begin = block_start(n_tasks, n_workers, owner)
        end = block_start(n_tasks, n_workers, owner + 1)
        first = begin + fetch_add(_counter(counters, phase, n_workers, owner), grain)
        if first < end:
            return np.int64(first), np.int64(min(first + grain, end))
    return np.int64(n_tasks), np.int64(n_tasks)


@callee
def draw(
    counters: Int64, phase: Index, worker: Index, n_workers: Index, n_tasks: Index, grain: Index
) -> tuple[Index, Index]:
    """Likewise of all ranges of a phase."""
    return draw_among(counters, phase, worker, Workers(np.int64(0), n_workers), n_workers, n_tasks, grain)


@callee
def draw_in_order(
    counters: Int64, phase: Index, n_workers: Index, owner: Index, n_tasks: Index, grain: Index
) -> tuple[Index, Index]:
    """Likewise of one range for many, at its owner's counter: who draws a task knows that all before it are drawn."""
    grain = max(min(grain, n_tasks), 1)
    first = min(fetch_add(_counter(counters, phase, n_workers, owner), grain), np.int64(n_tasks))
    return np.int64(first), np.int64(min(first + grain, n_tasks))


@callee
def finish(counters: Int64, phase: Index, n_workers: Index, n_done: Index) -> None:
    """Says that `n_done` tasks of a phase are done; what they wrote is seen by whoever waits for them."""
    fetch_add(_counter(counters, phase, n_workers, n_workers), n_done)


@callee
def wait_until(counter: Int64, count: Index) -> None:
    """Returns when counter[0] has reached `count`."""
    spins = 0
    while load_acquire(counter) < count:
        spins += 1
        if spins % _SPINS == 0:
            yield_core()


@callee
def wait_for(counters: Int64, phase: Index, n_workers: Index, n_tasks: Index) -> None:
    """Returns when all `n_tasks` of a phase are done."""
    wait_until(_counter(counters, phase, n_workers, n_workers), n_tasks)


@callee
def is_done_soon(counters: Int64, phase: Index, n_workers: Index, n_tasks: Index) -> bool:
    """Whether all `n_tasks` of a phase are done within some microseconds; returns as soon as they are."""
    done = _counter(counters, phase, n_workers, n_workers)
    looks = 0
    while load_acquire(done) < n_tasks:
        looks += 1
        if looks == _PATIENCE:
            return False
    return True


@callee
def linger(counters: Int64, phase: Index, n_workers: Index, n_tasks: Index) -> None:
    """Returns when all tasks of a phase are done and who did the last one has had the time to leave the region."""
    wait_for(counters, phase, n_workers, n_tasks)
    done = _counter(counters, phase, n_workers, n_workers)
    for _ in range(_FAREWELL):
        load_acquire(done)
