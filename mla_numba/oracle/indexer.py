"""The prolog of the lightning indexer in plain NumPy: slow, obvious, and the bits that every kernel has to reproduce.

Dimension letters: T tokens, H hidden size, Rq q_lora_rank, Ni heads, Di their width, R qk_rope_head_dim. Arithmetic is
that of ``oracle.reference``: every fp32 operation is one IEEE rounding, an output element of a product of matrices is
one fp32 accumulator in ascending k.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..base.modes import RopeStyle
from ..base.short_repr import arrays_text, short_repr
from .arrays import BF16, F32, Array
from .norm_quant import lane_sum, quant
from .products import dequant, matmul_int8, sum_of_products
from .scatter import scatter

if TYPE_CHECKING:
    from ..indexer_cache import IndexerCache
    from ..weights.indexer import IndexerWeights


class IndexerReferenceOutput(NamedTuple):
    """What the indexer's prolog gives back; the caches are new arrays. `indexer_prolog_reference` has an example.

    | field         | shape               | dtype |
    |---------------|---------------------|-------|
    | query         | (T, Ni, Di)         | int8  |
    | query_scale   | (T, Ni, 1)          | fp16  |
    | weights       | (T, Ni)             | fp16  |
    | k_cache       | (blocks, BS, 1, Di) | int8  |
    | k_scale_cache | (blocks, BS, 1, 1)  | fp16  |
    """

    query: Array
    query_scale: Array
    weights: Array
    k_cache: Array
    k_scale_cache: Array

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


@np.errstate(all="ignore")
def layer_norm(x: F32, gamma: Array, beta: Array, epsilon: float) -> F32:
    """LayerNorm over the last axis (Ba et al., 2016), in fp32: ``(x - m) / sqrt(v + epsilon) * gamma + beta``.

    ``m = sum(x * fp32(1/n))``, ``d = x - m``, ``v = sum((d * d) * fp32(1/n))``, both by ``lane_sum``; the division is
    one, not a product with the reciprocal.

    Args:
        x: Rows (..., n) fp32.
        gamma: Factors (n,).
        beta: Summands (n,).
        epsilon: Added to the variance.

    Returns:
        The norm (..., n) fp32.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import layer_norm
        >>> layer_norm(np.array([[1, 3]], np.float32), np.ones(2), np.zeros(2), 0.0).tolist()
        [[-1.0, 1.0]]
    """
    inverse = np.float32(1.0 / x.shape[-1])
    d = x - lane_sum(x * inverse)
    std = np.sqrt(lane_sum((d * d) * inverse) + np.float32(epsilon))
    norm: F32 = d / std * gamma.astype(np.float32) + beta.astype(np.float32)
    return norm


@np.errstate(all="ignore")
def rope_first_columns(x: Array, cos: Array, sin: Array, style: RopeStyle = "half") -> Array:
    """Rotary position embedding of the first R columns of each head; the others pass unchanged.

    With y the R columns in fp32, "interleaved" in the order 0, 2, ..., 1, 3, ..., ``y[i] * cos[i] + (-y[i + R/2]) *
    sin[i]`` and ``y[i + R/2] * cos[i + R/2] + y[i] * sin[i + R/2]`` for i < R/2: two products and one add, then bf16.
    They leave as halves in both styles.

    Args:
        x: Heads (T, n, Di) bf16.
        cos: Cosines (T, R) bf16; both halves are read as given.
        sin: Sines (T, R) bf16.
        style: "half" or "interleaved".

    Returns:
        Rotated heads (T, n, Di) bf16.

    Examples:
        >>> import ml_dtypes, numpy as np
        >>> from mla_numba.reference import rope_first_columns
        >>> x = np.array([[[1, 2, 3]]], ml_dtypes.bfloat16)
        >>> cos, sin = np.zeros((1, 2), x.dtype), np.ones((1, 2), x.dtype)
        >>> rope_first_columns(x, cos, sin).tolist()  # a quarter turn of the pair (1, 2)
        [[[-2.0, 1.0, 3.0]]]
    """
    rope_dim = cos.shape[1]
    y = x[..., :rope_dim].astype(np.float32)
    if style == "interleaved":
        y = np.concatenate([y[..., 0::2], y[..., 1::2]], axis=-1)
    first, second = np.split(y, 2, axis=-1)
    cos_fp32, sin_fp32 = cos[:, None].astype(np.float32), sin[:, None].astype(np.float32)
    rotated = y * cos_fp32 + np.concatenate([-second, first], axis=-1) * sin_fp32
    return np.concatenate([rotated.astype(BF16), x[..., rope_dim:]], axis=-1)


@np.errstate(all="ignore")
def indexer_prolog_reference(
    weights: IndexerWeights,
    x: Array,
    q_norm: Array,
    q_norm_scale: Array,
    cos: Array,
    sin: Array,
    cache_index: Array,
    cache: IndexerCache,
) -> IndexerReferenceOutput:
    """Queries, keys and weights of the lightning indexer for T tokens; no argument is written to.

    | output  | is                                                                                             |
    |---------|------------------------------------------------------------------------------------------------|
    | query   | q_norm @ w_qb, dequantised to bf16; rope; times hadamard_q, bf16; ``quant`` by token and head   |
    | key     | x @ wk in fp32; ``layer_norm``, bf16; rope; times hadamard_k, bf16; ``quant`` by token           |
    | weights | x @ w_proj, bf16; times fp32(1 / (sqrt(Ni) * sqrt(Di))), fp16                                   |

    Scales 1/s are rounded to fp16: above 65504 they are Inf, and below 2^-25 they are 0, so that a head or a key counts
    for nothing. A row of zeros has codes 0 and scale 0. The factor of the weights is one, as in the reference
    operator's kernel; its test multiplies by Ni^-0.5 and Di^-0.5 one after the other, which rounds otherwise where
    Ni^-0.5 is no power of two (Ni = 32).

    Args:
        weights: The weights.
        x: Hidden states (T, H) bf16.
        q_norm: Codes (T, Rq) int8, an output of the prolog.
        q_norm_scale: Their scales (T, 1) fp32.
        cos: Cosines (T, R) bf16, those of the prolog.
        sin: Sines (T, R) bf16.
        cache_index: Flat slots (T,) of integers; -1 writes no key, and of two tokens with one slot the later wins.
        cache: The keys of earlier tokens; only read.

    Returns:
        Outputs, and the caches with the new keys.

    Raises:
        TypeError: An array is of another dtype.
        ValueError: It has another shape, or a slot is outside the cache.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> from mla_numba.reference import indexer_prolog_reference
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> weights, indexer = mla.MlaWeights.random(dims), mla.IndexerWeights.random(dims, n_heads=8, head_dim=64)
        >>> cache = mla.PagedCache.allocate(dims, n_blocks=2, block_size=16)
        >>> keys = mla.IndexerCache.allocate(indexer.dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, slots = random_inputs(dims, t=3, seed=0, capacity=32)
        >>> out = mla.MlaProlog(weights)(x, cos, sin, slots, cache)
        >>> indexer_prolog_reference(indexer, x, out.q_norm, out.q_norm_scale, cos, sin, slots, keys).query.shape
        (3, 8, 64)
    """
    dims = weights.dims
    for name, array, dtype, width in (
        ("x", x, BF16, dims.hidden_size),
        ("q_norm", q_norm, np.dtype(np.int8), dims.q_lora_rank),
        ("q_norm_scale", q_norm_scale, np.dtype(np.float32), 1),
        ("cos", cos, BF16, dims.qk_rope_head_dim),
        ("sin", sin, BF16, dims.qk_rope_head_dim),
    ):
        if array.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {array.dtype}")
        if array.shape != (len(x), width):
            raise ValueError(f"{name}: expected shape ({len(x)}, {width}), got {array.shape}")

    q = dequant(BF16, matmul_int8(q_norm, weights.w_qb), q_norm_scale, weights.w_qb_scale[None])
    heads = rope_first_columns(q.reshape(len(x), dims.n_heads, dims.head_dim), cos, sin, weights.rope)
    query, query_scale = quant(sum_of_products(heads, weights.hadamard_q).astype(BF16))

    key = layer_norm(sum_of_products(x, weights.wk), weights.ln_gamma_k, weights.ln_beta_k, weights.epsilon)
    key = rope_first_columns(key.astype(BF16)[:, None], cos, sin, weights.rope)[:, 0]
    codes, key_scale = quant(sum_of_products(key, weights.hadamard_k).astype(BF16))

    factor = np.float32(1.0 / (sqrt(dims.n_heads) * sqrt(dims.head_dim)))
    head_weights = sum_of_products(x, weights.w_proj).astype(BF16).astype(np.float32) * factor
    return IndexerReferenceOutput(
        query=query,
        query_scale=query_scale.astype(np.float16),
        weights=head_weights.astype(np.float16),
        k_cache=scatter(cache.k, cache_index, codes, cache.cache_mode),
        k_scale_cache=scatter(cache.k_scale, cache_index, key_scale, "PA_BSND"),
    )
