"""Something that is done again and again while the main thread works."""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["ticking"]


@contextmanager
def ticking(tick: Callable[[], None], every_s: float) -> Iterator[None]:
    """Calls `tick` every so many seconds in a thread, which has ended when the block ends.

    It is none of `threading`'s: those are counted by what warns of other threads in parallel functions.
    """
    stop, ended = _thread.allocate_lock(), _thread.allocate_lock()
    stop.acquire()
    ended.acquire()

    def run() -> None:
        try:
            while not stop.acquire(timeout=every_s):
                tick()
        finally:
            ended.release()

    _thread.start_new_thread(run, ())
    try:
        yield
    finally:
        stop.release()
        ended.acquire()
