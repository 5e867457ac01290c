"""Calls that are timed in turns: what the machine reaches drifts, and a slow spell then falls on all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

__all__ = ["Call", "quiet", "rounds"]

Call = Callable[[], Any]


def rounds(contenders: Sequence[Sequence[Call]]) -> Iterator[tuple[float, ...]]:
    """Seconds of one call of each contender, a round at each step, without end. Best within `quiet`.

    The order moves on by one each round, so that none is always the first. A contender has a call for each copy of its
    weights; whoever's turn it is takes the next copy, so that it finds in the caches nothing that was just read.
    """
    n, turns = len(contenders), count()
    for round_ in count():
        seconds = [0.0] * n
        for i in range(n):
            which = (round_ + i) % n
            calls = contenders[which]
            call = calls[next(turns) % len(calls)]
            begin = time.perf_counter()
            call()
            seconds[which] = time.perf_counter() - begin
        yield tuple(seconds)


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection meanwhile."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
