"""How many threads a call has where none are named."""

from __future__ import annotations

import os

from tiling.system.usable import Usable

__all__ = ["usual_threads", "why_usual_threads"]

_VARIABLE = "NUMBA_NUM_THREADS"


def usual_threads(available: int) -> int:
    """One for each core that this process may use; all of Numba's, `available`, where the user set how many those are.

    By itself Numba has one for each CPU.
    """
    return available if _is_told(available) else min(available, Usable.detect().n_threads)


def why_usual_threads(available: int) -> str:
    """Why `usual_threads` is what it is."""
    if _VARIABLE in os.environ:
        return _VARIABLE
    if _is_told(available):
        return f"as many as Numba has; {_VARIABLE} sets another number"
    return f"{Usable.detect().reason}; {_VARIABLE} sets another number"


def _is_told(available: int) -> bool:
    return _VARIABLE in os.environ or available != len(Usable.detect().allowed)
