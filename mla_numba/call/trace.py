"""When each thread worked on which phase of a call."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tiling import TilePlan
from tiling.html import table, to_html

from ..base.checks import Array, check_choice
from ..base.output_file import write_text
from ..base.short_repr import short_repr
from ..kernels.sweeps.phase import ALL_PHASES, PHASES
from .chrome_events import events_of
from .tile_trace import STAGES, SWEEPS, Span, StageSpan, TileTrace, spans_of, stage_spans_of, sweeps_text

__all__ = ["PHASES", "SWEEPS", "Span", "StageSpan", "TileTrace", "Trace"]


@dataclass(slots=True)
class Trace:
    """A call, tile by tile: what `MlaProlog.profile` returns. `MlaProlog.profile` has an example.

    Args:
        tiles: The tiles of tokens in their order.
    """

    tiles: list[TileTrace] = field(default_factory=list)

    def __repr__(self) -> str:
        tiles = f"{len(self.tiles)} tile{'' if len(self.tiles) == 1 else 's'} of tokens"
        tokens = f"{sum(tile.t for tile in self.tiles)} tokens"
        return short_repr(self, tiles, tokens, f"{self.total_s * 1e3:.3f} ms", sweeps_text(self.seconds))

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that its tiles have: those of the prolog, and of an indexer if there was one."""
        found = {span.phase for tile in self.tiles for span in tile.spans}
        return tuple(phase for phase in ALL_PHASES if phase in PHASES or phase in found)

    def _repr_html_(self) -> str:
        """A table for notebooks: for each phase its tasks, who worked on it and for how long."""
        rows = []
        for phase in self.phases:
            spans = [span for tile in self.tiles for span in tile.spans if span.phase == phase]
            busy = [seconds * 1e3 for seconds in self.busy_s(phase)]
            workers = len({span.worker for span in spans if span.n_tasks})
            times = (sum(busy), min(busy, default=0.0), max(busy, default=0.0))
            tasks = sum(span.n_tasks for span in spans)
            rows.append((phase, STAGES[phase], str(tasks), str(workers), *(f"{time_ms:.3f}" for time_ms in times)))
        header = ("phase", "steps", "tasks", "workers", "busy ms", "least of a worker", "most of a worker")
        return to_html(table(repr(self)[1:-1], header, rows))

    def add(
        self,
        begin_ns: int,
        end_ns: int,
        t0: int,
        t: int,
        spans: Array,
        plan: TilePlan | None = None,
        laps: Array | None = None,
    ) -> None:
        """Adds a tile.

        Args:
            begin_ns: When it began, in nanoseconds of `time.perf_counter_ns`.
            end_ns: When it ended.
            t0: Its first token.
            t: Its tokens.
            spans: Begin, end and number of tasks (n_workers, phases, 3) int64: see `kernels.sweeps.arguments.Buffers`.
            plan: Its plan, for what its products compute.
            laps: What was noted of each task of that plan (phases, tasks, LAP_FIELDS) int64: see there.
        """
        stages = () if plan is None or laps is None else tuple(stage_spans_of(laps, plan))
        self.tiles.append(TileTrace(t0, t, begin_ns, end_ns, spans_of(spans), plan, stages))

    @property
    def total_s(self) -> float:
        """Seconds of the call's tiles."""
        return sum(tile.end_ns - tile.begin_ns for tile in self.tiles) / 1e9

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each sweep, tiles added up."""
        return {name: sum(tile.seconds[name] for tile in self.tiles) for name in SWEEPS}

    def busy_s(self, phase: str) -> list[float]:
        """Seconds that each worker spent in a phase, tiles added up; a tile may have fewer workers than another.

        Args:
            phase: "pack", "down", "query", "key" or "heads", or one of an indexer: "index_pack", "index_down",
                "index_key" or "index_heads".

        Returns:
            Seconds by worker.

        Raises:
            TypeError: `phase` is no string.
            ValueError: It is none of the phases.
        """
        check_choice("phase", phase, ALL_PHASES)
        spans = [span for tile in self.tiles for span in tile.spans if span.phase == phase]
        seconds = [0.0] * (1 + max((span.worker for span in spans), default=-1))
        for span in spans:
            seconds[span.worker] += (span.end_ns - span.begin_ns) / 1e9
        return seconds

    @property
    def stages_s(self) -> dict[str, list[float]]:
        """Seconds that each worker spent in each product, and in the steps beside them, tiles added up.

        By the reference operator's names, in the order of the phases; empty unless `MlaProlog.profile` was asked for
        `products`.
        """
        spans = [span for tile in self.tiles for span in tile.stages]
        n_workers = 1 + max((span.worker for tile in self.tiles for span in tile.spans), default=-1)
        order = sorted(spans, key=lambda span: PHASES.index(span.phase))
        seconds: dict[str, list[float]] = {span.stages: [0.0] * n_workers for span in order}
        for span in spans:
            seconds[span.stages][span.worker] += (span.end_ns - span.begin_ns) / 1e9
        return seconds

    def to_chrome(self, path: str | Path, *later: Trace) -> None:
        """Writes the trace, and those of later calls, as a file of Chrome's trace format, which Perfetto shows too.

        Each worker has a row with an event a span with tasks, and in it, where the call was profiled with `products`,
        one for each product of each task. Two rows above have the calls and the tiles of tokens. Times are microseconds
        since the first call began.

        Args:
            path: The file; a FIFO or a terminal can be written to.
            *later: Traces of later calls, such as those of a loop.

        Raises:
            OSError: The file cannot be written.
            ValueError: It is another kind of file.
        """
        events = events_of([call.tiles for call in (self, *later)])
        write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))
