"""The reference's operators of sparse attention, with their names and order of arguments, on NumPy arrays.

They resolve block tables anew in every call; `sparse_attention` is the same with this package's own arrays. Tile
settings of an NPU are taken; only the tile of keys of the flash operator changes bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..attention.sparse import sparse_attention
from ..base import checks as check
from ..base.checks import BF16, FP32, INT8, Array
from ..cache import PagedCache
from ..prolog import PrologOutput

__all__ = [
    "sparse_flash_attention_quant_compute_flash",
    "sparse_flash_attention_quant_d",
    "sparse_flash_attention_quant_p",
]

_INT32 = np.dtype(np.int32)


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
        TypeError: An argument, named in the message, is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value, or attention_out overlaps with what is read; nothing is
            written.

    Examples:
        >>> import ml_dtypes, numpy as np
        >>> from mla_numba import pypto
        >>> def ones(*shape):
        ...     return np.ones(shape, ml_dtypes.bfloat16)
        >>> out = np.empty((1, 1, 2, 32), ml_dtypes.bfloat16)  # one token of one sequence, two heads
        >>> pypto.sparse_flash_attention_quant_d(
        ...     ones(2, 32), ones(2, 16), ones(8, 32), ones(8, 16), None, np.array([[4, 0, -1]], np.int32),
        ...     np.array([[1, 0]], np.int32), np.array([5], np.int32), out, nq=2, n_kv=1, softmax_scale=0.2, topk=3,
        ...     block_size=4, max_blocknum_perbatch=2,
        ... )
        >>> bool((out == 1).all())  # what values of 1 average to
        True
    """
    _attend(
        (query_nope, query_rope),
        _Keys(key_nope_2d, key_rope_2d, k_nope_scales),
        _Lists(topk_indices, block_table, kv_act_seqs),
        _Sizes(nq, n_kv, topk, block_size, max_blocknum_perbatch),
        softmax_scale,
        attention_out,
    )


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

    `sparse_flash_attention_quant_d` has an example.

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
        tile_config: An object whose `s_kv_tile` is how many keys a tile has, as that of the reference; None is 2048.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype; nothing is written.
        ValueError: It has another shape, layout or value, or attention_out overlaps with what is read; nothing is
            written.
    """
    tile = 2048 if tile_config is None else getattr(tile_config, "s_kv_tile", None)
    tile = check.check_int("tile_config.s_kv_tile", tile, 1)
    _attend(
        (query_nope, query_rope),
        _Keys(key_nope_2d, key_rope_2d, k_nope_scales),
        _Lists(topk_indices, block_table, kv_act_seqs),
        _Sizes(nq, n_kv, topk, block_size, max_blocknum_perbatch),
        softmax_scale,
        attention_out,
        tile,
    )


_ATTENTION_NAMES = {
    "index": "topk_indices",
    "act_seq": "kv_act_seqs",
    "latent": "attention_out",
    "out.query_nope": "query_nope",
    "out.query_rope": "query_rope",
    "kv_cache": "key_nope_2d",
    "kr_cache": "key_rope_2d",
    "k_scale_cache": "k_nope_scales",
}


class _Keys(NamedTuple):
    nope: Array
    rope: Array
    scales: Array | None


class _Lists(NamedTuple):
    positions: Array
    block_table: Array
    act_seqs: Array


class _Sizes(NamedTuple):
    nq: int
    n_kv: int
    topk: int
    block_size: int
    max_blocknum_perbatch: int


def _attend(
    queries: tuple[Array, Array],
    keys: _Keys,
    lists: _Lists,
    sizes: _Sizes,
    softmax_scale: float,
    attention_out: Array,
    flash_tile: int | None = None,
) -> None:
    (query_nope, query_rope), (key_nope_2d, key_rope_2d, k_nope_scales) = queries, keys
    topk_indices, block_table, kv_act_seqs = lists
    nq, n_kv, topk, block_size, max_blocknum_perbatch = sizes
    n_heads, size = check.check_int("nq", nq, 1), check.check_int("block_size", block_size, 1)
    check.check_int("n_kv", n_kv, 1, 1)
    check.check_int("topk", topk, 0)
    check.check_int("max_blocknum_perbatch", max_blocknum_perbatch, 0)
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
        scales = check.check_array("k_nope_scales", k_nope_scales, (FP32,), (n_slots, 4))
    with check.renamed({"kv_cache": "key_nope_2d", "kr_cache": "key_rope_2d", "k_scale_cache": "k_nope_scales"}):
        cache = PagedCache(
            key_nope_2d.reshape(*lead, latent), key_rope_2d.reshape(*lead, rope),
            None if scales is None else scales.reshape(*lead, 4),
        )  # fmt: skip
    out = PrologOutput(
        query_nope.reshape(t, n_heads, latent), query_rope.reshape(t, n_heads, rope), np.zeros((t, 0), INT8), None
    )
    with check.renamed(_ATTENTION_NAMES):
        sparse_attention(
            out, cache, topk_indices, table, kv_act_seqs, softmax_scale=softmax_scale, flash_tile=flash_tile,
            latent=attention_out.reshape(t, n_heads, latent),
        )  # fmt: skip
