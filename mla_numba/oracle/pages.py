"""Which keys each token sees, and where they lie: block tables read plainly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .arrays import I64, Array
from .scatter import NZ_C0_BYTES, nz_addresses


class Seen(NamedTuple):
    """What one token sees: `limit` keys, positions 0 to `limit - 1` of `sequence`; none where it is below 1."""

    sequence: int
    limit: int


def keys_seen(t: int, act_seq: Array, query_start_loc: Array | None) -> list[Seen]:
    """What each of T tokens sees, right-down causal: token i of a sequence's s1 the first act_seq - (s1 - 1 - i) keys.

    act_seq (B,) counts this call's tokens too. query_start_loc (B + 1,) is the first token of each sequence, and T;
    without it all have T / B tokens.

    Raises `ValueError` where B does not divide T, or the starts are no rising ones from 0 to T.
    """
    n_sequences = len(act_seq)
    if query_start_loc is None:
        if t % max(n_sequences, 1) or (t and not n_sequences):
            raise ValueError(f"act_seq: expected a number of sequences that divides {t} tokens, got {n_sequences}")
        starts = [b * (t // max(n_sequences, 1)) for b in range(n_sequences + 1)]
    else:
        starts = query_start_loc.tolist()
        if len(starts) != n_sequences + 1 or starts != sorted(starts) or starts[0] != 0 or starts[-1] != t:
            raise ValueError(f"query_start_loc: expected {n_sequences + 1} rising starts from 0 to {t}, got {starts}")
    seen = []
    for b in range(n_sequences):
        n_tokens = starts[b + 1] - starts[b]
        for i in range(n_tokens):
            seen.append(Seen(b, int(act_seq[b]) - (n_tokens - 1 - i)))
    return seen


def slots_of(positions: Sequence[int], table: Array, block_size: int, n_blocks: int) -> I64:
    """The slots of positions of a sequence whose row of the block table is `table`.

    Raises `ValueError` for a position without a block: behind the table, -1 in it, or none of the cache's blocks.
    """
    slots = np.empty(len(positions), np.int64)
    for place, p in enumerate(positions):
        block = int(table[p // block_size]) if p // block_size < len(table) else -1
        if not 0 <= block < n_blocks:
            raise ValueError(f"block_table: expected a block from 0 to below {n_blocks} of position {p}, got {block}")
        slots[place] = block * block_size + p % block_size
    return slots


def rows_of(cache: Array, slots: I64, cache_mode: str) -> Array:
    """Rows (n, d) of a cache array (blocks, BS, 1, d), in PA_BSND or PA_NZ order."""
    _, block_size, _, d = cache.shape
    flat = np.ascontiguousarray(cache).reshape(-1)
    if cache_mode == "PA_NZ":
        places = [nz_addresses(int(slot), block_size, d, NZ_C0_BYTES // cache.itemsize) for slot in slots]
    else:
        places = [np.arange(slot * d, (slot + 1) * d) for slot in slots]
    return flat[np.array(places, np.int64).reshape(len(slots), d)]
