"""What the command line shows: steps on stderr while they run, times of sweeps, sizes."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from ..call.trace import PHASES, Trace

__all__ = [
    "BEYOND_LIMIT",
    "Steps",
    "SweepTimes",
    "beyond_limit",
    "folder_size",
    "megabytes",
    "share_text",
    "sweep_table",
    "trace_table",
]

BEYOND_LIMIT = (
    "(!) more than 100 %: faster than the rates measured beside it allow, since part of the weights came from caches, "
    "or the machine was slower while the rates were measured; no share of the limit"
)

_log = logging.getLogger("mla_numba")
_REDRAW_S = 0.2
_THREADS_SHOWN = 8


class Steps(logging.Handler):
    """Steps of a command, a line each on stderr with the seconds it took; `seconds` keeps them by name.

    What the library logs meanwhile ("compiling kernels ...") stands beside the step. Lines are drawn anew between calls
    only, never by a thread of their own, which would disturb timings.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seconds: dict[str, float] = {}
        self._task: TaskID | None = None
        self._note = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}", table_column=Column(overflow="fold")),
            console=Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._propagate = _log.propagate
        _log.propagate = False
        _log.addHandler(self)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        _log.removeHandler(self)
        _log.propagate = self._propagate

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a log record beside the step that runs."""
        self._note = escape(record.getMessage().partition(" (")[0])
        self._show(note=self._note)

    @contextmanager
    def step(self, name: str, total: int = 1) -> Iterator[Callable[[], None]]:
        """A step; what it gives is to be called after each of its `total` parts, where there are several."""
        self._note = ""
        self._task = task = self._progress.add_task(name, total=total, note="")
        self._progress.refresh()
        drawn = 0.0

        def advance() -> None:
            nonlocal drawn
            self._progress.advance(task)
            if time.perf_counter() - drawn > _REDRAW_S:
                self._progress.refresh()
                drawn = time.perf_counter()

        begin = time.perf_counter()
        yield advance
        self.seconds[name] = seconds = time.perf_counter() - begin
        note = f"; {self._note}" if self._note else ""
        self._show(completed=total, note=f"{seconds:.2f} s{note}")

    def _show(self, **changes: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, refresh=True, **changes)


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
        """Seconds of the repeat in the middle."""
        return statistics.median(self.times_s)

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
    rows = {phase: trace.busy_s(phase) for phase in PHASES}
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


def share_text(share: float, decimals: int = 0) -> str:
    """A share of the limit as text; one above 100 % is marked, and `BEYOND_LIMIT` says why it is none."""
    return f"{share:.{decimals}%}" + (" (!)" if share > 1 else "")


def beyond_limit(shares: Iterable[float | None]) -> str:
    """`BEYOND_LIMIT` where it is needed for one of these shares, else nothing."""
    return BEYOND_LIMIT if any(share is not None and share > 1 for share in shares) else ""


def folder_size(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files in a folder and below; (0, 0) if it is not there."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def megabytes(n_bytes: int) -> str:
    """Bytes as text in MB (10^6)."""
    return f"{n_bytes / 1e6:.2f} MB"
