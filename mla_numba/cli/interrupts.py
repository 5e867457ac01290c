"""Ctrl-C in a command: one line, exit status 130, and nothing half done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

__all__ = ["INTERRUPTED", "Interrupted", "held_back", "interruptible", "saying_what_is_kept"]

INTERRUPTED = 130
_DEAF_S = 1.0  # after an interrupt, for the clean-up
_AGAIN_S = 0.02


class Interrupted(click.ClickException):
    """A command that ended with Ctrl-C. `doing`: the step that was in hand, or nothing."""

    exit_code = INTERRUPTED

    def __init__(self, doing: str) -> None:
        super().__init__(f"interrupted: {doing}" if doing else "interrupted")

    def show(self, file: object = None) -> None:
        """One line on stderr."""
        click.echo(self.message, err=True)


class _Handler:
    """Raises KeyboardInterrupt where it is not lost, and only once, so that no second one disturbs the clean-up.

    Python drops an exception in a function that C code calls back, as LLVM does after compiling, and in `__del__`.
    There the interrupt waits.
    """

    def __init__(self) -> None:
        self._raised = float("-inf")

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._raised < _DEAF_S:
            return
        if hasattr(signal, "setitimer") and _would_be_lost(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        self._raised = time.monotonic()
        raise KeyboardInterrupt


def _would_be_lost(frame: FrameType | None) -> bool:
    while frame is not None:
        module = frame.f_globals.get("__name__") or ""
        if frame.f_code.co_name == "__del__" or module.startswith(("llvmlite.binding", "weakref")):
            return True
        frame = frame.f_back
    return False


@contextmanager
def interruptible() -> Iterator[None]:
    """Ends what runs inside with `Interrupted` after Ctrl-C; its step is a note of the exception.

    Where something else takes care of the signal, or the thread is not the main one, that stays as it is.
    """
    own = threading.current_thread() is threading.main_thread()
    own = own and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    handler = _Handler()
    before = {}
    try:
        if own:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, handler)
            if hasattr(signal, "setitimer"):
                before[signal.SIGALRM] = signal.signal(signal.SIGALRM, handler)
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(next(iter(getattr(error, "__notes__", [])), "")) from None
    finally:
        if hasattr(signal, "setitimer") and own:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def held_back() -> Iterator[None]:
    """An interrupt waits for the end of the block, such as one that writes a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    numbers = [signal.SIGINT, *([signal.SIGALRM] if hasattr(signal, "SIGALRM") else [])]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def saying_what_is_kept(said: Callable[[], str]) -> Iterator[None]:
    """Ends what runs inside with `Interrupted` after Ctrl-C; `said` writes what is to be kept, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        with held_back():
            kept = said()
        raise Interrupted(kept) from None
