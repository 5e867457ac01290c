"""How far the outputs of the indexer's prolog and of sparse attention may lie from the oracle's.

The tolerances are those of the reference operators' own tests (hicann/pypto, `models/deepseek_v32_exp/`:
`deepseekv32_lightning_indexer_prolog_quant.py`, `deepseekv32_mla_indexer_prolog_quant.py` for both prologs in one
operator, `deepseekv32_sparse_flash_attention_quant.py`). For the lists of the lightning index: `compare_index`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ..base.checks import Array, check_flag, expect_type
from ..call.indexer import IndexerOutput
from ..indexer_cache import IndexerCache
from .bits import indexer_pairs
from .indexer import IndexerReferenceOutput
from .tolerance import TOLERANCES, Agreement, Tolerance, compare_within

__all__ = ["ATTENTION_TOLERANCE", "FUSED_TOLERANCES", "INDEXER_TOLERANCES", "compare_attention", "compare_indexer"]

_SCALES = Tolerance(2.5e-5, 0, 0)
# By output, and whether the operator under test computes both prologs.
INDEXER_TOLERANCES: Mapping[tuple[str, bool], Tolerance] = MappingProxyType(
    {
        ("query", False): Tolerance(1, 0, 0),
        ("query_scale", False): Tolerance(2.5e-5, 0, 0.005),
        ("weights", False): _SCALES,
        ("k_cache", False): Tolerance(1, 0, 0),
        ("k_scale_cache", False): _SCALES,
        ("query", True): Tolerance(2, 0, 0),
        ("query_scale", True): Tolerance(2.5e-5, 0.006, 0.005),
        ("weights", True): Tolerance(2.5e-5, 0, 0.005),
        ("k_cache", True): Tolerance(1, 0, 0),
        ("k_scale_cache", True): Tolerance(2.5e-5, 0, 0.005),
    }
)
# Of the prolog's outputs, where one operator computes both prologs: as `TOLERANCES`, but for two caches.
FUSED_TOLERANCES: Mapping[tuple[str, str], Tolerance] = MappingProxyType(
    {
        **TOLERANCES,
        ("kr_cache_out", "float"): Tolerance(1e-4, 0.0078125, 0.005),
        ("k_scale_cache_out", "float"): Tolerance(2.5e-5, 0.005, 0.005),
    }
)
ATTENTION_TOLERANCE = Tolerance(1e-4, 0.005, 0.005)


def compare_indexer(
    output: IndexerOutput, cache: IndexerCache, reference: IndexerReferenceOutput, *, fused: bool = False
) -> list[Agreement]:
    """Compares what another operator for the indexer's prolog returned, and the cache it wrote, with the oracle's.

    Args:
        output: What the operator returned.
        cache: The cache that it wrote.
        reference: What `indexer_prolog_reference` made of the same arguments and the cache of before.
        fused: Whether the operator computes the prolog too: its test allows more.

    Returns:
        An entry for each output and each array of the cache; `passed` is the verdict.

    Raises:
        TypeError: An argument is of another type, or dtypes differ.
        ValueError: Shapes differ.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba.reference import IndexerReferenceOutput
        >>> from mla_numba.tolerance import compare_indexer
        >>> cache = mla.IndexerCache.allocate(mla.IndexerDims(256, 96, 8, 64, 32), n_blocks=2, block_size=16)
        >>> codes, scale = np.ones((3, 8, 64), np.int8), np.ones((3, 8, 1), np.float16)
        >>> want = IndexerReferenceOutput(codes, scale, scale[:, :, 0], cache.k, cache.k_scale)
        >>> off_by_two = mla.IndexerOutput(codes + np.int8(2), scale, scale[:, :, 0])
        >>> [agreement.passed for agreement in compare_indexer(off_by_two, cache, want)]
        [False, True, True, True, True]
        >>> all(agreement.passed for agreement in compare_indexer(off_by_two, cache, want, fused=True))
        True
    """
    check_flag("fused", fused)
    return [
        compare_within(name, got, want, tolerance=INDEXER_TOLERANCES[name, fused])
        for name, got, want in indexer_pairs(output, cache, reference)
    ]


def compare_attention(got: Array, want: Array) -> Agreement:
    """Compares latents of another operator for sparse attention with the oracle's.

    Args:
        got: The operator's latents (T, N, C) bf16.
        want: What `sparse_attention_reference` made of the same arguments.

    Returns:
        The verdict, and how far the two are apart.

    Raises:
        TypeError: One of them is no array, or the dtypes differ.
        ValueError: The shapes differ.

    Examples:
        >>> import ml_dtypes, numpy as np
        >>> from mla_numba.tolerance import compare_attention
        >>> want = np.ones((2, 4, 64), ml_dtypes.bfloat16)
        >>> print(compare_attention(want, want))
        latent: 0 of 512 elements beyond 0.0001 + 0.005 |expected|, 0.5% of all beyond it
    """
    expect_type("want", want, np.ndarray)
    return compare_within("latent", got, want, tolerance=ATTENTION_TOLERANCE)
