"""A trace as events of Chrome's format, which Perfetto shows too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .tile_trace import STAGES, TileTrace

__all__ = ["events_of"]

_CALLS, _WORKERS = 0, 1  # groups of rows in Chrome's format, which calls them processes


def events_of(calls: Sequence[Sequence[TileTrace]]) -> list[dict[str, Any]]:
    """The events of some calls, each a sequence of tiles, and the names of their rows."""
    tiles = [tile for call in calls for tile in call]
    start = min((tile.begin_ns for tile in tiles), default=0)
    events = [*_names(tiles)]
    for number, call in enumerate(calls):
        if call:
            begin, end, t = call[0].begin_ns, call[-1].end_ns, sum(tile.t for tile in call)
            events.append(_event(f"call {number}", "call", start, begin, end, pid=_CALLS, tid=0, args={"t": t}))
        for tile in call:
            name, at = f"tile of {tile.t} tokens", {"call": number, "t0": tile.t0, "t": tile.t}
            events.append(_event(name, "tile", start, tile.begin_ns, tile.end_ns, pid=_CALLS, tid=1, args=at))
            events += _spans_of(tile, at, start)
            events += _stages_of(tile, number, start)
    return events


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
        events.append(_event(STAGES[phase], phase, start, begin_ns, end_ns, pid=_WORKERS, tid=worker, args=args))
    return events


def _stages_of(tile: TileTrace, call: int, start: int) -> list[dict[str, Any]]:
    """An event a product of a task; where tasks have one product, and no step beside it, the event is the task."""
    return [
        _event(
            span.stages, "product", start, span.begin_ns, span.end_ns, pid=_WORKERS, tid=span.worker,
            args={"call": call, "task": span.task},
        )
        for span in tile.stages
    ]  # fmt: skip


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
