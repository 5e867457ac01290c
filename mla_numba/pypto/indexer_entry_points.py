"""The reference's operators of the lightning indexer, with their names and order of arguments, on NumPy arrays.

They pack weights in every call and resolve block tables anew. For more than one call use `IndexerProlog` and
`lightning_index`. Tile settings of an NPU are taken and change nothing on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..attention.lightning import MAX_K, lightning_index
from ..base import checks as check
from ..base.checks import BF16, FP16, INT8, Array
from ..base.indexer_dims import IndexerDims
from ..call.indexer import IndexerOutput
from ..call.indexer_bind import IndexerInputs, check_indexer_cache, check_indexer_inputs, writable_indexer_outputs
from ..indexer import IndexerProlog
from ..indexer_cache import IndexerCache
from ..weights.indexer import IndexerWeights
from .fractals import as_nd

__all__ = [
    "IndexerPrologQuantAttr",
    "lightning_indexer_decode",
    "lightning_indexer_prolog_quant",
]

_INT32 = np.dtype(np.int32)


@dataclass(frozen=True)
class IndexerPrologQuantAttr:
    """Attributes of `lightning_indexer_prolog_quant`.

    `eps` is of the keys' norm; `layerout_query` and `layerout_key` are the layouts, of which there is one each.

    Raises:
        TypeError: `eps` is no number, or a layout no string.
        ValueError: `eps` is negative or not finite in float32, or a layout is another.

    Examples:
        >>> from mla_numba import pypto
        >>> pypto.IndexerPrologQuantAttr(eps=1e-5).layerout_key
        'PA_BSND'
    """

    eps: float = 1e-6
    layerout_query: str = "TND"
    layerout_key: str = "PA_BSND"

    def __post_init__(self) -> None:
        check.check_epsilon("eps", self.eps)
        check.check_choice("layerout_query", self.layerout_query, ("TND",))
        check.check_choice("layerout_key", self.layerout_key, ("PA_BSND",))


def lightning_indexer_prolog_quant(
    x_in: Array,
    q_norm_in: Array,
    q_norm_scale_in: Array,
    w_qb_in: Array,
    w_qb_scale_in: Array,
    wk_in: Array,
    w_proj_in: Array,
    ln_gamma_k_in: Array,
    ln_beta_k_in: Array,
    cos_idx_rope_in: Array,
    sin_idx_rope_in: Array,
    hadamard_q_in: Array,
    hadamard_k_in: Array,
    k_int8_in: Array,
    k_scale_in: Array,
    k_cache_index_in: Array,
    q_int8_out: Array,
    q_scale_out: Array,
    k_int8_out: Array,
    k_scale_out: Array,
    weights_out: Array,
    configs: Any = None,
    attrs: IndexerPrologQuantAttr | None = None,
) -> None:
    """Computes the indexer's prolog of T tokens into the `*_out` arrays; see `IndexerProlog` for their meaning.

    Args:
        x_in: Hidden states (T, H) bf16.
        q_norm_in: Codes (T, Rq) int8.
        q_norm_scale_in: Their scales (T, 1) float32.
        w_qb_in: Weight (Rq, Ni * Di) int8, ND or FRACTAL_NZ.
        w_qb_scale_in: Its scales (Ni * Di, 1) float32.
        wk_in: Weight (H, Di) bf16, ND or FRACTAL_NZ.
        w_proj_in: Weight (H, Ni) bf16, ND or FRACTAL_NZ.
        ln_gamma_k_in: Factors of the keys' norm (Di,) bf16.
        ln_beta_k_in: Its summands (Di,) bf16.
        cos_idx_rope_in: Cosines (T, R) bf16.
        sin_idx_rope_in: Sines (T, R) bf16.
        hadamard_q_in: Matrix for queries (Di, Di) bf16.
        hadamard_k_in: Matrix for keys (Di, Di) bf16.
        k_int8_in: Keys (blocks, BS, 1, Di) int8.
        k_scale_in: Their scales (blocks, BS, 1, 1) fp16.
        k_cache_index_in: Flat slots (T,) int64 or int32.
        q_int8_out: Where to write the queries (T, Ni, Di) int8.
        q_scale_out: Where to write their scales (T, Ni, 1) fp16.
        k_int8_out: Where to write the keys; usually `k_int8_in` itself, else it receives all of them.
        k_scale_out: The same for their scales.
        weights_out: Where to write the weights (T, Ni) fp16.
        configs: Tiles of an NPU; changes nothing on a CPU.
        attrs: The epsilon; None is that of the reference's test, 1e-6.

    Raises:
        TypeError: An argument is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value, or an output overlaps with another argument; nothing is
            written.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba import pypto
        >>> from mla_numba.inputs import random_inputs
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> w = mla.IndexerWeights.random(dims, n_heads=8, head_dim=64)
        >>> cache = mla.IndexerCache.allocate(w.dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, slots = random_inputs(dims, t=3, seed=0, capacity=32)
        >>> q_norm, q_norm_scale = np.ones((3, 96), np.int8), np.full((3, 1), 0.01, np.float32)
        >>> out = mla.IndexerProlog(w).allocate_output(3)
        >>> pypto.lightning_indexer_prolog_quant(
        ...     x, q_norm, q_norm_scale, w.w_qb, w.w_qb_scale.reshape(-1, 1), w.wk, w.w_proj, w.ln_gamma_k, w.ln_beta_k,
        ...     cos, sin, w.hadamard_q, w.hadamard_k, cache.k, cache.k_scale, slots,
        ...     out.query, out.query_scale, cache.k, cache.k_scale, out.weights,
        ... )
        >>> int(np.count_nonzero(cache.k_scale))
        3
    """
    attrs = IndexerPrologQuantAttr() if attrs is None else attrs
    check.expect_type("attrs", attrs, IndexerPrologQuantAttr)
    hidden = check.check_array("x_in", x_in, (BF16,), (None, None)).shape[1]
    q_rank = check.check_array("q_norm_in", q_norm_in, (INT8,), (None, None)).shape[1]
    head_dim = check.check_array("hadamard_q_in", hadamard_q_in, (BF16,), (None, None)).shape[0]
    n_heads = check.check_array("weights_out", weights_out, (FP16,), (None, None)).shape[1]
    rope = check.check_array("cos_idx_rope_in", cos_idx_rope_in, (BF16,), (None, None)).shape[1]
    with check.renamed(_PROLOG_NAMES):
        weights = IndexerWeights(
            w_qb=as_nd("w_qb_in", w_qb_in, q_rank, n_heads * head_dim),
            w_qb_scale=w_qb_scale_in,
            wk=as_nd("wk_in", wk_in, hidden, head_dim),
            w_proj=as_nd("w_proj_in", w_proj_in, hidden, n_heads),
            ln_gamma_k=ln_gamma_k_in,
            ln_beta_k=ln_beta_k_in,
            hadamard_q=hadamard_q_in,
            hadamard_k=hadamard_k_in,
            epsilon=attrs.eps,
            qk_rope_head_dim=rope,
        )
        after = IndexerCache(k_int8_out, k_scale_out)
    with check.renamed({"k_cache": "k_int8_in", "k_scale_cache": "k_scale_in"}):
        before = IndexerCache(k_int8_in, k_scale_in)
    check.check_shape("k_int8_out", k_int8_out, k_int8_in.shape)
    moved = {name: array for name, array in before.arrays().items() if not _same_memory(array, after.arrays()[name])}
    out = IndexerOutput(q_int8_out, q_scale_out, weights_out)
    inputs = IndexerInputs(x_in, q_norm_in, q_norm_scale_in, cos_idx_rope_in, sin_idx_rope_in, k_cache_index_in)
    cache = before.copy() if moved else after
    with check.renamed(_PROLOG_NAMES):
        prolog = IndexerProlog(weights)
        if moved:
            _check_apart(inputs, after, out, prolog.dims, moved)
        prolog(*inputs, cache, out)
    if moved:
        k_int8_out[...], k_scale_out[...] = cache.k, cache.k_scale


def _check_apart(
    inputs: IndexerInputs, after: IndexerCache, out: IndexerOutput, dims: IndexerDims, moved: dict[str, Array]
) -> None:
    """Raises unless keys that go elsewhere than they are read have memory of their own there, to be written."""
    check_indexer_inputs(inputs, dims)
    written = check_indexer_cache("cache", after, dims).arrays()
    written |= writable_indexer_outputs("out", out, len(inputs.x), dims)
    check.check_indices("cache_index", inputs.cache_index, len(inputs.x))
    read = inputs._asdict() | {f"source {name}": array for name, array in moved.items()}
    check.check_disjoint(written, read)


_PROLOG_NAMES = {
    **{name: f"{name}_in" for name in ("x", "q_norm", "q_norm_scale", "w_qb", "w_qb_scale", "wk", "w_proj")},
    **{name: f"{name}_in" for name in ("ln_gamma_k", "ln_beta_k", "hadamard_q", "hadamard_k")},
    "cos": "cos_idx_rope_in",
    "sin": "sin_idx_rope_in",
    "cache_index": "k_cache_index_in",
    "k_cache": "k_int8_out",
    "k_scale_cache": "k_scale_out",
    "out.query": "q_int8_out",
    "out.query_scale": "q_scale_out",
    "out.weights": "weights_out",
    "source k_cache": "k_int8_in",
    "source k_scale_cache": "k_scale_in",
}


def lightning_indexer_decode(
    idx_query: Array,
    idx_query_scale: Array,
    idx_key_cache: Array,
    idx_key_scale: Array,
    idx_weight: Array,
    act_seq_key: Array,
    block_table: Array,
    topk_res: Array,
    unroll_list: Any = None,
    configs: Any = None,
    selected_count: int = 2048,
) -> None:
    """Writes the positions of the best keys of T tokens into `topk_res`; see `lightning_index`.

    Args:
        idx_query: Queries (T, Ni, Di) int8.
        idx_query_scale: Their scales (T, Ni) fp16.
        idx_key_cache: Keys (blocks, BS, 1, Di) int8.
        idx_key_scale: Their scales (blocks, BS, 1) fp16.
        idx_weight: Weights (T, Ni) fp16.
        act_seq_key: Keys of each sequence (B,) int32.
        block_table: Blocks of each sequence (B, blocks) int32.
        topk_res: Where to write positions (T, 1, selected_count) int32.
        unroll_list: Tiles of an NPU; changes nothing on a CPU.
        configs: The same.
        selected_count: Positions a token, from 1 to 4096.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value, or topk_res overlaps with another argument; nothing is
            written.

    Examples:
        >>> import numpy as np
        >>> from mla_numba import pypto
        >>> keys = np.arange(8, dtype=np.int8).reshape(2, 4, 1, 1).repeat(32, axis=3)  # slot s holds s, 32 times
        >>> ones, found = np.ones((1, 2), np.float16), np.empty((1, 1, 3), np.int32)
        >>> pypto.lightning_indexer_decode(
        ...     np.ones((1, 2, 32), np.int8), ones, keys, np.ones((2, 4, 1), np.float16), ones,
        ...     np.array([6], np.int32), np.array([[1, 0]], np.int32), found, selected_count=3,
        ... )
        >>> found
        array([[[3, 2, 1]]], dtype=int32)
    """
    query = check.check_array("idx_query", idx_query, (INT8,), (None, None, None))
    scale = check.check_array("idx_query_scale", idx_query_scale, (FP16,), query.shape[:2])
    key_scale = check.check_array("idx_key_scale", idx_key_scale, (FP16,), (None, None, 1))
    weight = check.check_array("idx_weight", idx_weight, (FP16,), query.shape[:2])
    check.check_int("selected_count", selected_count, 1, MAX_K)
    table = check.expect_array("block_table", block_table, (_INT32,))
    lengths = check.expect_array("act_seq_key", act_seq_key, (_INT32,))
    check.check_array("topk_res", topk_res, (_INT32,), (len(query), 1, selected_count))
    check.check_writable("topk_res", topk_res)
    with check.renamed({"k_cache": "idx_key_cache", "k_scale_cache": "idx_key_scale"}):
        cache = IndexerCache(idx_key_cache, key_scale[..., None])
    read = {
        "idx_query": query, "idx_query_scale": scale, "idx_key_cache": idx_key_cache, "idx_key_scale": key_scale,
        "idx_weight": weight, "act_seq_key": lengths, "block_table": table,
    }  # fmt: skip
    check.check_disjoint({"topk_res": topk_res}, read)
    output = IndexerOutput(query, scale[..., None], weight)
    with check.renamed({"query": "idx_query", "cache": "idx_key_cache", "act_seq": "act_seq_key"}):
        found = lightning_index(output, cache, table, lengths, selected_count)
    topk_res[:, 0] = found


def _same_memory(a: Array, b: Array) -> bool:
    return bool(a.__array_interface__ == b.__array_interface__)
