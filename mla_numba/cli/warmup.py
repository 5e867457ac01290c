"""Compiling every kernel ahead of use."""

from __future__ import annotations

from ..base.dims import MlaDims
from ..base.modes import QUANT_MODES
from ..cache import PagedCache
from ..oracle.inputs import random_inputs
from ..prolog import MlaProlog
from ..weights.plain import MlaWeights
from .report import Steps

__all__ = ["compile_all"]

# Little work, yet enough for the planner to use every thread.
_DIMS = MlaDims(256, 4, 64, 64, 32, 16)
_TOKENS = 64


def compile_all(n_threads: int, steps: Steps) -> None:
    """Compiles the kernels of all modes and, for more than one thread, the parallel region that runs them."""
    with steps.step("compiling kernels", len(QUANT_MODES)) as advance:
        for quant in QUANT_MODES:
            prolog = MlaProlog(MlaWeights.random(_DIMS, quant=quant), n_threads=n_threads)
            cache = PagedCache.allocate(_DIMS, n_blocks=1, block_size=_TOKENS, quantized=prolog.quantized)
            prolog(*random_inputs(_DIMS, _TOKENS, 0, cache.capacity), cache)
            advance()
