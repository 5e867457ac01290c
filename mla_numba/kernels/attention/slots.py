"""Where the positions of a list lie in a cache: a block, and a row in it, in one number."""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee, inlined
from ..kinds import Index, Int64
from ..launch import asked
from ..pages import take
from ..scalars import window
from .arguments import Lists

__all__ = ["block_and_row", "find_slots"]

_MOST = np.int64(2**31)  # more than any position


@inlined
def block_and_row(slot: Index, row_bits: Index) -> tuple[Index, Index]:
    """The two parts of an element of `Lists.slots`."""
    bits = np.int64(row_bits)
    block = slot >> bits
    return block, slot - (block << bits)


@callee
def _find(lists: Lists, token: Index, limit: Index, n_blocks: Index) -> tuple[Index, Index]:
    """(positions, place of the first that is wrong or -1) of a token that sees `limit` keys."""
    k, width, bits = lists.slots.shape[1], lists.block_table.shape[1], np.int64(lists.row_bits)
    size = np.uint32(min(np.int64(lists.block_size), _MOST))  # half as wide a division takes half the time
    most = min(limit, np.int64(k))
    slots = window(lists.slots, token * k, most)
    blocks = window(lists.block_table, lists.sequences[token] * width, width)
    for place in range(most):
        position = slots[place]
        if position < 0:
            return np.int64(place), np.int64(-1)
        if position >= limit:
            return np.int64(place), np.int64(place)
        at = np.int64(np.uint32(position) // size)
        if at >= width or blocks[at] < 0 or blocks[at] >= n_blocks:
            return np.int64(place), np.int64(place)
        slots[place] = (blocks[at] << bits) + position - at * np.int64(size)
    return np.int64(most), np.int64(-1)


@asked
def find_slots(given: Int64, lists: tuple[Int64, ...], limits: Int64, n_blocks: Index, sizes: tuple[Index, Index],
               counts: Int64) -> int:  # fmt: skip
    """Makes of positions, given (T, K) int32 or int64, what `Lists.slots` says, in a copy.

    A position below 0 ends a list. One is wrong that the token does not see (limits (T,)), or that lies in no block.
    lists: slots, sequences and block_table; sizes: row_bits and block_size. counts (T,) is how many positions each
    token attends to. Returns the largest of these; where a position is wrong, -1 - its place in the whole array.
    """
    slots, sequences, block_table = lists
    take(given, slots)
    made = Lists(slots, sizes[0], False, sequences, block_table, sizes[1])
    largest = 0
    for token in range(len(limits)):
        counts[token], wrong = _find(made, np.int64(token), limits[token], n_blocks)
        largest = max(largest, int(counts[token]))
        if wrong >= 0:
            return int(-1 - (token * slots.shape[1] + wrong))
    return largest
