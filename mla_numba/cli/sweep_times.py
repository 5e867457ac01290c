"""Times of the sweeps of a call, and what each thread did in it, as tables."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Column, Table

from ..call.trace import Trace

__all__ = ["SweepTimes", "product_table", "sweep_table", "trace_table"]

_THREADS_SHOWN = 8
_TICK_S = 1e-9  # of the clock, within which a small phase may end


@dataclass(frozen=True, slots=True)
class SweepTimes:
    """Seconds of one sweep over all T tokens, one a repeat, and the bytes and operations that they were spent on."""

    name: str
    n_bytes: int
    n_ops: int
    times_s: tuple[float, ...]

    @property
    def min_s(self) -> float:
        """Seconds of the fastest repeat."""
        return min(self.times_s)

    @property
    def median_s(self) -> float:
        """Seconds of the repeat in the middle, at least a tick of the clock."""
        return max(statistics.median(self.times_s), _TICK_S)

    @property
    def gb_per_s(self) -> float:
        """10^9 bytes a second at the median."""
        return self.n_bytes / self.median_s / 1e9

    @property
    def gop_per_s(self) -> float:
        """10^9 operations a second at the median."""
        return self.n_ops / self.median_s / 1e9

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "bytes": self.n_bytes,
            "ops": self.n_ops,
            "times_s": list(self.times_s),
            "min_s": self.min_s,
            "median_s": self.median_s,
            "gb_per_s": self.gb_per_s,
            "gop_per_s": self.gop_per_s,
        }


def sweep_table(sweeps: list[SweepTimes]) -> Table:
    """A row a sweep; rates are those of the median time."""
    rates = ("min ms", "median ms", "MB", "GB/s", "Gop/s")
    table = Table(
        "sweep",
        *(Column(name, justify="right") for name in rates),
        box=box.SIMPLE,
        caption="rates at the median time",
        caption_justify="right",
    )
    for sweep in sweeps:
        if sweep.name == "total":
            table.add_section()
        table.add_row(
            sweep.name,
            f"{sweep.min_s * 1e3:.3f}",
            f"{sweep.median_s * 1e3:.3f}",
            f"{sweep.n_bytes / 1e6:.2f}",
            f"{sweep.gb_per_s:.1f}",
            f"{sweep.gop_per_s:.1f}" if sweep.n_ops else "",
        )
    return table


def trace_table(trace: Trace) -> Table:
    """What each thread did in a call, a row a phase; of many threads the least, the mean and the most."""
    rows = {phase: trace.busy_s(phase) for phase in trace.phases}
    busy = [sum(of_thread) for of_thread in zip(*rows.values(), strict=True)]
    rows["waiting"] = [trace.total_s - seconds for seconds in busy]
    names = [f"thread {i}" for i in range(len(busy))]
    if len(busy) > _THREADS_SHOWN:
        names = ["least", "mean", "most"]
        rows = {name: [min(times), statistics.fmean(times), max(times)] for name, times in rows.items()}
    table = Table(
        "phase",
        *(Column(name, justify="right") for name in names),
        box=box.SIMPLE,
        caption="ms in the last call",
        caption_justify="right",
    )
    for name, seconds in rows.items():
        if name == "waiting":
            table.add_section()
        table.add_row(name, *(f"{s * 1e3:.3f}" for s in seconds))
    return table


def product_table(trace: Trace) -> Table:
    """How long all threads together took for each product of a call, and for the steps beside them.

    Rates are those of a thread that does nothing else: operations by the sum of all threads' times.
    """
    ops: dict[str, int] = {}
    for tile in trace.tiles:
        for phase in trace.phases:
            for name, n_ops in tile.products_of(phase).items():
                ops[name] = ops.get(name, 0) + n_ops
    n_tasks = Counter(span.stages for tile in trace.tiles for span in tile.stages)
    names = ("tasks", "ms of all threads", "Gop/s a thread")
    table = Table(
        "product",
        *(Column(name, justify="right") for name in names),
        box=box.SIMPLE,
        caption="in the last call",
        caption_justify="right",
    )
    for stages, times in trace.stages_s.items():
        seconds, n_ops = sum(times), ops.get(stages.split(",")[0], 0)
        rate = f"{n_ops / seconds / 1e9:.1f}" if n_ops and seconds else ""
        table.add_row(stages, str(n_tasks[stages]), f"{seconds * 1e3:.3f}", rate)
    return table
