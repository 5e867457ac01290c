"""Progress on stderr while a command works: its steps, or a bar.

Both are drawn anew between calls only, never by a thread of their own, which would disturb timings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

__all__ = ["Steps", "progress_bar"]

_log = logging.getLogger("mla_numba")
_REDRAW_S = 0.2


def _on_stderr(*columns: ProgressColumn) -> Progress:
    return Progress(
        *columns, console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    )


def _now_and_then(progress: Progress) -> Callable[[], None]:
    """Draws the progress anew, unless that was done just before."""
    drawn = 0.0

    def redraw() -> None:
        nonlocal drawn
        if time.perf_counter() - drawn > _REDRAW_S:
            progress.refresh()
            drawn = time.perf_counter()

    return redraw


class Steps(logging.Handler):
    """Steps of a command, a line each on stderr with the seconds it took; `seconds` keeps them by name.

    What the library logs meanwhile ("compiling kernels ...") stands beside the step.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seconds: dict[str, float] = {}
        self._task: TaskID | None = None
        self._note = ""
        self._progress = _on_stderr(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}", table_column=Column(overflow="fold")),
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
        redraw = _now_and_then(self._progress)

        def advance() -> None:
            self._progress.advance(task)
            redraw()

        begin = time.perf_counter()
        yield advance
        self.seconds[name] = seconds = time.perf_counter() - begin
        note = f"; {self._note}" if self._note else ""
        self._show(completed=total, note=f"{seconds:.2f} s{note}")

    def _show(self, **changes: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, refresh=True, **changes)


@contextmanager
def progress_bar(what: str, total: float | None) -> Iterator[Callable[[str, float], None]]:
    """A bar with the time left; what it gives takes a note and how far on."""
    progress = _on_stderr(
        TextColumn(what),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with progress:
        task = progress.add_task("", total=total, note="")
        redraw = _now_and_then(progress)

        def advance(note: str, by: float) -> None:
            progress.update(task, advance=by, note=note)
            redraw()

        progress.refresh()
        yield advance
        progress.refresh()
