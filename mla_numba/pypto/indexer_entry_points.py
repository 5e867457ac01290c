"""The reference's operators behind the prolog, with their names and order of arguments, on NumPy arrays.

They pack weights in every call and resolve block tables anew. For more than one call use `IndexerProlog`,
`lightning_index` and `sparse_attention`. Tile settings of an NPU are taken and change nothing on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..attention.lightning import lightning_index
from ..attention.sparse import sparse_attention
from ..base import checks as check
from ..base.checks import BF16, FP16, INT8, Array
from ..cache import PagedCache
from ..call.indexer import IndexerOutput
from ..indexer import IndexerProlog
from ..indexer_cache import IndexerCache
from ..prolog import PrologOutput
from ..weights.indexer import IndexerWeights
from .fractals import as_nd

__all__ = [
    "IndexerPrologQuantAttr",
    "lightning_indexer_decode",
    "lightning_indexer_prolog_quant",
    "sparse_flash_attention_quant_compute_flash",
    "sparse_flash_attention_quant_d",
    "sparse_flash_attention_quant_p",
]

_INT32 = np.dtype(np.int32)


@dataclass(frozen=True)
class IndexerPrologQuantAttr:
    """Attributes of `lightning_indexer_prolog_quant`: `eps` of the keys' norm, and the two layouts that there are."""

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
        ValueError: It has another shape, layout or value; nothing is written.
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
        before, after = IndexerCache(k_int8_in, k_scale_in), IndexerCache(k_int8_out, k_scale_out)
    in_place = all(_same_memory(a, b) for a, b in zip((k_int8_in, k_scale_in), (k_int8_out, k_scale_out), strict=True))
    if not in_place:
        check.check_shape("k_int8_out", k_int8_out, k_int8_in.shape)
        for name, array in (("k_int8_out", k_int8_out), ("k_scale_out", k_scale_out)):
            check.check_writable(name, array)
    cache = after if in_place else before.copy()
    out = IndexerOutput(q_int8_out, q_scale_out, weights_out)
    inputs = (x_in, q_norm_in, q_norm_scale_in, cos_idx_rope_in, sin_idx_rope_in, k_cache_index_in)
    with check.renamed(_PROLOG_NAMES):
        IndexerProlog(weights)(*inputs, cache, out)
    if not in_place:
        k_int8_out[...], k_scale_out[...] = cache.k, cache.k_scale


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
        selected_count: Positions a token.

    Raises:
        TypeError: An argument is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value; nothing is written.
    """
    query = check.check_array("idx_query", idx_query, (INT8,), (None, None, None))
    scale = check.check_array("idx_query_scale", idx_query_scale, (FP16,), query.shape[:2])
    key_scale = check.check_array("idx_key_scale", idx_key_scale, (FP16,), (None, None, 1))
    check.check_int("selected_count", selected_count, 1)
    check.check_array("topk_res", topk_res, (_INT32,), (len(query), 1, selected_count))
    check.check_writable("topk_res", topk_res)
    with check.renamed({"k_cache": "idx_key_cache", "k_scale_cache": "idx_key_scale"}):
        cache = IndexerCache(idx_key_cache, key_scale[..., None])
    output = IndexerOutput(query, scale[..., None], idx_weight)
    with check.renamed({"weights": "idx_weight", "act_seq": "act_seq_key", "k": "selected_count"}):
        found = lightning_index(output, cache, block_table, act_seq_key, selected_count)
    topk_res[:, 0] = found


def sparse_flash_attention_quant_d(
    query_nope: Array,
    query_rope: Array,
    key_nope_2d: Array,
    key_rope_2d: Array,
    k_nope_scales: Array | None,
    topk_indices: Array,
    block_table: Array,
    kv_act_seqs: Array,
    attention_out: Array,
    nq: int,
    n_kv: int,
    softmax_scale: float,
    topk: int,
    block_size: int,
    max_blocknum_perbatch: int,
    tile_config: Any = None,
) -> None:
    """Writes attention of T tokens over the listed positions into `attention_out`; see `sparse_attention`.

    Weights are divided by their sum before they are rounded, as the reference does with tiles of 2048 keys.

    Args:
        query_nope: Queries (T * N, C) bf16.
        query_rope: Their rope part (T * N, R) bf16.
        key_nope_2d: Latents of all slots (blocks * BS, C), int8 or bf16.
        key_rope_2d: Their rope part (blocks * BS, R) bf16.
        k_nope_scales: Scales of int8 latents (blocks * BS, 4) float32; unquantised it is left alone and may be None.
        topk_indices: Positions (T, topk) int32.
        block_table: Blocks of each sequence (B, max_blocknum_perbatch) int32.
        kv_act_seqs: Keys of each sequence (B,) int32.
        attention_out: Where to write (B, T / B, N, C) bf16.
        nq: N, the heads.
        n_kv: Heads of keys: 1.
        softmax_scale: Of the scores.
        topk: Positions a token.
        block_size: BS, slots a block.
        max_blocknum_perbatch: Columns of the block table.
        tile_config: Tiles of an NPU; changes nothing on a CPU.

    Raises:
        TypeError: An argument is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value; nothing is written.
    """
    _attend(
        query_nope, query_rope, key_nope_2d, key_rope_2d, k_nope_scales, topk_indices, block_table, kv_act_seqs,
        attention_out, nq, n_kv, softmax_scale, topk, block_size, max_blocknum_perbatch,
    )  # fmt: skip


sparse_flash_attention_quant_p = sparse_flash_attention_quant_d
"""The same: on an NPU the two differ in their scheduling settings alone."""


def sparse_flash_attention_quant_compute_flash(
    query_nope: Array,
    query_rope: Array,
    key_nope_2d: Array,
    key_rope_2d: Array,
    k_nope_scales: Array | None,
    topk_indices: Array,
    block_table: Array,
    kv_act_seqs: Array,
    attention_out: Array,
    nq: int,
    n_kv: int,
    softmax_scale: float,
    topk: int,
    block_size: int,
    max_blocknum_perbatch: int,
    tile_config: Any = None,
) -> None:
    """Likewise by tiles of keys that are merged: weights are rounded before they are divided, which gives other bits.

    Arguments are those of `sparse_flash_attention_quant_d`, but for `tile_config`: an object whose `s_kv_tile` is how
    many keys a tile has, as that of the reference; None is 2048.

    Raises:
        TypeError: An argument is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value; nothing is written.
    """
    tile = 2048 if tile_config is None else getattr(tile_config, "s_kv_tile", None)
    tile = check.check_int("tile_config.s_kv_tile", tile, 1)
    _attend(
        query_nope, query_rope, key_nope_2d, key_rope_2d, k_nope_scales, topk_indices, block_table, kv_act_seqs,
        attention_out, nq, n_kv, softmax_scale, topk, block_size, max_blocknum_perbatch, tile,
    )  # fmt: skip


def _attend(
    query_nope: Array,
    query_rope: Array,
    key_nope_2d: Array,
    key_rope_2d: Array,
    k_nope_scales: Array | None,
    topk_indices: Array,
    block_table: Array,
    kv_act_seqs: Array,
    attention_out: Array,
    nq: int,
    n_kv: int,
    softmax_scale: float,
    topk: int,
    block_size: int,
    max_blocknum_perbatch: int,
    flash_tile: int | None = None,
) -> None:
    n_heads, size = check.check_int("nq", nq, 1), check.check_int("block_size", block_size, 1)
    check.check_int("n_kv", n_kv, 1, 1)
    n_rows, latent = check.check_array("query_nope", query_nope, (BF16,), (None, None)).shape
    n_slots, rope = check.check_array("key_rope_2d", key_rope_2d, (BF16,), (None, None)).shape
    for name, rows, by in (("query_nope", n_rows, n_heads), ("key_rope_2d", n_slots, size)):
        if rows % by:
            raise ValueError(f"{name}: expected a multiple of {by} rows, got {rows}")
    t = n_rows // n_heads
    check.check_array("query_rope", query_rope, (BF16,), (n_rows, rope))
    check.check_array("key_nope_2d", key_nope_2d, (INT8, BF16), (n_slots, latent))
    check.check_shape("topk_indices", check.expect_array("topk_indices", topk_indices, (_INT32,)), (t, topk))
    table = check.expect_array("block_table", block_table, (_INT32,))
    check.check_shape("block_table", table, (None, max_blocknum_perbatch))
    n_seq = len(table)
    if n_seq == 0 or t % n_seq:
        raise ValueError(f"block_table: expected a number of rows that divides {t} tokens, got {n_seq}")
    check.check_array("attention_out", attention_out, (BF16,), (n_seq, t // n_seq, n_heads, latent))
    lead = (n_slots // size, size, 1)
    scales = None
    if key_nope_2d.dtype == INT8:
        scales = check.check_array("k_nope_scales", k_nope_scales, (np.dtype(np.float32),), (n_slots, 4))
    cache = PagedCache(
        key_nope_2d.reshape(*lead, latent), key_rope_2d.reshape(*lead, rope),
        None if scales is None else scales.reshape(*lead, 4),
    )  # fmt: skip
    out = PrologOutput(
        query_nope.reshape(t, n_heads, latent), query_rope.reshape(t, n_heads, rope), np.zeros((t, 0), INT8), None
    )
    with check.renamed({"index": "topk_indices", "act_seq": "kv_act_seqs", "latent": "attention_out"}):
        sparse_attention(
            out, cache, topk_indices, table, kv_act_seqs, softmax_scale=softmax_scale, flash_tile=flash_tile,
            latent=attention_out.reshape(t, n_heads, latent),
        )  # fmt: skip


def _same_memory(a: Array, b: Array) -> bool:
    return bool(a.__array_interface__ == b.__array_interface__)
