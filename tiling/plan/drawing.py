"""How workers share the tasks of a tile of tokens: a simulation of their drawing, see ``mla_numba.kernels.threads``.

Each worker begins with its own even range of a phase's tasks and then takes what is left of the others'; or all of them
draw from one range, where a task goes on with the sums of another. A worker that finds none left goes on to the next
phase, and waits there where it needs another phase whole.
"""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from tiling.arith import chunks

__all__ = ["Drawing", "PhaseTasks", "SweepDrawing", "draw_tasks"]

# The sweeps by the phase whose last task ends them; the last one ends with the tile.
SWEEPS = {"down": "down", "rows": "query", "heads": "heads"}


class PhaseTasks(NamedTuple):
    """The tasks of a phase.

    - ``seconds``: of each, in their order; ``grain``: how many are drawn at a time.
    - ``n_relays``: where it is not 0, task ``i`` goes on where task ``i - n_relays`` ended, and all are drawn in order.
    - ``after``: the phase, of those before it, whose tasks must all be done before a worker begins; "" for none.
    """

    name: str
    seconds: tuple[float, ...]
    grain: int = 1
    n_relays: int = 0
    after: str = ""


class Span(NamedTuple):
    """A task: who does it in which phase, and when."""

    phase: str
    worker: int
    begin_s: float
    end_s: float


class SweepDrawing(NamedTuple):
    """A sweep: its seconds, the part of them in which the workers on average do nothing, and the tasks of each."""

    seconds: float
    idle: float
    n_tasks: tuple[int, ...]


@dataclass(frozen=True)
class Drawing:
    """Which worker did which task when, as simulated: ``spans`` in the order in which they were drawn.

    ``PrologPlan.drawing`` makes it from a plan.
    """

    n_workers: int
    spans: tuple[Span, ...]

    def end_of(self, phase: str) -> float:
        """When the last task of a phase is done."""
        return max((span.end_s for span in self.spans if span.phase == phase), default=0.0)

    @property
    def seconds(self) -> float:
        """From the begin to the end of the last task."""
        return max((span.end_s for span in self.spans), default=0.0)

    @property
    def idle(self) -> float:
        """The part of the workers' time in which they do nothing."""
        return self._idle(0.0, self.seconds)

    @property
    def sweeps(self) -> dict[str, SweepDrawing]:
        """The sweeps by name, which begin where the one before ends; key rows may be done in the last two."""
        ends = [self.end_of(phase) for phase in SWEEPS.values()]
        ends[-1] = self.seconds
        begins = [0.0, *ends[:-1]]
        return {
            name: SweepDrawing(end - begin, self._idle(begin, end), self.n_tasks(phase))
            for (name, phase), begin, end in zip(SWEEPS.items(), begins, ends, strict=True)
        }

    def n_tasks(self, phase: str) -> tuple[int, ...]:
        """Tasks of a phase by worker."""
        counts = [0] * self.n_workers
        for span in self.spans:
            counts[span.worker] += span.phase == phase
        return tuple(counts)

    def _idle(self, begin: float, end: float) -> float:
        busy = sum(max(0.0, min(span.end_s, end) - max(span.begin_s, begin)) for span in self.spans)
        return max(0.0, 1 - busy / (self.n_workers * (end - begin))) if end > begin else 0.0

    def __str__(self) -> str:
        """One line."""
        workers = "1 worker" if self.n_workers == 1 else f"{self.n_workers} workers"
        parts = [
            f"{name} {_percent(sweep.idle)} of {sweep.seconds * 1e3:.4f} ms" for name, sweep in self.sweeps.items()
        ]
        return f"idle: {_percent(self.idle)} at {workers} ({', '.join(parts)})"


def _percent(part: float) -> str:
    return f"{part:.1%}"


class _Ranges:
    """The tasks of a phase that nobody has drawn yet."""

    def __init__(self, phase: PhaseTasks, n_workers: int) -> None:
        self._phase = phase
        self._left = [[*cut] for cut in chunks(len(phase.seconds), 1 if phase.n_relays else n_workers)]

    def draw(self, worker: int) -> range:
        """The next tasks for a worker: of its own range while there are any."""
        for other in range(len(self._left)):
            of_range = self._left[(worker + other) % len(self._left)]
            first, end = of_range
            if first < end:
                of_range[0] = min(first + self._phase.grain, end)
                return range(first, of_range[0])
        return range(0)


def draw_tasks(phases: tuple[PhaseTasks, ...], n_workers: int) -> Drawing:
    """Workers that begin together go through all phases; whoever is free first draws first.

    Args:
        phases: In the order in which each worker comes to them.
        n_workers: Workers.

    Returns:
        What they did.
    """
    ranges = [_Ranges(phase, n_workers) for phase in phases]
    ends: list[dict[int, float]] = [{} for _ in phases]  # of each task that was drawn
    at = {phase.name: i for i, phase in enumerate(phases)}
    spans: list[Span] = []
    free = [(0.0, worker, 0) for worker in range(n_workers)]  # when, who, and in which phase
    heapify(free)
    while free:
        now, worker, i = heappop(free)
        phase = phases[i]
        drawn = ranges[i].draw(worker)
        for task in drawn:
            begin = max(now, ends[i].get(task - phase.n_relays, 0.0)) if phase.n_relays else now
            now = ends[i][task] = begin + phase.seconds[task]
            spans.append(Span(phase.name, worker, begin, now))
        if drawn:
            heappush(free, (now, worker, i))
        elif i + 1 < len(phases):
            # Who finds no task left waits for tasks that were drawn, whose ends are known by now.
            after = phases[i + 1].after
            ready = max(ends[at[after]].values(), default=0.0) if after else 0.0
            heappush(free, (max(now, ready), worker, i + 1))
    return Drawing(n_workers, tuple(spans))
