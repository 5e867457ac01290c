"""The phases of a tile of tokens, and what is the same in each: a worker's way through its tasks.

A phase is an outlined function, compiled once for the types of its own operands, whatever else a mode has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import Index, Int64
from ..threads.atomics import now_ns
from ..threads.relays import finish_leg, wait_for_leg
from ..threads.tasks import draw, draw_in_order, finish, wait_for

__all__ = [
    "ALL_PHASES", "DOWN", "HEADS", "INDEX_DOWN", "INDEX_HEADS", "INDEX_KEY", "INDEX_PACK", "KEY", "PACK", "PHASES",
    "QUERY", "Tasks", "Team", "share", "share_legs", "wait",
]  # fmt: skip

PHASES = ("pack", "down", "query", "key", "heads")
PACK, DOWN, QUERY, KEY, HEADS = range(len(PHASES))
# A tile with an indexer has these too, see `index.tile`.
ALL_PHASES = (*PHASES, "index_pack", "index_down", "index_key", "index_heads")
INDEX_PACK, INDEX_DOWN, INDEX_KEY, INDEX_HEADS = range(len(PHASES), len(ALL_PHASES))


class Team(NamedTuple):
    """The workers of a parallel region: see `arguments.Buffers` on counters and spans."""

    n_workers: Index
    counters: Int64
    spans: Int64
    traced: bool


class Tasks(NamedTuple):
    """The tasks of a phase: how many there are, and how many are drawn at once."""

    phase: Index
    n: Index
    grain: Index


@callee
def _come(team: Team, worker: Index, phase: Index) -> None:
    if team.traced:
        now = now_ns()
        team.spans[worker, phase, 0] = now
        team.spans[worker, phase, 1] = now
        team.spans[worker, phase, 2] = 0


@callee
def _note(team: Team, worker: Index, phase: Index, n_done: Index) -> None:
    """Before others hear of the tasks: a worker that is put off right after that would note too late a time."""
    if team.traced:
        team.spans[worker, phase, 1] = now_ns()
        team.spans[worker, phase, 2] += n_done


@callee
def _draw(worker: Index, team: Team, tasks: Tasks, legs: Index) -> tuple[Index, Index]:
    if legs > 1:
        return draw_in_order(team.counters, tasks.phase, team.n_workers, tasks.n, tasks.grain)
    return draw(team.counters, tasks.phase, worker, team.n_workers, tasks.n, tasks.grain)


@callee
def share(worker: Index, team: Team, tasks: Tasks, run: Callable[..., None], work: Any) -> None:
    """A worker's share of a phase: draws tasks while there are any, and runs `run(task, n_tasks, worker, work)`."""
    share_legs(worker, team, tasks, np.int64(1), run, work)


@callee
def share_legs(worker: Index, team: Team, tasks: Tasks, legs: Index, run: Callable[..., None], work: Any) -> None:
    """Likewise where more than one leg makes the tasks those of relays, see `relays`."""
    _come(team, worker, tasks.phase)
    n_relays = tasks.n // legs
    task, end = _draw(worker, team, tasks, legs)
    while task < end:
        for each in range(task, end):
            if legs > 1:
                wait_for_leg(team.counters, n_relays, each)
            run(each, tasks.n, worker, work)
            if legs > 1:
                finish_leg(team.counters, n_relays, tasks.n, each)
        _note(team, worker, tasks.phase, end - task)
        finish(team.counters, tasks.phase, team.n_workers, end - task)
        task, end = _draw(worker, team, tasks, legs)


@callee
def wait(team: Team, tasks: Tasks) -> None:
    """Returns when all tasks of a phase are done."""
    wait_for(team.counters, tasks.phase, team.n_workers, tasks.n)
