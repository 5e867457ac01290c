"""The command `mla-numba warmup`: compile kernels ahead of use."""

from __future__ import annotations

import time

import click
import numpy as np

from ..attention.lightning import lightning_index
from ..attention.sparse import sparse_attention
from ..base.dims import MlaDims
from ..base.modes import QUANT_MODES
from ..cache import PagedCache
from ..indexer import IndexerProlog
from ..indexer_cache import IndexerCache
from ..kernels import make_cache_folder, why_not_kept
from ..oracle.inputs import random_inputs
from ..prolog import MlaProlog
from ..weights.indexer import IndexerWeights
from ..weights.plain import MlaWeights
from .compiling import counting_kernels, parts_behind_the_prolog, parts_of_all
from .progress import Steps
from .shown import folder_size, megabytes

__all__ = ["warmup"]

# Little work, yet enough for the planner to use every thread.
_DIMS = MlaDims(256, 4, 64, 64, 32, 16)
_TOKENS = 64


def warmup(threads: int, with_indexer: bool) -> None:
    """Compiles, and says where the kernels are kept."""
    try:
        folder = make_cache_folder()
    except OSError as error:
        raise click.ClickException(f"kernel cache: expected a folder that can be written, got {error}") from None
    begin = time.perf_counter()
    with Steps() as steps:
        compile_all(threads, steps)
        if with_indexer:
            compile_behind_the_prolog(threads, steps)
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


def compile_behind_the_prolog(n_threads: int, steps: Steps) -> None:
    """Compiles the kernels of the indexer, beside the prolog and alone, of the lightning index and sparse attention."""
    n_parts = parts_behind_the_prolog()
    with steps.step("compiling what follows the prolog", n_parts) as advance, counting_kernels(advance):
        indexer = IndexerWeights.random(_DIMS, n_heads=4, head_dim=32)
        keys = IndexerCache.allocate(indexer.dims, n_blocks=1, block_size=_TOKENS)
        inputs = random_inputs(_DIMS, _TOKENS, 0, _TOKENS)
        table, act_seq = np.zeros((1, 1)), np.array([_TOKENS])
        caches = {quantized: PagedCache.allocate(_DIMS, 1, _TOKENS, quantized=quantized) for quantized in (True, False)}
        for quant in ("b", "ab"):
            prolog = MlaProlog(MlaWeights.random(_DIMS, quant=quant), n_threads=n_threads, indexer=indexer)
            out = prolog(*inputs, caches[True], indexer_cache=keys)
        assert out.q_norm_scale is not None
        x, cos, sin, slots = inputs
        alone = IndexerProlog(indexer, n_threads=n_threads)
        found = alone(x, out.q_norm, out.q_norm_scale, cos, sin, slots, keys)
        for dtype in (np.int64, np.int32):
            pages = table.astype(dtype), act_seq.astype(dtype)
            index = lightning_index(found, keys, *pages, k=8, n_threads=n_threads)
        for cache in caches.values():
            sparse_attention(out, cache, index, *pages, softmax_scale=1.0, n_threads=n_threads)
