"""Where the keys of sequences lie in a cache of blocks, and how many of them each token sees."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np

from ..base.checks import Array, expect_array, usual_shape
from ..kernels.pages import MAPPED, WRONG, read_pages

__all__ = ["MAX_POSITION", "Pages", "recent_pages"]

_INT32, _INT64 = _INTS = (np.dtype(np.int32), np.dtype(np.int64))
_NO_STARTS_32, _NO_STARTS_64 = (np.zeros(0, dtype) for dtype in _INTS)
MAX_POSITION = 2**31 - 1  # positions are int32


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

    Compiled code checks them and makes the rest. What it finds wrong, the checks here say in words.
    """

    block_table: Array
    act_seq: Array
    query_start_loc: Array
    sequences: Array
    limits: Array
    block_size: int
    n_blocks: int
    is_mapped: bool

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
        given: _Given = block_table, act_seq, query_start_loc  # type: ignore[assignment]  # checked right below
        if not _are_usual(*given):
            given = _checked_copies(t, *given, block_size)
        table, lengths, starts = given
        n_sequences, width = table.shape
        if starts is None:
            starts = _NO_STARTS_32 if table.dtype is _INT32 else _NO_STARTS_64
        made = (
            np.empty((n_sequences, width), _INT64), np.empty(n_sequences, _INT64), np.empty(n_sequences + 1, _INT64),
            np.empty(t, _INT64), np.empty(t, _INT64),
        )  # fmt: skip
        longest = min(width * block_size, MAX_POSITION)
        found = read_pages((table, lengths, starts), made, t, longest, block_size, n_blocks)
        if found == WRONG:
            _checked_copies(t, *made[:2], made[2] if len(starts) else None, block_size)
            raise AssertionError(
                "pages: expected the checks to agree, got an error of one that the other does not find"
            )
        return cls(*made, block_size, n_blocks, found == MAPPED)

    def check_mapped(self) -> None:
        """Raises `ValueError` unless every key that a token sees lies in a block of the cache."""
        if self.is_mapped:
            return
        n_used = np.where(np.diff(self.query_start_loc) > 0, -(-self.act_seq // self.block_size), 0)
        needed = np.arange(self.block_table.shape[1]) < n_used[:, None]
        bad = needed & ((self.block_table < 0) | (self.block_table >= self.n_blocks))
        assert bad.any(), "pages: expected a block that is missing, as compiled code found"
        b, i = np.argwhere(bad)[0]
        raise ValueError(
            f"block_table[{b}, {i}]: expected a block from 0 to below {self.n_blocks}, since act_seq[{b}] is "
            f"{self.act_seq[b]} in blocks of {self.block_size}, got {self.block_table[b, i]}"
        )


_Given = tuple[Array, Array, Array | None]

_RECENT = 4
_RECENT_BYTES = 1 << 20  # of a table; of larger ones copies take their time and place
_recent: tuple[tuple[Any, Pages, dict[Any, Any]], ...] = ()


def recent_pages(
    t: int, block_table: object, act_seq: object, query_start_loc: object, *, block_size: int, n_blocks: int
) -> tuple[Pages, dict[Any, Any]]:
    """`Pages.of` these arguments, which nobody may change, and what callers keep of it.

    In a step all layers have the same table and lengths, the index as well as attention. So what was made of the same
    bytes is kept for some calls.
    """
    given: _Given = block_table, act_seq, query_start_loc  # type: ignore[assignment]  # checked right below
    global _recent
    if not _are_usual(*given) or given[0].nbytes > _RECENT_BYTES:
        return Pages.of(t, *given, block_size=block_size, n_blocks=n_blocks), {}
    table, lengths, starts = given
    shape, dtype = table.shape, table.dtype
    of_starts = b"" if starts is None else starts.tobytes()
    key = t, block_size, n_blocks, shape, table.tobytes(), lengths.tobytes(), of_starts
    for kept, pages, made in _recent:
        if kept == key:
            return pages, made
    # Of the bytes: the arrays may be others by now, if another thread changes them.
    table, lengths, starts = (np.frombuffer(bytearray(each), dtype) for each in key[4:])
    pages = Pages.of(
        t, table.reshape(shape), lengths, starts if of_starts else None, block_size=block_size, n_blocks=n_blocks
    )
    made = {}
    _recent = ((key, pages, made), *_recent[: _RECENT - 1])  # a thread that comes between loses its own: no harm
    return pages, made


def _are_usual(table: object, lengths: object, starts: object) -> bool:
    """Whether compiled code takes them as they are."""
    dtype = _INT32 if getattr(table, "dtype", None) is _INT32 else _INT64
    of_table, of_lengths = usual_shape(table, dtype), usual_shape(lengths, dtype)
    if of_table is None or of_lengths is None or len(of_table) != 2 or of_lengths != of_table[:1]:
        return False
    return starts is None or usual_shape(starts, dtype) == (of_lengths[0] + 1,)


def _checked_copies(t: int, block_table: object, act_seq: object, query_start_loc: object, block_size: int) -> _Given:
    """int64 copies of the arguments; raises unless all are right but for the blocks that keys need."""
    table = _ints("block_table", block_table, 2)
    lengths = _ints("act_seq", act_seq, 1)
    if len(table) != len(lengths):
        raise ValueError(f"block_table: expected {len(lengths)} rows as act_seq, got {len(table)}")
    _check_lengths(lengths.tolist(), table.shape[1], block_size)
    return table, lengths, _checked_starts(t, len(lengths), query_start_loc)


def _ints(name: str, value: object, n_axes: int) -> Array:
    """An int64 copy, in C order, of an array of that many axes."""
    array = expect_array(name, value, _INTS)
    if array.ndim != n_axes:
        raise ValueError(f"{name}: expected {'a matrix' if n_axes == 2 else 'a vector'}, got shape {array.shape}")
    copy: Array = np.array(array, np.int64, order="C", subok=False)
    return copy


def _check_lengths(lengths: list[int], n_blocks: int, block_size: int) -> None:
    """Raises unless each length fits in a row of the block table."""
    least, most = 0, min(n_blocks * block_size, MAX_POSITION)
    for i, length in enumerate(lengths):
        if not least <= length <= most:
            why = f"{n_blocks} blocks of {block_size} slots"
            raise ValueError(f"act_seq[{i}]: expected {least} to {most} ({why}), got {length}")


def _checked_starts(t: int, n_sequences: int, query_start_loc: object) -> Array | None:
    """The first token of each sequence, and t; None where each has as many tokens."""
    if query_start_loc is None:
        if (t and not n_sequences) or (n_sequences and t % n_sequences):
            raise ValueError(
                f"act_seq: expected a number of sequences that divides the {t} tokens (or a query_start_loc), got "
                f"{n_sequences}"
            )
        return None
    starts = _ints("query_start_loc", query_start_loc, 1)
    if len(starts) != n_sequences + 1:
        raise ValueError(f"query_start_loc: expected shape ({n_sequences + 1},), got {starts.shape}")
    values = starts.tolist()
    if values[0] != 0 or values[-1] != t:
        raise ValueError(f"query_start_loc: expected 0 first and {t} tokens last, got {values[0]} and {values[-1]}")
    for i, (before, here) in enumerate(pairwise(values), 1):
        if here < before:
            raise ValueError(f"query_start_loc[{i}]: expected at least {before}, as before it, got {here}")
    return starts
