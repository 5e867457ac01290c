"""How far the suite is, in expected seconds: drawn between benches and while one is prepared, never by a thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

__all__ = ["Progress", "seconds_left"]


def seconds_left(planned: Mapping[str, float], done: Mapping[str, float], running_s: float) -> float:
    """Seconds to the end, from those that benches may take and those that were taken.

    `planned`: expected seconds of every bench by name; `done`: seconds that each finished one took; `running_s`: how
    long the present one has run. What is left is expected to be as slow or fast as what is done.
    """
    expected = sum(planned.get(name, 0.0) for name in done)
    pace = sum(done.values()) / expected if expected else 1.0
    return max(0.0, (sum(planned.values()) - expected) * pace - running_s)


class Progress:
    """The bar. On what is no terminal it writes nothing."""

    def __init__(self) -> None:
        self._bars = Bars(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
            disable=not Console(stderr=True).is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task("", total=None, count="", left="", note="collecting benches")
        self._planned: Mapping[str, float] = {}
        self._taken: dict[str, float] = {}
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        self._bars.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, planned: Mapping[str, float], done: Sequence[str], running: str) -> None:
        """The seconds that all benches may take, the names of those that are done, and which one runs."""
        now = time.monotonic()
        for name in done[len(self._taken) :]:
            self._taken[name] = now - self._began
        if not running:
            self._began = now
        self._planned = planned
        self._bars.update(
            self._task, total=sum(planned.values()) or None, completed=sum(planned.get(name, 0.0) for name in done),
            count=f"{len(done)}/{len(planned)}" if planned else "", note=running.rpartition("/")[2],
        )  # fmt: skip
        self.redraw()

    def redraw(self) -> None:
        """The clock goes on."""
        if self._planned:
            left = round(seconds_left(self._planned, self._taken, time.monotonic() - self._began))
            self._bars.update(self._task, left=f"left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}")
        self._bars.refresh()
