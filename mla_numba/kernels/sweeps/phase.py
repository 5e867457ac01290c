"""The phases of a tile of tokens, and what is the same in each: a worker's way through its tasks.

A phase is an outlined function, compiled once for the types of its own operands, whatever else a mode has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..jit.callee import callee
from ..kinds import Index, Int64
from ..threads.atomics import now_ns
from ..threads.tasks import draw, finish, wait_for

__all__ = ["DOWN", "HEADS", "KEY", "PACK", "PHASES", "QUERY", "Tasks", "Team", "share", "wait"]

PHASES = ("pack", "down", "query", "key", "heads")
PACK, DOWN, QUERY, KEY, HEADS = range(len(PHASES))


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
def _stamp(team: Team, worker: Index, phase: Index, end: Index) -> None:
    if team.traced:
        team.spans[worker, phase, end] = now_ns()


@callee
def share(worker: Index, team: Team, tasks: Tasks, run: Callable[..., None], work: Any) -> None:
    """A worker's share of a phase: draws tasks while there are any, and runs `run(task, n_tasks, worker, work)`."""
    _stamp(team, worker, tasks.phase, 0)
    task, end = draw(team.counters, tasks.phase, worker, team.n_workers, tasks.n, tasks.grain)
    while task < end:
        for each in range(task, end):
            run(each, tasks.n, worker, work)
        finish(team.counters, tasks.phase, team.n_workers, end - task)
        task, end = draw(team.counters, tasks.phase, worker, team.n_workers, tasks.n, tasks.grain)
    _stamp(team, worker, tasks.phase, 1)


@callee
def wait(team: Team, tasks: Tasks) -> None:
    """Returns when all tasks of a phase are done."""
    wait_for(team.counters, tasks.phase, team.n_workers, tasks.n)
