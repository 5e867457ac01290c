"""What a call hands to the attention kernel, thing by thing.

Arrays are C-contiguous and bf16 is uint16 bits. T are the call's tokens, N its heads, C the latent's width, R the rope
part's, n the most positions that a token attends to. A call goes through its tokens and heads in rounds: t tokens by h
panels of NR heads, and their scores are all there is of them in memory.
"""

from __future__ import annotations

from typing import NamedTuple

from ..kinds import F32, Bits, Index, Int32, Int64, Real, Values, Words
from ..sweeps.arguments import Caches

__all__ = ["ALL", "LARGEST", "SUM", "VALUES_OF", "Caches", "Cut", "Lists", "Queries", "Round", "Scratch", "Work"]

# What a round does: all in one; or, of more places than memory holds, first the largest score of each head, then the
# sum of the exponentials, and then the latents, each over all places.
ALL, LARGEST, SUM, VALUES_OF = range(4)


class Queries(NamedTuple):
    """The prolog's queries: nope (T, N, C), rope (T, N, R)."""

    nope: Bits
    rope: Bits


class Lists(NamedTuple):
    """The positions that each token attends to.

    slots (T, K) says where they lie, valid ones first: the block, and in the lowest `row_bits` bits the row in it. Of a
    `dense` call they are not read: a token attends to positions 0, 1, ..., which block_table (B, blocks) maps to slots,
    by the row sequences[token].
    """

    slots: Int64
    row_bits: Index
    dense: bool
    sequences: Int64
    block_table: Int64
    block_size: Index


class Scratch(NamedTuple):
    """Working memory of a round, in which kp is C + R in whole steps of KR. A worker's rows have room behind them.

    | array    | shape                  | dtype        | what                                                          |
    |----------|------------------------|--------------|---------------------------------------------------------------|
    | queries  | (t, h, kp * NR)        | uint16       | panels, whose columns are heads                               |
    | q_min    | (t, h)                 | int32        | `min_magnitude` of a panel                                    |
    | scores   | (t, h, n * NR)         | float32      | of each position NR heads; then their exponentials            |
    | weights  | (t, h * NR, ldw)       | A_BF16_DTYPE | probabilities: rows of A, a head each, zeros behind the last  |
    | w_min    | (t, h * NR)            | int32        | `min_magnitude` of a head's row                               |
    | rows     | (n_workers, m, lda)    | A_BF16_DTYPE | dequantised keys of less than m positions: rows of A          |
    | panels   | (n_workers, ...)       | uint16       | dequantised latents of some positions: panels of columns      |
    | bits     | (n_workers, ...)       | uint16       | dequantised rows of few positions; the smallest probabilities |
    | bases    | (n_workers, ...)       | int64        | where keys begin: those at work, and those that come next     |
    | sums     | (n_workers, ...)       | float32      | accumulators of latents, [walk][N][NR]                        |
    | lanes    | (n_workers, 2, 16*NR)  | float32      | by place mod 16 and head: the largest score, sums             |
    | words    | (n_workers, 8 * NR)    | uint32       | probabilities of 16 positions; the smallest of a key's rope   |
    | counters | see `tasks`            | int64        | zeros                                                         |
    | factors  | (t, h, tiles * NR)     | float32      | what each tile's forerunners are multiplied with              |

    What goes from round to round over a list's places, and comes first in memory, so that it stays where it is:

    | array    | shape                  | dtype        | what                                                          |
    |----------|------------------------|--------------|---------------------------------------------------------------|
    | carried  | (t, h, 17 * NR)        | float32      | of each head the largest score, and sums by lane              |
    | attended | (t, h * NR, C)         | float32      | latents so far                                                |
    """

    carried: F32
    attended: F32
    queries: Bits
    q_min: Int32
    scores: F32
    weights: Values
    w_min: Int32
    rows: Values
    panels: Bits
    bits: Bits
    bases: Int64
    sums: F32
    lanes: F32
    words: Words
    counters: Int64
    factors: F32


class Cut(NamedTuple):
    """A round, and how its work falls into tasks.

    Tokens t0..t0+t and panels of heads panel0..panel0+h; places place0..place0+n of their lists, the `last` ones or
    not. `stage` says what is done with them, `tile` how many are merged at a time, 0 for none. A task of the scores
    has `rows` positions. A task of the latents has a `walk` of panels of columns and `heads` panels of heads; it takes
    `depth` positions at a time, a multiple of KR.
    """

    n_workers: Index
    t0: Index
    t: Index
    panel0: Index
    h: Index
    place0: Index
    n: Index
    last: Index
    stage: Index
    tile: Index
    rows: Index
    depth: Index
    walk: Index
    heads: Index


class Round(NamedTuple):
    """What a round is but its keys: its queries, its memory and its cut; scale is what a score is multiplied with.

    counts (T,) is how many positions each token attends to.
    """

    queries: Queries
    counts: Int64
    scratch: Scratch
    cut: Cut
    scale: Real


class Work(NamedTuple):
    """A round and its keys; latent (T, N, C) is what it writes.

    group: the elements of a latent that share a scale, where keys are int8.
    """

    round: Round
    caches: Caches
    lists: Lists
    group: Index
    latent: Bits
