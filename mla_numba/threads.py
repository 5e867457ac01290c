"""How many threads a call has where none are named."""

from __future__ import annotations

from tiling.check import short_int
from tiling.system.usable import Usable

from .base.checks import check_int
from .kernels import max_threads, threads_asked

__all__ = ["check_threads", "usual_threads", "why_usual_threads"]


def usual_threads() -> int:
    """`NUMBA_NUM_THREADS` where the user set it, else a thread for each core that this process may use."""
    return max_threads() if threads_asked() else min(max_threads(), Usable.detect().n_threads)


def why_usual_threads() -> str:
    """Why `usual_threads` is what it is."""
    if threads_asked():
        return "NUMBA_NUM_THREADS"
    if max_threads() < Usable.detect().n_threads:
        return "as many as Numba has; NUMBA_NUM_THREADS sets another number"
    return f"{Usable.detect().reason}; NUMBA_NUM_THREADS sets another number"


def check_threads(name: str, value: object) -> int:
    """`value` if that many threads can be had; `usual_threads` where it is None."""
    n_threads = usual_threads() if value is None else check_int(name, value, 1)
    if n_threads > max_threads():
        raise ValueError(
            f"{name}: expected at most Numba's {max_threads()} (NUMBA_NUM_THREADS), got {short_int(n_threads)}"
        )
    return n_threads
