"""Progress on stderr while a command works: its steps with a clock, or a bar with the time left.

On a terminal they are drawn anew as time passes. Steps that time something are drawn between calls only, for a thread
that draws would disturb them. Elsewhere there is a plain line for each step when it has ended.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Protocol, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from .ticker import ticking

__all__ = ["Advance", "Bar", "Steps", "progress_bar", "seconds_text"]

_log = logging.getLogger("mla_numba")
_REDRAW_S = 0.2


def seconds_text(seconds: float) -> str:
    """Seconds as text, from a minute on with minutes."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"


class Advance(Protocol):
    """Says that one more part of a step is done, or so many."""

    def __call__(self, by: float = 1) -> None:
        """Takes the number of parts."""


class _Clock(ProgressColumn):
    """The seconds that a step has taken and, where its parts are counted, about how many are left."""

    max_refresh = None

    def render(self, task: Task) -> Text:
        if task.fields["ended"] or task.elapsed is None:
            return Text("")
        left = task.fields["expected"] - task.elapsed
        return Text(seconds_text(task.elapsed) + (f", about {seconds_text(left)} left" if left > 0 else ""))


def _on_stderr(*columns: ProgressColumn) -> Progress:
    return Progress(
        *columns,
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not _is_terminal(),
        speed_estimate_period=600,
    )


def _is_terminal() -> bool:
    """Whether stderr is a terminal that can be drawn on, whatever the environment says of colours."""
    console = Console(stderr=True)
    return sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal


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
    """Steps of a command on stderr, with the seconds that each took; `seconds` keeps them by name.

    What the library warns of meanwhile ("compiling kernels ...") stands beside the step, or on a line of its own.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seconds: dict[str, float] = {}
        self._task: TaskID | None = None
        self._note = ""
        self._progress = _on_stderr(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            _Clock(),
            TextColumn("{task.fields[note]}", table_column=Column(overflow="fold")),
        )

    def __enter__(self) -> Self:
        self._propagate = _log.propagate
        _log.propagate = False
        _log.addHandler(self)
        if not self._progress.disable:  # rich 13 writes an empty line even then
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._progress.disable:
            self._progress.stop()
        _log.removeHandler(self)
        _log.propagate = self._propagate

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a log record beside the step that runs."""
        said = record.getMessage().partition(" (")[0]
        if self._progress.disable:
            click.echo(said, err=True)
            return
        self._note = escape(said)
        self._show(note=self._note)

    @contextmanager
    def step(self, name: str, total: int = 1, *, timed: bool = False) -> Iterator[Advance]:
        """A step; what it gives is to be called after each of its `total` parts, or several, where there are several.

        `timed`: whether the step measures times. An interrupt gets the name as a note.
        """
        self._note = ""
        self._task = task = self._progress.add_task(escape(name), total=total, note="", expected=0.0, ended=False)
        self._progress.refresh()
        redraw, done = _now_and_then(self._progress), 0.0

        def advance(by: float = 1) -> None:
            nonlocal done
            done += by
            elapsed = time.perf_counter() - begin
            expected = elapsed * total / done if done < total else 0.0
            self._progress.update(task, advance=by, expected=expected)
            redraw()

        begin = time.perf_counter()
        try:
            with nullcontext() if timed or self._progress.disable else ticking(redraw, _REDRAW_S):
                yield advance
        except KeyboardInterrupt as error:
            error.add_note(name)
            raise
        self.seconds[name] = seconds = time.perf_counter() - begin
        if self._progress.disable:
            click.echo(f"{name}: {seconds:.2f} s", err=True)
            return
        note = f"; {self._note}" if self._note else ""
        self._show(completed=total, ended=True, note=f"{seconds:.2f} s{note}")

    def _show(self, **changes: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, refresh=True, **changes)


class Bar:
    """A bar that is called with a note and how far on."""

    def __init__(self, progress: Progress, total: float) -> None:
        self.done = 0.0
        self._progress = progress
        self._task = progress.add_task("", total=total, note="")
        self._redraw = _now_and_then(progress)

    def __call__(self, note: str, by: float) -> None:
        """Says what was done."""
        self.done += by
        self._progress.update(self._task, advance=by, note=note)
        self._redraw()

    @contextmanager
    def busy(self, note: str) -> Iterator[None]:
        """The clock runs while something is prepared that is not timed."""
        self._progress.update(self._task, note=note)
        with nullcontext() if self._progress.disable else ticking(self._redraw, _REDRAW_S):
            yield


@contextmanager
def progress_bar(what: str, total: float) -> Iterator[Bar]:
    """A bar with the time left."""
    progress = _on_stderr(
        TextColumn(what),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar, begin = Bar(progress, total), time.perf_counter()
    try:
        with nullcontext() if progress.disable else progress:
            progress.refresh()
            yield bar
            progress.refresh()
    finally:
        if progress.disable:
            click.echo(f"{what}: {bar.done:.0f} of {total:.0f}, {seconds_text(time.perf_counter() - begin)}", err=True)
