"""Where the keys of sequences lie in a cache of blocks, and how many of them each token sees."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np

from ..base.checks import Array, expect_array

__all__ = ["MAX_POSITION", "Pages"]

_INTS = (np.dtype(np.int32), np.dtype(np.int64))
MAX_POSITION = 2**31 - 1  # positions are int32


class _Tokens(NamedTuple):
    """How the tokens of a call fall to its sequences, which only their numbers decide: kept from call to call.

    starts (B + 1,) is `Pages.query_start_loc`, and `sequences` (T,) that of `Pages`. seen (T,) is what token i of the
    s1 of a sequence does not see yet, negative: i - (s1 - 1). `least` is the smallest of these, or 0.
    """

    starts: Array
    sequences: Array
    seen: Array
    least: int


class Pages(NamedTuple):
    """A batch of B sequences, whose T newest tokens are asked for: checked copies, which nobody else can change.

    Position p of sequence b is slot `block_table[b, p // block_size] * block_size + p % block_size`. A sequence's
    tokens follow one another, and each sees the keys up to its own: token i of its s1 the first
    `act_seq - (s1 - 1 - i)` of them, none where that is below 1.

    | array           | shape       | int64                                                            |
    |-----------------|-------------|------------------------------------------------------------------|
    | block_table     | (B, blocks) | block of the cache; entries that no key needs are never read     |
    | act_seq         | (B,)        | keys of a sequence, those of this call's tokens included         |
    | query_start_loc | (B + 1,)    | first token of each sequence, and T                              |
    | sequences       | (T,)        | the sequence of a token                                          |
    | limits          | (T,)        | how many keys a token sees                                       |
    """

    block_table: Array
    act_seq: Array
    query_start_loc: Array
    sequences: Array
    limits: Array
    block_size: int
    n_blocks: int

    @classmethod
    def of(
        cls,
        t: int,
        block_table: object,
        act_seq: object,
        query_start_loc: object = None,
        *,
        block_size: int,
        n_blocks: int,
    ) -> Self:
        """The pages of a call of `t` tokens on a cache of `n_blocks` blocks of `block_size` slots.

        block_table (B, blocks) and act_seq (B,) are int32 or int64; query_start_loc (B + 1,) is, too, or None for as
        many tokens a sequence. Whether the blocks of all keys are there is another question: `check_mapped`.

        Raises `TypeError` for another type or dtype, `ValueError` for another shape or value.
        """
        table = _ints("block_table", block_table, 2)
        lengths = _ints("act_seq", act_seq, 1)
        if len(table) != len(lengths):
            raise ValueError(f"block_table: expected {len(lengths)} rows as act_seq, got {len(table)}")
        shortest = _check_lengths(lengths.tolist(), table.shape[1], block_size)
        tokens = _tokens(t, len(lengths), query_start_loc)
        limits = lengths.take(tokens.sequences)
        limits += tokens.seen
        if shortest + tokens.least < 0:
            np.maximum(limits, 0, out=limits)
        return cls(table, lengths, tokens.starts, tokens.sequences, limits, block_size, n_blocks)

    def check_mapped(self) -> None:
        """Raises `ValueError` unless every key that a token sees lies in a block of the cache."""
        if self.block_table.view(np.uint64).max(initial=0) < self.n_blocks:  # a negative one is a large one
            return
        n_used = np.where(np.diff(self.query_start_loc) > 0, -(-self.act_seq // self.block_size), 0)
        needed = np.arange(self.block_table.shape[1]) < n_used[:, None]
        bad = needed & ((self.block_table < 0) | (self.block_table >= self.n_blocks))
        if bad.any():
            b, i = np.argwhere(bad)[0]
            raise ValueError(
                f"block_table[{b}, {i}]: expected a block from 0 to below {self.n_blocks}, since act_seq[{b}] is "
                f"{self.act_seq[b]} in blocks of {self.block_size}, got {self.block_table[b, i]}"
            )


def _ints(name: str, value: object, n_axes: int) -> Array:
    """An int64 copy, in C order, of an array of that many axes."""
    array = expect_array(name, value, _INTS)
    if array.ndim != n_axes:
        raise ValueError(f"{name}: expected {'a matrix' if n_axes == 2 else 'a vector'}, got shape {array.shape}")
    copy: Array = np.array(array, np.int64, order="C", subok=False)
    return copy


def _check_lengths(lengths: list[int], n_blocks: int, block_size: int) -> int:
    """The least of the lengths of sequences; raises unless each fits in a row of the block table."""
    least, most = 0, min(n_blocks * block_size, MAX_POSITION)
    for i, length in enumerate(lengths):
        if not least <= length <= most:
            why = f"{n_blocks} blocks of {block_size} slots"
            raise ValueError(f"act_seq[{i}]: expected {least} to {most} ({why}), got {length}")
    return min(lengths, default=0)


def _tokens(t: int, n_sequences: int, query_start_loc: object) -> _Tokens:
    """How `t` tokens fall to the sequences."""
    if query_start_loc is None:
        if (t and not n_sequences) or (n_sequences and t % n_sequences):
            raise ValueError(
                f"act_seq: expected a number of sequences that divides the {t} tokens (or a query_start_loc), got "
                f"{n_sequences}"
            )
        return _even_tokens(t, n_sequences)
    starts = _ints("query_start_loc", query_start_loc, 1)
    if len(starts) != n_sequences + 1:
        raise ValueError(f"query_start_loc: expected shape ({n_sequences + 1},), got {starts.shape}")
    values = starts.tolist()
    if values[0] != 0 or values[-1] != t:
        raise ValueError(f"query_start_loc: expected 0 first and {t} tokens last, got {values[0]} and {values[-1]}")
    for i, (before, here) in enumerate(pairwise(values), 1):
        if here < before:
            raise ValueError(f"query_start_loc[{i}]: expected at least {before}, as before it, got {here}")
    return _tokens_from(tuple(values))


@functools.lru_cache(maxsize=64)
def _even_tokens(t: int, n_sequences: int) -> _Tokens:
    """As many tokens of each sequence."""
    return _tokens_from(tuple(i * (t // max(n_sequences, 1)) for i in range(n_sequences + 1)))


@functools.lru_cache(maxsize=64)
def _tokens_from(starts: tuple[int, ...]) -> _Tokens:
    """The tokens of sequences that begin there."""
    array = np.array(starts, np.int64)
    ends = array[1:]
    sequences = np.arange(len(ends)).repeat(ends - array[:-1])
    seen = np.arange(1, starts[-1] + 1) - ends[sequences]
    return _Tokens(array, sequences, seen, int(seen.min(initial=0)))
