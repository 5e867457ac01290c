"""Ranges in PyTorch's profiler: where it runs, a call and its phases show as ranges of their own.

Nothing is imported for it: where nobody imported PyTorch, there is no profiler to tell. A tile of tokens is one
parallel region without Python in it. Where the profiler runs it is a region a phase, so that each has a range. Bits
stay the same, but all workers meet between two phases, where they otherwise begin with heads while others are still at
rows. `Trace` has the phases of an undivided tile, thread by thread.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..kernels.sweeps.phase import PHASES

__all__ = ["parts_of_a_tile", "profiler_range"]

_NOTHING: AbstractContextManager[Any] = nullcontext()
_WHOLE = (("tile", 0, len(PHASES) - 1),)
_PHASES = tuple((phase, number, number) for number, phase in enumerate(PHASES))


def _profiler() -> Any:
    """PyTorch's profiler if it runs, else None."""
    profiler = sys.modules.get("torch.autograd.profiler")
    return profiler if getattr(profiler, "_is_profiler_enabled", False) else None


def parts_of_a_tile() -> tuple[tuple[str, int, int], ...]:
    """The launches of a tile: what they do, their first and their last phase."""
    return _WHOLE if _profiler() is None else _PHASES


def profiler_range(name: str) -> AbstractContextManager[Any]:
    """A range of this name where PyTorch's profiler runs, else nothing."""
    profiler = _profiler()
    if profiler is None:
        return _NOTHING
    range_: AbstractContextManager[Any] = profiler.record_function(f"mla_numba: {name}")
    return range_
