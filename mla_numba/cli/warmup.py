"""The command `mla-numba warmup`: compile every kernel ahead of use."""

from __future__ import annotations

import time

import click

from ..base.dims import MlaDims
from ..base.modes import QUANT_MODES
from ..cache import PagedCache
from ..kernels import make_cache_folder, why_not_kept
from ..oracle.inputs import random_inputs
from ..prolog import MlaProlog
from ..weights.plain import MlaWeights
from .compiling import counting_kernels, parts_of_all
from .progress import Steps
from .shown import folder_size, megabytes

__all__ = ["warmup"]

# Little work, yet enough for the planner to use every thread.
_DIMS = MlaDims(256, 4, 64, 64, 32, 16)
_TOKENS = 64


def warmup(threads: int) -> None:
    """Compiles, and says where the kernels are kept."""
    try:
        folder = make_cache_folder()
    except OSError as error:
        raise click.ClickException(f"kernel cache: expected a folder that can be written, got {error}") from None
    begin = time.perf_counter()
    with Steps() as steps:
        compile_all(threads, steps)
    if why_not_kept():
        raise click.ClickException(f"kernel cache: expected to keep what was compiled, got {why_not_kept()}")
    n_bytes, n_files = folder_size(folder)
    click.echo(
        f"ready after {time.perf_counter() - begin:.1f} s; kernels are kept in {folder} "
        f"({megabytes(n_bytes)} in {n_files} files)"
    )


def compile_all(n_threads: int, steps: Steps) -> None:
    """Compiles the kernels of all modes and, for more than one thread, the parallel region that runs them."""
    with steps.step("compiling kernels", parts_of_all(n_threads)) as advance, counting_kernels(advance):
        for quant in QUANT_MODES:
            prolog = MlaProlog(MlaWeights.random(_DIMS, quant=quant), n_threads=n_threads)
            cache = PagedCache.allocate(_DIMS, n_blocks=1, block_size=_TOKENS, quantized=prolog.quantized)
            prolog(*random_inputs(_DIMS, _TOKENS, 0, cache.capacity), cache)
