"""The lightning index in plain NumPy: which keys score highest for each token.

Dimension letters: T tokens, B sequences, Ni heads of the indexer, Di their width, BS tokens in a cache block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .arrays import F32, Array
from .pages import keys_seen, rows_of, slots_of
from .products import matmul_int8

if TYPE_CHECKING:
    from ..call.indexer import IndexerOutput
    from ..indexer_cache import IndexerCache


@np.errstate(all="ignore")
def index_scores(query: Array, query_scale: Array, weights: Array, keys: Array, key_scale: Array) -> F32:
    """Scores of n keys for one token.

    ``r = fp16(fp32(max(q . k, 0)) * 2^-11)`` of the exact integer product, ``w = fp16(query_scale * weight)`` by head,
    then ``sum of w * r`` over the heads, ascending, in one fp32 accumulator (each product is exact), times the key's
    scale.

    Args:
        query: Codes (Ni, Di) int8.
        query_scale: Their scales (Ni,) fp16.
        weights: Weights of the heads (Ni,) fp16.
        keys: Codes (n, Di) int8.
        key_scale: Their scales (n,) fp16.

    Returns:
        Scores (n,) fp32.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import index_scores
        >>> query, keys = np.full((1, 2), 64, np.int8), np.array([[64, 64], [64, 0], [-64, 0]], np.int8)
        >>> one = np.ones(3, np.float16)
        >>> index_scores(query, one[:1], one[:1], keys, one).tolist()
        [4.0, 2.0, 0.0]
    """
    dots = matmul_int8(keys, np.ascontiguousarray(query.T))  # (n, Ni)
    relu = (np.maximum(dots, 0).astype(np.float32) * np.float32(2**-11)).astype(np.float16)
    factors = query_scale * weights  # fp16
    scores = np.zeros(len(keys), np.float32)
    for head in range(len(query)):
        scores = scores + factors[head].astype(np.float32) * relu[:, head].astype(np.float32)
    return scores * key_scale.astype(np.float32)


def best_positions(scores: F32, k: int) -> list[int]:
    """The k best of scores by position: NaN first, then the highest; equal ones, -0 and 0 too, by position.

    Args:
        scores: Scores (n,) fp32 of positions 0 to n - 1.
        k: How many at most.

    Returns:
        Positions, the best first.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import best_positions
        >>> best_positions(np.array([0.0, 2.0, -0.0, np.nan, 2.0], np.float32), 4)
        [3, 1, 4, 0]
    """

    def rank(position: int) -> tuple[bool, float, int]:
        score = float(scores[position])
        return (score == score, 0.0 if score != score else -score, position)

    return sorted(range(len(scores)), key=rank)[:k]


def lightning_index_reference(
    out: IndexerOutput,
    cache: IndexerCache,
    block_table: Array,
    act_seq: Array,
    k: int = 2048,
    *,
    query_start_loc: Array | None = None,
) -> Array:
    """The k keys of each token that score highest, of those that it sees.

    Token i of the s1 tokens of sequence b sees its first ``act_seq[b] - (s1 - 1 - i)`` positions. Position p lies in
    slot ``block_table[b, p // BS] * BS + p % BS``. ``index_scores`` has the scores, ``best_positions`` the order.

    Args:
        out: What the indexer's prolog returned for the T tokens, those of a sequence one after the other.
        cache: The keys, those of this call's tokens too.
        block_table: Blocks of each sequence (B, n) of integers; -1 for none.
        act_seq: Keys of each sequence (B,) of integers, this call's tokens included.
        k: How many.
        query_start_loc: The first token of each sequence, and T, (B + 1,); without it all have T / B tokens.

    Returns:
        Positions in the sequence (T, k) int32, the best first; behind them -1 where a token sees fewer.

    Raises:
        ValueError: A key that a token sees has no block, or the tokens cannot be shared among the sequences.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba.reference import lightning_index_reference
        >>> dims = mla.IndexerDims(256, 96, 1, 64, 32)
        >>> cache = mla.IndexerCache.allocate(dims, n_blocks=2, block_size=2)
        >>> cache.k[1] = 64  # all of block 1
        >>> cache.k_scale[1] = [[[1]], [[2]]]
        >>> one = np.ones((1, 1), np.float16)
        >>> out = mla.IndexerOutput(np.full((1, 1, 64), 64, np.int8), one[..., None], one)
        >>> lightning_index_reference(out, cache, np.array([[0, 1]]), np.array([4]), k=5).tolist()
        [[3, 2, 0, 1, -1]]
    """
    index = np.full((len(out.query), k), -1, np.int32)
    for token, scores in enumerate(scores_of_tokens(out, cache, block_table, act_seq, query_start_loc)):
        best = best_positions(scores, k)
        index[token, : len(best)] = best
    return index


def scores_of_tokens(
    out: IndexerOutput, cache: IndexerCache, block_table: Array, act_seq: Array, query_start_loc: Array | None
) -> Iterator[F32]:
    """Of each token the scores of the positions that it sees. Raises as `lightning_index_reference` does."""
    n_blocks, block_size = cache.k.shape[:2]
    for token, (sequence, limit) in enumerate(keys_seen(len(out.query), act_seq, query_start_loc)):
        slots = slots_of(range(limit), block_table[sequence], block_size, n_blocks)
        yield index_scores(
            out.query[token],
            out.query_scale[token].reshape(-1),
            out.weights[token],
            rows_of(cache.k, slots, cache.cache_mode),
            rows_of(cache.k_scale, slots, "PA_BSND")[:, 0],
        )
