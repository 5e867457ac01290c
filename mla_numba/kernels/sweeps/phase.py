"""The phases of a tile of tokens, and what is the same in each: a worker's way through its tasks.

A phase is an outlined function, compiled once for the types of its own operands, whatever else a mode has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..jit.callee import by_dtype, callee
from ..kinds import Index, Int64
from ..scalars import window
from ..threads.atomics import now_ns
from ..threads.groups import Split, draw_tasks, n_groups_of, task_at
from ..threads.relays import finish_leg, wait_for_leg
from ..threads.tasks import finish, is_done_soon, wait_for

__all__ = [
    "ALL_PHASES", "DOWN", "HEADS", "INDEX_DOWN", "INDEX_HEADS", "INDEX_KEY", "INDEX_PACK", "KEY", "LAP_BEGIN",
    "LAP_END", "LAP_FIELDS", "LAP_MARKS", "LAP_WORKER", "NO_LAPS", "PACK", "PHASES", "QUERY", "Tasks", "Team", "mark",
    "share", "share_legs", "wait",
]  # fmt: skip

PHASES = ("pack", "down", "query", "key", "heads")
PACK, DOWN, QUERY, KEY, HEADS = range(len(PHASES))
# What is noted of a task, see `arguments.Buffers`: times in ns, the last ones where its first two products end.
LAP_WORKER, LAP_BEGIN, LAP_END, LAP_MARKS = range(4)
LAP_FIELDS = LAP_MARKS + 2
NO_LAPS = np.uint8(0)
# A tile with an indexer has these too, see `index.tile`.
ALL_PHASES = (*PHASES, "index_pack", "index_down", "index_key", "index_heads")
INDEX_PACK, INDEX_DOWN, INDEX_KEY, INDEX_HEADS = range(len(PHASES), len(ALL_PHASES))


class Team(NamedTuple):
    """The workers of a parallel region: see `arguments.Buffers` on counters, spans and laps."""

    n_workers: Index
    counters: Int64
    spans: Int64
    traced: bool
    laps: Any


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
def _begin_nothing(laps: Any, phase: Index, task: Index, worker: Index) -> None:
    pass


@callee
def _note_begin(laps: Int64, phase: Index, task: Index, worker: Index) -> None:
    laps[phase, task, LAP_WORKER] = worker
    laps[phase, task, LAP_BEGIN] = now_ns()


@by_dtype("laps", {np.int64: _note_begin}, otherwise=_begin_nothing)
def _begin(laps: Any, phase: Index, task: Index, worker: Index) -> None:
    """Notes that a worker begins a task."""


@callee
def _mark_nothing(laps: Any, phase: Index, task: Index, place: Index) -> None:
    pass


@callee
def _note_mark(laps: Int64, phase: Index, task: Index, place: Index) -> None:
    laps[phase, task, place] = now_ns()


@by_dtype("laps", {np.int64: _note_mark}, otherwise=_mark_nothing)
def mark(laps: Any, phase: Index, task: Index, place: Index) -> None:
    """Notes when a task comes to a place: LAP_END, or LAP_MARKS + 0 or 1 when it is done with its product 0 or 1.

    A kernel without laps has no code for it: a call within a task slows small tasks even where it is never reached.
    """


@callee
def share(worker: Index, team: Team, tasks: Tasks, run: Callable[..., None], work: Any) -> None:
    """A worker's share of a phase: draws tasks while there are any, and runs `run(task, n_tasks, worker, work)`."""
    share_legs(worker, team, tasks, np.int64(1), window(team.counters, 0, 0), run, work)


@callee
def share_legs(
    worker: Index, team: Team, tasks: Tasks, legs: Index, groups: Int64, run: Callable[..., None], work: Any
) -> None:
    """Likewise by groups of workers, and where more than one leg makes the tasks those of relays.

    See `threads.groups` and `threads.relays`.
    """
    _come(team, worker, tasks.phase)
    n_relays, helps = tasks.n // legs, n_groups_of(groups) == 1
    split = Split(tasks.phase, tasks.n, tasks.grain, legs)
    while True:
        drawn = draw_tasks(team.counters, worker, team.n_workers, split, groups, helps)
        n_drawn = drawn.end - drawn.first
        if n_drawn == 0:
            if helps or is_done_soon(team.counters, tasks.phase, team.n_workers, tasks.n):
                return
            helps = True
        for place in range(drawn.first, drawn.end):
            each = task_at(drawn, n_relays, place)
            if legs > 1:
                wait_for_leg(team.counters, n_relays, each)
            _begin(team.laps, tasks.phase, each, worker)
            run(each, tasks.n, worker, work)
            mark(team.laps, tasks.phase, each, LAP_END)
            if legs > 1:
                finish_leg(team.counters, n_relays, tasks.n, each)
        if n_drawn > 0:
            _note(team, worker, tasks.phase, n_drawn)
            finish(team.counters, tasks.phase, team.n_workers, n_drawn)


@callee
def wait(team: Team, tasks: Tasks) -> None:
    """Returns when all tasks of a phase are done."""
    wait_for(team.counters, tasks.phase, team.n_workers, tasks.n)
