"""Tasks that go on where another ended, so that workers share what has an order of its own, such as the sums over k.

A relay is what one task would do alone; its legs are tasks that each do a part of it, one after the other, on any
workers. Task `i` of `n_relays` relays is leg `i // n_relays` of relay `i % n_relays`.

The row of a group of workers has all legs of the relays that they would take if each took an even range of them; first
come the first legs. A row is drawn in order, so a task waits for one that a running worker has drawn, and for others in
between it seldom has to wait at all.

The last `n_relays` lines of `counters` say how many legs are done, and are zeros again when a phase is.
"""

from __future__ import annotations

from ..jit.callee import callee
from ..kinds import Index, Int64
from ..scalars import window
from .atomics import fetch_add
from .tasks import COUNTER_STRIDE, wait_until

__all__ = ["finish_leg", "n_leg_counters", "wait_for_leg"]


def n_leg_counters(n_relays: int) -> int:
    """Elements of `counters` behind those of the phases."""
    return n_relays * COUNTER_STRIDE


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
