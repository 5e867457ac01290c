"""Groups of workers, one a NUMA node, each of which draws the tasks whose weights it has packed.

`groups` is int64: the first worker of each group, and behind them the number of workers; empty for a single group.

A group has the tasks that its workers begin with, each an even range, as panels are packed. Where they are those of
relays, all legs of these are its row. Who finds no task left in its own group helps the next ones, but not at once:
what is left of theirs is drawn in a moment by workers who are near its weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import Index, Int64
from .tasks import Workers, block_start, draw_among, draw_in_order

__all__ = ["ONE_GROUP", "Drawn", "Split", "draw_tasks", "n_groups_of", "task_at"]

ONE_GROUP = np.zeros(0, np.int64)


class Split(NamedTuple):
    """The tasks of a phase: all `n`, those of relays if there are more `legs` than one; `grain` are drawn at once."""

    phase: Index
    n: Index
    grain: Index
    legs: Index


class Drawn(NamedTuple):
    """Places `first` up to `end` of a row: that of `n` relays from number `relay` on. Nothing if first == end."""

    first: Index
    end: Index
    relay: Index
    n: Index


@callee
def n_groups_of(groups: Int64) -> Index:
    """How many groups there are."""
    return max(len(groups) - 1, 1)


@callee
def _group_of(groups: Int64, worker: Index) -> Index:
    group = 0
    while groups[group + 1] <= worker:
        group += 1
    return group


@callee
def _draw_of(counters: Int64, worker: Index, owners: Workers, n_workers: Index, split: Split) -> Drawn:
    """What a worker draws of the tasks of a group."""
    n_relays = split.n // split.legs
    if split.legs == 1:
        first, end = draw_among(counters, split.phase, worker, owners, n_workers, split.n, split.grain)
        return Drawn(first, end, np.int64(0), split.n)
    relay = block_start(n_relays, n_workers, owners.begin)
    n = block_start(n_relays, n_workers, owners.end) - relay
    first, end = draw_in_order(counters, split.phase, n_workers, owners.begin, n * split.legs, split.grain)
    return Drawn(first, end, relay, n)


@callee
def draw_tasks(counters: Int64, worker: Index, n_workers: Index, split: Split, groups: Int64, helps: bool) -> Drawn:
    """The next tasks for a worker: of its own group, or where it `helps` of the others."""
    if len(groups) == 0:
        return _draw_of(counters, worker, Workers(np.int64(0), n_workers), n_workers, split)
    n_groups = len(groups) - 1
    mine = _group_of(groups, worker)
    if not helps:
        return _draw_of(counters, worker, Workers(groups[mine], groups[mine + 1]), n_workers, split)
    for other in range(1, n_groups):
        group = (mine + other) % n_groups
        owners = Workers(groups[group], groups[group + 1])
        drawn = _draw_of(counters, owners.begin, owners, n_workers, split)
        if drawn.first < drawn.end:
            return drawn
    return Drawn(np.int64(0), np.int64(0), np.int64(0), np.int64(1))


@callee
def task_at(drawn: Drawn, n_relays: Index, place: Index) -> Index:
    """The task at a place of a row."""
    return place // drawn.n * n_relays + drawn.relay + place % drawn.n
