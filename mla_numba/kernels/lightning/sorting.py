"""Ranks in order, and the positions that they hold.

Ranks are sorted by the leading _LEADING bits in which they differ, which leaves few of them a few places off. Where it
leaves many, as among equal scores, they are sorted by all bits.
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Index, Int32, Word
from ..scalars import window
from .best import Ranks, extremes

__all__ = ["N_BINS", "sort_ranks", "write_positions"]

_DIGIT = 8  # bits that are sorted by at once
_LEADING = 2 * _DIGIT
N_BINS = 1 << _DIGIT
_POSITION = np.uint64(0xFFFFFFFF)


@callee
def _sort_digit(ranks: Ranks, base: Word, shift: Index, out: Ranks, counts: Ranks) -> None:
    """Ranks in order of a digit of what they are above the base, equal ones as they came.

    All is unsigned: an index that may be negative takes longer.
    """
    below, mask, one = np.uint64(shift), np.uint64(N_BINS - 1), np.uint64(1)
    for b in range(N_BINS):
        counts[b] = 0
    for i in range(len(ranks)):
        counts[((ranks[i] - base) >> below) & mask] += one
    start = np.uint64(0)
    for b in range(N_BINS):
        start, counts[b] = start + counts[b], start
    for i in range(len(ranks)):
        digit = ((ranks[i] - base) >> below) & mask
        place = counts[digit]
        out[place] = ranks[i]
        counts[digit] = place + one


@callee
def _sort_bits(ranks: Ranks, base: Word, first: Index, end: Index, spare: Ranks, counts: Ranks) -> None:
    """Sorts by bits from `first` on up to `end`, or a few more."""
    for shift in range(first, end, _LEADING):
        _sort_digit(ranks, base, np.int64(shift), spare, counts)
        _sort_digit(spare, base, np.int64(shift + _DIGIT), ranks, counts)


@callee
def _settle(ranks: Ranks) -> bool:
    """Moves ranks that are a few places off; whether all are in order then, or there are too many."""
    n_moves = 0
    for i in range(1, len(ranks)):
        rank, j = ranks[i], i
        while j > 0 and ranks[j - 1] > rank:
            ranks[j] = ranks[j - 1]
            j -= 1
        ranks[j] = rank
        n_moves += i - j
        if n_moves > len(ranks):
            return False
    return True


@callee
def sort_ranks(ranks: Ranks, spare: Ranks, counts: Ranks) -> None:
    """Sorts n ranks; spare (>= n,), counts (N_BINS,) uint64."""
    n = len(ranks)
    if n < 2:
        return
    least, most = extremes(ranks)
    n_bits = 0
    while n_bits < 64 and (most - least) >> np.uint64(n_bits):
        n_bits += 1
    scratch = window(spare, 0, n)
    first, is_sorted = max(0, n_bits - _LEADING), False
    while not is_sorted:
        _sort_bits(ranks, least, first, n_bits, scratch, counts)
        first, is_sorted = 0, _settle(ranks)


@callee
def write_positions(ranks: Ranks, out: Int32) -> None:
    """The positions of ranks, and then -1; or of as many ranks as there is room for."""
    n = min(len(ranks), len(out))
    for i in range(n):
        out[i] = np.int32(ranks[i] & _POSITION)
    for i in range(n, len(out)):
        out[i] = np.int32(-1)
