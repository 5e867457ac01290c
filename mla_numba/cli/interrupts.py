"""Ctrl-C in a command that keeps what it does: one line, exit status 130, and nothing lost but the step in hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

__all__ = ["INTERRUPTED", "held_back", "one_line_if_interrupted"]

INTERRUPTED = 130  # as of a process that SIGINT ended: 128 + 2


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, such as one that writes a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def one_line_if_interrupted(said: Callable[[], str]) -> Iterator[None]:
    """After Ctrl-C ends the command with one line on standard error, "interrupted: " and what `said` gives then."""
    try:
        yield
    except KeyboardInterrupt:
        with held_back():
            click.echo(f"interrupted: {said()}", err=True)
            raise SystemExit(INTERRUPTED) from None
