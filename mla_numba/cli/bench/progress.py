"""How far the suite is, in expected seconds: drawn between benches and while one is prepared, never by a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

__all__ = ["Progress"]

_SPEED_S = 3600.0  # benches take from one second to half a minute: the speed is that of the last hour


class Progress:
    """The bar. On what is no terminal it writes nothing."""

    def __init__(self) -> None:
        self._bars = Bars(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
            speed_estimate_period=_SPEED_S, disable=not Console(stderr=True).is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task("", total=None, count="", note="preparing")

    def __enter__(self) -> Self:
        self._bars.start()
        self._bars.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, planned: Mapping[str, float], done: Sequence[str], running: str) -> None:
        """The seconds of all benches, of those that are done, and which one runs."""
        count = f"{len(done)}/{len(planned)}" if planned else ""
        completed = sum(planned.get(name, 0.0) for name in done)
        total = sum(planned.values()) or None
        note = running.rpartition("::")[2] or "preparing"
        self._bars.update(self._task, total=total, completed=completed, count=count, note=note, refresh=True)

    def redraw(self) -> None:
        """The clock goes on."""
        self._bars.refresh()
