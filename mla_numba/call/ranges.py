"""Ranges in PyTorch's profiler: where it runs, a call and each tile of tokens show as ranges of their own.

Nothing is imported for it: where nobody imported PyTorch, there is no profiler to tell. The phases of a tile are one
parallel region without Python in it, so they are no ranges; `Trace` has them, thread by thread.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["profiler_range"]

_NOTHING: AbstractContextManager[Any] = nullcontext()


def profiler_range(name: str, *sizes: int) -> AbstractContextManager[Any]:
    """A range of this name and these sizes where PyTorch's profiler runs, else nothing."""
    profiler: Any = sys.modules.get("torch.autograd.profiler")
    if profiler is None or not getattr(profiler, "_is_profiler_enabled", False):
        return _NOTHING
    range_: AbstractContextManager[Any] = profiler.record_function(f"mla_numba: {name} {', '.join(map(str, sizes))}")
    return range_
