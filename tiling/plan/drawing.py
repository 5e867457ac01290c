"""How workers share the tasks of a tile of tokens: a simulation of their drawing, see ``mla_numba.kernels.threads``.

Each worker begins with its own even range of a phase's tasks and then takes what is left of the others'; or all those
of a group draw from one row, where a task goes on with the sums of another. Where there are several groups, a worker
whose own has no task left helps the others a moment later. A worker that finds none left goes on to the next phase, and
waits there where it needs another phase whole.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple

from tiling.arith import chunks
from tiling.plan.groups import first_workers, group_of_each

__all__ = ["Crew", "Drawing", "PhaseTasks", "SweepDrawing", "draw_tasks"]

# Seconds after which a worker whose group has no task left helps another.
PATIENCE_S = 5e-6
# The sweeps by the phase whose last task ends them; the last one ends with the tile.
SWEEPS = {"down": "down", "rows": "query", "heads": "heads"}


class PhaseTasks(NamedTuple):
    """The tasks of a phase.

    - ``seconds``: of each, in their order; ``grain``: how many are drawn at a time.
    - ``n_relays``: where it is not 0, task ``i`` goes on where task ``i - n_relays`` ended; rows are drawn in order.
    - ``after``: the phase, of those before it, whose tasks must all be done before a worker begins; "" for none.
    - ``is_grouped``: whether workers draw the tasks of their own group first.
    - ``weights``: of each task, the bytes of its weights by the NUMA node that they lie on; nothing where there is one
      node, or no weights.
    """

    name: str
    seconds: tuple[float, ...]
    grain: int = 1
    n_relays: int = 0
    after: str = ""
    is_grouped: bool = False
    weights: tuple[tuple[float, ...], ...] = ()


class Crew(NamedTuple):
    """The workers: those of each group, and those that run on each NUMA node.

    Empty ``groups`` or ``nodes`` are a single one. ``far``: so many times as long a task takes whose weights all lie on
    another node.
    """

    n_workers: int
    groups: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    far: float = 1.0


class Span(NamedTuple):
    """A task: who does it in which phase, and when; the bytes of its weights, and of those on another NUMA node."""

    phase: str
    worker: int
    begin_s: float
    end_s: float
    weight_bytes: float = 0.0
    far_bytes: float = 0.0


class SweepDrawing(NamedTuple):
    """A sweep: its seconds, the part of them in which the workers on average do nothing, and the tasks of each.

    ``far``: the part of its weights that is read from another NUMA node.
    """

    seconds: float
    idle: float
    n_tasks: tuple[int, ...]
    far: float


@dataclass(frozen=True)
class Drawing:
    """Which worker did which task when, as simulated: ``spans`` in the order in which they were drawn.

    ``PrologPlan.drawing`` makes it from a plan.
    """

    n_workers: int
    spans: tuple[Span, ...]
    has_nodes: bool = False

    def end_of(self, phase: str) -> float:
        """When the last task of a phase is done."""
        return max((span.end_s for span in self._of(phase)), default=0.0)

    @property
    def seconds(self) -> float:
        """From the begin to the end of the last task."""
        return max((span.end_s for span in self.spans), default=0.0)

    @property
    def idle(self) -> float:
        """The part of the workers' time in which they do nothing."""
        return self._idle(0.0, self.seconds)

    @property
    def far(self) -> float:
        """The part of the weights that is read from another NUMA node."""
        return _far(self.spans)

    @property
    def sweeps(self) -> dict[str, SweepDrawing]:
        """The sweeps by name, which begin where the one before ends; key rows may be done in the last two."""
        ends = [self.end_of(phase) for phase in SWEEPS.values()]
        ends[-1] = self.seconds
        begins = [0.0, *ends[:-1]]
        return {
            name: SweepDrawing(end - begin, self._idle(begin, end), self.n_tasks(phase), _far(self._of(phase)))
            for (name, phase), begin, end in zip(SWEEPS.items(), begins, ends, strict=True)
        }

    def n_tasks(self, phase: str) -> tuple[int, ...]:
        """Tasks of a phase by worker."""
        counts = [0] * self.n_workers
        for span in self._of(phase):
            counts[span.worker] += 1
        return tuple(counts)

    def _of(self, phase: str) -> list[Span]:
        return [span for span in self.spans if span.phase == phase]

    def _idle(self, begin: float, end: float) -> float:
        busy = sum(max(0.0, min(span.end_s, end) - max(span.begin_s, begin)) for span in self.spans)
        return max(0.0, 1 - busy / (self.n_workers * (end - begin))) if end > begin else 0.0

    def __str__(self) -> str:
        """One line."""
        workers = "1 worker" if self.n_workers == 1 else f"{self.n_workers} workers"
        parts = [
            f"{name} {_percent(sweep.idle)} of {sweep.seconds * 1e3:.4f} ms" for name, sweep in self.sweeps.items()
        ]
        far = f"; weights from another node: {_percent(self.far)}" if self.has_nodes else ""
        return f"idle: {_percent(self.idle)} at {workers} ({', '.join(parts)}){far}"


def _far(spans: Iterable[Span]) -> float:
    n_bytes, far = (sum(column) for column in zip((0.0, 0.0), *(span[-2:] for span in spans), strict=True))
    return far / n_bytes if n_bytes else 0.0


def _percent(part: float) -> str:
    return f"{part:.1%}"


class _Ranges:
    """The tasks of a phase that nobody has drawn yet."""

    def __init__(self, phase: PhaseTasks, crew: Crew) -> None:
        self._grain, n = phase.grain, crew.n_workers
        groups = crew.groups if phase.is_grouped and crew.groups else (n,)
        self._workers = [range(*ends) for ends in pairwise(first_workers(groups))]
        self._group_of = group_of_each(groups, n)
        # By worker, or where tasks are those of relays by the first worker of each group
        if phase.n_relays:
            starts = [(first, phase.n_relays * first // n) for first in first_workers(groups)]
            shares = pairwise(starts)
            self._left = {worker: _row(phase, range(begin, end)) for (worker, begin), (_, end) in shares}
        else:
            self._left = {worker: deque(range(*cut)) for worker, cut in enumerate(chunks(len(phase.seconds), n))}

    def may_help(self) -> bool:
        """Whether there are several groups, and one of them has tasks left."""
        return len(self._workers) > 1 and any(self._left.values())

    def draw(self, worker: int, helps: bool) -> list[int]:
        """The next tasks for a worker: of its own group, its own range first, or where it helps of the others."""
        mine, n = self._group_of[worker], len(self._workers)
        groups = [(mine + other) % n for other in range(1, n)] if helps else [mine]
        for workers in (self._workers[group] for group in groups):
            at = 0 if helps else worker - workers.start
            for owner in [*workers[at:], *workers[:at]]:
                left = self._left.get(owner)
                if left:
                    return [left.popleft() for _ in range(min(self._grain, len(left)))]
        return []


def _row(phase: PhaseTasks, relays: range) -> deque[int]:
    """All legs of some relays, first the first ones."""
    legs = range(len(phase.seconds) // phase.n_relays)
    return deque(leg * phase.n_relays + relay for leg in legs for relay in relays)


def _span(phase: PhaseTasks, task: int, begin: float, worker: int, crew: Crew, node: int) -> Span:
    seconds, here = phase.seconds[task], phase.weights[task] if phase.weights else ()
    n_bytes = sum(here)
    away = n_bytes - here[node] if here else 0.0
    if away:
        seconds *= 1 + (crew.far - 1) * away / n_bytes
    return Span(phase.name, worker, begin, begin + seconds, n_bytes, away)


def draw_tasks(phases: tuple[PhaseTasks, ...], crew: Crew) -> Drawing:
    """Workers that begin together go through all phases; whoever is free first draws first.

    Args:
        phases: In the order in which each worker comes to them.
        crew: The workers.

    Returns:
        What they did.
    """
    ranges, node_of = [_Ranges(phase, crew) for phase in phases], group_of_each(crew.nodes, crew.n_workers)
    ends: list[dict[int, float]] = [{} for _ in phases]  # of each task that was drawn
    at = {phase.name: i for i, phase in enumerate(phases)}
    spans: list[Span] = []
    free = [(0.0, worker, 0, False) for worker in range(crew.n_workers)]  # when, who, in which phase, whether it helps
    heapify(free)
    while free:
        now, worker, i, helps = heappop(free)
        phase = phases[i]
        drawn = ranges[i].draw(worker, helps)
        for task in drawn:
            begin = max(now, ends[i].get(task - phase.n_relays, 0.0)) if phase.n_relays else now
            spans.append(_span(phase, task, begin, worker, crew, node_of[worker]))
            now = ends[i][task] = spans[-1].end_s
        if drawn:
            heappush(free, (now, worker, i, helps))
        elif not helps and ranges[i].may_help():
            heappush(free, (now + PATIENCE_S, worker, i, True))
        elif i + 1 < len(phases):
            # Who finds no task left waits for tasks that were drawn, whose ends are known by now.
            after = phases[i + 1].after
            ready = max(ends[at[after]].values(), default=0.0) if after else 0.0
            heappush(free, (max(now, ready), worker, i + 1, False))
    return Drawing(crew.n_workers, tuple(spans), bool(crew.nodes))
