"""How many threads a call has where none are named."""

from __future__ import annotations

import functools
import os

from tiling.system.usable import Usable

__all__ = ["usual_threads", "why_usual_threads"]

_VARIABLE = "NUMBA_NUM_THREADS"


def usual_threads(available: int) -> int:
    """One for each core that this process may use; all of Numba's, `available`, where the user set how many those are.

    By itself Numba has one for each CPU.
    """
    usable = Usable.detect()
    return available if _is_told(available, usable) else min(available, usable.n_threads)


def why_usual_threads(available: int) -> str:
    """Why `usual_threads` is what it is."""
    if _is_set():
        return _VARIABLE
    if _is_told(available, Usable.detect()):
        return f"as many as Numba has; {_VARIABLE} sets another number"
    return f"{Usable.detect().reason}; {_VARIABLE} sets another number"


def _is_told(available: int, usable: Usable) -> bool:
    return _is_set() or available != len(usable.allowed)


@functools.cache
def _is_set() -> bool:
    """Asked once, as Numba does."""
    return _VARIABLE in os.environ
