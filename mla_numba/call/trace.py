"""When each thread worked on which phase of a call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tiling import GemmPlan, TilePlan
from tiling.html import table, to_html

from ..base.checks import Array, check_choice
from ..base.output_file import write_text
from ..base.short_repr import short_repr
from ..kernels.sweeps.phase import ALL_PHASES, PHASES

__all__ = ["PHASES", "SWEEPS", "Span", "TileTrace", "Trace"]

SWEEPS = ("down", "rows", "heads")
_CALLS, _WORKERS = 0, 1  # groups of rows in Chrome's format, which calls them processes

# The reference operator's names of what a phase does.
_STAGES = {
    "pack": "x",
    "down": "Matmul_qa, Matmul_kva",
    "query": "RmsNorm_qa, Quant_qMnRes",
    "key": "RmsNorm_compressedkv, Quant_knope, RotaryPosEmb, ScatterUpdate",
    "heads": "QuantMatmul_qb, Dequant_qb, Rope_qRope, Matmul_qNope_wUk",
    "index_pack": "x",
    "index_down": "Matmul_indexK, Matmul_indexWeights",
    "index_key": "LayerNorm_indexK, Rope_indexK, Hadamard_indexK, Quant_indexK, Scatter_indexK, Scale_indexWeights",
    "index_heads": "QuantMatmul_indexQ, Dequant_indexQ, Rope_indexQ, Hadamard_indexQ, Quant_indexQ",
}


class Span(NamedTuple):
    """A worker's time in a phase, in nanoseconds of `time.perf_counter_ns`; waiting for the phase is not in it.

    It begins when the worker comes to the phase and ends with its last task there. A worker that comes late finds no
    task left: `n_tasks` is then 0, and `end_ns` equals `begin_ns`.
    """

    phase: str
    worker: int
    begin_ns: int
    end_ns: int
    n_tasks: int


@dataclass(frozen=True, slots=True)
class TileTrace:
    """One tile of tokens: `t` from token `t0` on, between `begin_ns` and `end_ns` of `time.perf_counter_ns`.

    `plan` is the tile's plan, where it is known.
    """

    t0: int
    t: int
    begin_ns: int
    end_ns: int
    spans: tuple[Span, ...]
    plan: TilePlan | None = None

    def products_of(self, phase: str) -> dict[str, int]:
        """Operations of the products that the tasks of a phase compute, by stage; empty where the plan is not known.

        A task computes its part of one product right before that of the next, with no time stamp between. So a phase's
        products have no spans of their own.
        """
        if self.plan is None:
            return {}
        qa, qb, kva, wuk = self.plan.gemms
        of_phases: dict[str, tuple[GemmPlan, ...]] = {"down": (qa, kva), "heads": (qb, wuk)}
        if self.plan.indexer is not None:
            k, query, weights, hadamard = self.plan.indexer.gemms
            of_phases |= {"index_down": (k, weights), "index_heads": (query, hadamard)}
        return {gemm.stage: gemm.ops for gemm in of_phases.get(phase, ())}

    def __repr__(self) -> str:
        total = f"{(self.end_ns - self.begin_ns) / 1e6:.3f} ms"
        return short_repr(self, f"{self.t} tokens from token {self.t0} on", total, _sweeps_text(self.seconds))

    def end_of(self, phase: str) -> int:
        """When the last task of a phase was done; who found none there says nothing of it."""
        check_choice("phase", phase, ALL_PHASES)
        ends = [span.end_ns for span in self.spans if span.phase == phase and span.n_tasks]
        return max(ends, default=self.begin_ns)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each sweep: to the end of the last task of x's products, then of the query's rows, then the rest.

        They add up to the time between `begin_ns` and `end_ns`. Key rows, which nothing waits for, are done in the
        second or in the third; an indexer's, too.
        """
        down = max(self.end_of("down"), self.end_of("index_down"))
        marks = [self.begin_ns, down, max(down, self.end_of("query")), self.end_ns]
        return {name: (marks[i + 1] - marks[i]) / 1e9 for i, name in enumerate(SWEEPS)}


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
        return short_repr(self, tiles, tokens, f"{self.total_s * 1e3:.3f} ms", _sweeps_text(self.seconds))

    @property
    def _phases(self) -> tuple[str, ...]:
        """The phases that its tiles have: those of the prolog, and of an indexer."""
        found = {span.phase for tile in self.tiles for span in tile.spans}
        return tuple(phase for phase in ALL_PHASES if phase in PHASES or phase in found)

    def _repr_html_(self) -> str:
        """A table for notebooks: for each phase its tasks, who worked on it and for how long."""
        rows = []
        for phase in self._phases:
            spans = [span for tile in self.tiles for span in tile.spans if span.phase == phase]
            busy = [seconds * 1e3 for seconds in self.busy_s(phase)]
            workers = len({span.worker for span in spans if span.n_tasks})
            times = (sum(busy), min(busy, default=0.0), max(busy, default=0.0))
            tasks = sum(span.n_tasks for span in spans)
            rows.append((phase, _STAGES[phase], str(tasks), str(workers), *(f"{time_ms:.3f}" for time_ms in times)))
        header = ("phase", "steps", "tasks", "workers", "busy ms", "least of a worker", "most of a worker")
        return to_html(table(repr(self)[1:-1], header, rows))

    def add(self, begin_ns: int, end_ns: int, t0: int, t: int, spans: Array, plan: TilePlan | None = None) -> None:
        """Adds a tile.

        Args:
            begin_ns: When it began, in nanoseconds of `time.perf_counter_ns`.
            end_ns: When it ended.
            t0: Its first token.
            t: Its tokens.
            spans: Begin, end and number of tasks (n_workers, phases, 3) int64: see `kernels.sweeps.arguments.Buffers`.
            plan: Its plan, for what its products compute.
        """
        found = [
            Span(phase, worker, *map(int, spans[worker, i]))
            for worker in range(len(spans))
            for i, phase in enumerate(ALL_PHASES[: spans.shape[1]])
        ]
        self.tiles.append(TileTrace(t0, t, begin_ns, end_ns, tuple(found), plan))

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

    def to_chrome(self, path: str | Path, *later: Trace) -> None:
        """Writes the trace, and those of later calls, as a file of Chrome's trace format, which Perfetto shows too.

        Each worker has a row with an event a span with tasks. Two rows above have the calls and the tiles of tokens.
        Times are microseconds since the first call began.

        Args:
            path: The file; a FIFO or a terminal can be written to.
            *later: Traces of later calls, such as those of a loop.

        Raises:
            OSError: The file cannot be written.
            ValueError: It is another kind of file.
        """
        calls = [self, *later]
        tiles = [tile for call in calls for tile in call.tiles]
        start = min((tile.begin_ns for tile in tiles), default=0)
        events = [*_names(tiles)]
        for number, call in enumerate(calls):
            if call.tiles:
                begin, end = call.tiles[0].begin_ns, call.tiles[-1].end_ns
                t = sum(tile.t for tile in call.tiles)
                events.append(_event(f"call {number}", "call", start, begin, end, pid=_CALLS, tid=0, args={"t": t}))
            for tile in call.tiles:
                name, at = f"tile of {tile.t} tokens", {"call": number, "t0": tile.t0, "t": tile.t}
                events.append(_event(name, "tile", start, tile.begin_ns, tile.end_ns, pid=_CALLS, tid=1, args=at))
                events += _spans_of(tile, at, start)
        write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))


def _event(
    name: str, kind: str, start: int, begin_ns: int, end_ns: int, *, pid: int, tid: int, args: dict[str, Any]
) -> dict[str, Any]:
    """A complete event in a row of the trace."""
    ts, dur = (begin_ns - start) / 1e3, (end_ns - begin_ns) / 1e3
    return {"name": name, "cat": kind, "ph": "X", "ts": ts, "dur": dur, "pid": pid, "tid": tid, "args": args}


def _spans_of(tile: TileTrace, at: dict[str, int], start: int) -> list[dict[str, Any]]:
    """An event a span with tasks."""
    events = []
    for phase, worker, begin_ns, end_ns, n_tasks in tile.spans:
        if not n_tasks:
            continue
        args: dict[str, Any] = at | {"tasks": n_tasks}
        args["tasks of all"] = sum(span.n_tasks for span in tile.spans if span.phase == phase)
        if products := tile.products_of(phase):
            args["operations of all"] = products
        events.append(_event(_STAGES[phase], phase, start, begin_ns, end_ns, pid=_WORKERS, tid=worker, args=args))
    return events


def _names(tiles: Iterable[TileTrace]) -> list[dict[str, Any]]:
    """What the rows are called, and their order."""
    workers = sorted({span.worker for tile in tiles for span in tile.spans})
    rows = [(_CALLS, 0, "calls"), (_CALLS, 1, "tiles of tokens")]
    rows += [(_WORKERS, worker, f"worker {worker}") for worker in workers]
    groups = [(_CALLS, "mla_numba: calls"), (_WORKERS, "mla_numba: workers")]
    named: list[tuple[str, int, int, dict[str, Any]]] = []
    named += [("process_name", pid, 0, {"name": name}) for pid, name in groups]
    named += [("process_sort_index", pid, 0, {"sort_index": pid}) for pid, _ in groups]
    named += [("thread_name", pid, tid, {"name": name}) for pid, tid, name in rows]
    named += [("thread_sort_index", pid, tid, {"sort_index": tid}) for pid, tid, _ in rows]
    return [{"name": name, "ph": "M", "pid": pid, "tid": tid, "args": args} for name, pid, tid, args in named]


def _sweeps_text(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {time_s * 1e3:.3f} ms" for name, time_s in seconds.items())
