"""Tasks that go on where another ended, so that workers share what has an order of its own, such as the sums over k.

A relay is what one task would do alone; its legs are tasks that each do a part of it, one after the other, on any
workers. Task `i` of `n_relays` relays is leg `i // n_relays` of relay `i % n_relays`.

Workers form groups, one a NUMA node. The row of a group has all legs of the relays that its workers would take if each
took an even range of them, which is how weights are packed; first come the first legs. A row is drawn in order, so a
task waits for one that a running worker has drawn, and for others in between it seldom has to wait at all. Who finds
the row of its own group empty goes on with the next group's.

`groups` is int64: the first worker of each group, and behind them the number of workers; empty for a single group. The
last `n_relays` lines of `counters` say how many legs are done, and are zeros again when a phase is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import Index, Int64
from ..scalars import window
from .atomics import fetch_add
from .tasks import COUNTER_STRIDE, block_start, draw_in_order, wait_until

__all__ = ["ONE_GROUP", "Drawn", "draw_legs", "finish_leg", "n_leg_counters", "task_at", "wait_for_leg"]

ONE_GROUP = np.zeros(0, np.int64)


def n_leg_counters(n_relays: int) -> int:
    """Elements of `counters` behind those of the phases."""
    return n_relays * COUNTER_STRIDE


class Drawn(NamedTuple):
    """Places `first` up to `end` of a row: that of `n` relays from number `relay` on."""

    first: Index
    end: Index
    relay: Index
    n: Index


@callee
def _group_of(groups: Int64, worker: Index) -> Index:
    group = 0
    while groups[group + 1] <= worker:
        group += 1
    return group


@callee
def draw_legs(
    counters: Int64, phase: Index, worker: Index, n_workers: Index, n_relays: Index, legs: Index, grain: Index,
    groups: Int64,
) -> Drawn:  # fmt: skip
    """The next places of a row for a worker, at most `grain`; first == end where none is left in any row."""
    n_groups = len(groups) - 1
    if n_groups < 1:
        first, end = draw_in_order(counters, phase, n_workers, np.int64(0), n_relays * legs, grain)
        return Drawn(first, end, np.int64(0), n_relays)
    mine = _group_of(groups, worker)
    for other in range(n_groups):
        group = (mine + other) % n_groups
        relay = block_start(n_relays, n_workers, groups[group])
        n = block_start(n_relays, n_workers, groups[group + 1]) - relay
        first, end = draw_in_order(counters, phase, n_workers, groups[group], n * legs, grain)
        if first < end:
            return Drawn(first, end, relay, n)
    return Drawn(np.int64(0), np.int64(0), np.int64(0), n_relays)


@callee
def task_at(drawn: Drawn, n_relays: Index, place: Index) -> Index:
    """The task at a place of a row."""
    return place // drawn.n * n_relays + drawn.relay + place % drawn.n


@callee
def _legs_done(counters: Int64, n_relays: Index, relay: Index) -> Int64:
    return window(counters, len(counters) - (n_relays - relay) * COUNTER_STRIDE, 1)


@callee
def wait_for_leg(counters: Int64, n_relays: Index, task: Index) -> None:
    """Returns when the leg before a task's is done; what that wrote is seen."""
    if task >= n_relays:
        wait_until(_legs_done(counters, n_relays, task % n_relays), task // n_relays)


@callee
def finish_leg(counters: Int64, n_relays: Index, n_tasks: Index, task: Index) -> None:
    """Says that a leg is done. The last one of a relay, for which no other waits, takes the count back to zero."""
    is_last = task + n_relays >= n_tasks
    fetch_add(_legs_done(counters, n_relays, task % n_relays), -(task // n_relays) if is_last else 1)
