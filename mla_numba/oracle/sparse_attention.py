"""Attention over listed positions of the latent cache, in plain NumPy.

Dimension letters: T tokens, B sequences, N heads, C kv_lora_rank, R qk_rope_head_dim, BS tokens in a cache block.
Arithmetic is that of ``oracle.reference``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..base.modes import RecordOrder
from .arrays import BF16, F32, I64, Array
from .exp import exp_reference
from .norm_quant import lane_sum
from .pages import keys_seen, rows_of, slots_of
from .products import sum_of_products
from .reference import N_GROUPS

if TYPE_CHECKING:
    from ..cache import PagedCache
    from ..call.bind import PrologOutput

# The first byte of a field in a record of 656 bytes, and its elements.
_RECORDS: dict[RecordOrder, dict[str, int]] = {
    "cann": {"codes": 0, "rope": 512, "scales": 640},
    "flashmla": {"codes": 0, "scales": 512, "rope": 528},
}


class Keys(NamedTuple):
    """Keys of n positions: latents (n, C) bf16, dequantised where the cache holds codes, and rope (n, R) bf16."""

    latent: Array
    rope: Array


@np.errstate(all="ignore")
def dequantised(codes: Array, scales: Array) -> Array:
    """Latents (n, C) bf16 of codes (n, C) int8 and scales (n, 4): ``bf16(fp32(code) * fp32(scale))`` by group."""
    groups = codes.astype(np.float32).reshape(len(codes), N_GROUPS, codes.shape[1] // N_GROUPS)
    return (groups * scales.astype(np.float32)[:, :, None]).reshape(codes.shape).astype(BF16)


def read_cache(cache: PagedCache, slots: I64) -> Keys:
    """The keys of slots of a paged cache, in PA_BSND or PA_NZ order."""
    latent = rows_of(cache.kv, slots, cache.cache_mode)
    if cache.k_scale is not None and cache.kv.dtype == np.int8:
        latent = dequantised(latent, rows_of(cache.k_scale, slots, "PA_BSND"))
    return Keys(latent, rows_of(cache.kr, slots, cache.cache_mode))


def read_records(records: Array, slots: I64, order: RecordOrder) -> Keys:
    """The keys of slots of records (blocks, BS, 1, 656) of bytes."""
    rows = records.reshape(-1, records.shape[-1])[slots].view(np.uint8)
    at = _RECORDS[order]

    def field(name: str, n_bytes: int, dtype: np.dtype[np.generic]) -> Array:
        return np.ascontiguousarray(rows[:, at[name] : at[name] + n_bytes]).view(dtype)

    codes = field("codes", 512, np.dtype(np.int8))
    return Keys(dequantised(codes, field("scales", 16, np.dtype(np.float32))), field("rope", 128, BF16))


@np.errstate(all="ignore")
def attend(query: Array, keys: Keys, softmax_scale: float) -> Array:
    """Attention of one token's heads (N, C + R) bf16 over keys, as bf16 (N, C): P is divided before it is rounded.

    ``S = (q . k) * softmax_scale`` with one fp32 accumulator over the columns of latent and then rope;
    ``e = exp(S - max S)``; ``P = bf16(e / lane_sum(e))``; ``bf16(sum of P * latent)`` with one fp32 accumulator in the
    order of the keys.
    """
    scores = _scores(query, keys, softmax_scale)
    e = exp_reference(scores - np.max(scores, axis=1, keepdims=True))
    p = (e / lane_sum(e)).astype(BF16)
    return sum_of_products(p, keys.latent).astype(BF16)


@np.errstate(all="ignore")
def attend_by_tiles(query: Array, keys: Keys, softmax_scale: float, tile: int) -> Array:
    """Attention as ``attend``, but by tiles of keys that are merged (FlashAttention, Dao et al., 2022).

    Of a tile, ``m' = max(m, max S)``, ``e = exp(S - m')``, ``a = exp(m - m')``, ``l = l * a + lane_sum(e)`` and
    ``o = o * a + sum of bf16(e) * latent``, whose sum has an accumulator of its own; a of the first tile is 0. Last
    ``bf16(o / l)``.
    """
    scores = _scores(query, keys, softmax_scale)
    m = np.full((len(query), 1), -np.inf, np.float32)
    total, o = np.zeros((len(query), 1), np.float32), np.zeros((len(query), keys.latent.shape[1]), np.float32)
    for start in range(0, scores.shape[1], tile):
        part = scores[:, start : start + tile]
        highest = np.maximum(m, np.max(part, axis=1, keepdims=True))
        e, a = exp_reference(part - highest), exp_reference(m - highest)
        total = total * a + lane_sum(e)
        o = o * a + sum_of_products(e.astype(BF16), keys.latent[start : start + tile])
        m = highest
    return (o / total).astype(BF16)


def _scores(query: Array, keys: Keys, softmax_scale: float) -> F32:
    columns = np.concatenate([keys.latent, keys.rope], axis=1).T
    return sum_of_products(query, columns) * np.float32(softmax_scale)


def listed_positions(row: Array, limit: int) -> list[int]:
    """The positions that a token's row of an index names: of its first `limit` entries those before the first -1.

    Args:
        row: Positions (K,) of integers.
        limit: How many keys the token sees.

    Returns:
        The positions, in their order.

    Raises:
        ValueError: One of them is not seen by the token.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import listed_positions
        >>> listed_positions(np.array([2, 0, -1, 1]), 3)
        [2, 0]
    """
    positions = []
    for position in row[: max(limit, 0)].tolist():
        if position < 0:
            break
        if position >= limit:
            raise ValueError(f"index: expected positions below {limit}, the keys that the token sees, got {position}")
        positions.append(position)
    return positions


def sparse_attention_reference(
    out: PrologOutput,
    cache: PagedCache | Array,
    index: Array | None,
    block_table: Array,
    act_seq: Array,
    softmax_scale: float,
    *,
    query_start_loc: Array | None = None,
    record_order: RecordOrder | None = None,
    flash_tile: int | None = None,
) -> Array:
    """Attention of all heads over the positions that the lightning index lists, or over all that a token sees.

    A token's row of `index` ends at the first -1, and no more entries are read than it sees keys. int8 codes become
    ``bf16(fp32(code) * scale)``. The result is still latent: the model multiplies it by w_uv, head by head.

    Args:
        out: What the prolog returned for the T tokens, those of a sequence one after the other.
        cache: The keys, those of this call's tokens too: a paged cache of int8 codes or bf16, or records of 656 bytes
            (blocks, BS, 1, 656) uint8.
        index: Positions (T, K) of integers, as ``lightning_index_reference`` gives them; None for all.
        block_table: Blocks of each sequence (B, n) of integers; -1 for none.
        act_seq: Keys of each sequence (B,) of integers, this call's tokens included.
        softmax_scale: Of the scores.
        query_start_loc: The first token of each sequence, and T, (B + 1,); without it all have T / B tokens.
        record_order: "cann" or "flashmla" with records, else None.
        flash_tile: Keys a tile where weights are rounded before they are divided, as ``flash`` operators do, which
            gives other bits; None: they are divided first.

    Returns:
        Attention (T, N, C) bf16; zeros for a token that has no position.

    Raises:
        ValueError: A position is not seen by its token or has no block, or the tokens cannot be shared among the
            sequences.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> from mla_numba.reference import sparse_attention_reference
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> cache = mla.PagedCache.allocate(dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, _ = random_inputs(dims, t=3, seed=0, capacity=32)
        >>> slots = np.array([16, 17, 18])  # the first ones of block 1
        >>> out = mla.MlaProlog(mla.MlaWeights.random(dims))(x, cos, sin, slots, cache)
        >>> table, act_seq = np.array([[1]]), np.array([3])
        >>> sparse_attention_reference(out, cache, None, table, act_seq, 0.125).shape
        (3, 4, 64)
    """
    query = np.concatenate([out.query_nope, out.query_rope], axis=2)
    n_blocks, block_size = (cache if isinstance(cache, np.ndarray) else cache.kv).shape[:2]
    result = np.zeros(out.query_nope.shape, BF16)
    for token, (sequence, limit) in enumerate(keys_seen(len(query), act_seq, query_start_loc)):
        positions = range(limit) if index is None else listed_positions(index[token], limit)
        if not len(positions):
            continue
        slots = slots_of(positions, block_table[sequence], block_size, n_blocks)
        if isinstance(cache, np.ndarray):
            if record_order not in _RECORDS:
                raise ValueError(f"record_order: expected one of {', '.join(_RECORDS)}, got {record_order!r}")
            keys = read_records(cache, slots, record_order)
        else:
            keys = read_cache(cache, slots)
        if flash_tile is None:
            result[token] = attend(query[token], keys, softmax_scale)
        else:
            result[token] = attend_by_tiles(query[token], keys, softmax_scale, flash_tile)
    return result
