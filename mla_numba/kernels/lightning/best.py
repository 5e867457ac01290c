"""The best keys of a token, of scores that come in any order and are never all kept.

A key is a rank: a uint64 whose upper half falls as the score rises, and whose lower half is the position. So ranks are
a total order, the best first: by score, then by position. -0.0 counts as 0.0, and a NaN comes before all numbers.

Ranks that may be among the k best are appended to a buffer. When it is full, all but about k are dropped, and from then
on only ranks up to the worst that is left come in. What is kept in the end does not depend on the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ..jit.callee import callee, inlined, overload_callee
from ..kinds import F32, Index, Int32, Int64, Real, Typed, Word
from ..micro.table import ISA
from ..scalars import bits_of_f32, window
from .chosen import can_append, declare_append
from .vector_code import call_vector_code

__all__ = ["ALL_RANKS", "N_BINS", "Ranks", "append_ranks", "keep_best", "rank_keys", "sort_ranks"]

Ranks = NDArray[np.uint64]
ALL_RANKS = np.uint64(0xFFFFFFFFFFFFFFFF)  # none is worse
_DIGIT = 11  # bits that are sorted by at once
N_BINS = 1 << _DIGIT
_HALF = 32
_POSITION = np.uint64(0xFFFFFFFF)
_STRETCH = 32  # keys


@callee
def _rank_key(score: Real) -> Word:
    """The upper half of a rank, uint32."""
    bits = bits_of_f32(np.float32(score + np.float32(0)))  # makes -0.0 to 0.0
    rising = np.uint32(0x7FFFFFFF)
    key = bits if bits >= np.uint32(0x80000000) else np.uint32(bits ^ rising)
    return np.uint32(0) if score != score else key


@inlined
def rank_keys(scores: F32, scale: F32, position: Index, ranks: Ranks) -> None:
    """The ranks of keys with scores[j] * scale[j], at positions from `position` on."""
    for j in range(len(ranks)):
        key = _rank_key(np.float32(scores[j] * scale[j]))
        ranks[j] = np.uint64(np.uint64(key) << np.uint64(_HALF)) | np.uint64(position + j)


def append_ranks(more: Ranks, ranks: Ranks, n: Index, worst: Word) -> Index:
    """Appends to n ranks those of `more` that are not worse; how many there are then.

    `more` may be ranks[i:] for i >= n.
    """
    return _append_by_stretches(more, ranks, n, worst)


@callee
def _append_by_stretches(more: Ranks, ranks: Ranks, n: Index, worst: Word) -> Index:
    """Of a long sequence few keys are near. So _STRETCH of them are first compared at once."""
    for first in range(0, len(more), _STRETCH):
        stretch = window(more, first, min(np.int64(_STRETCH), len(more) - first))
        n_near = np.int64(0)
        for j in range(len(stretch)):
            n_near += np.int64(stretch[j] <= worst)
        if n_near:
            for j in range(len(stretch)):
                rank = stretch[j]
                ranks[n] = rank
                n += np.int64(rank <= worst)
    return np.int64(n)


@overload_callee(append_ranks)
def _append_ranks(more: Typed, ranks: Typed, n: Typed, worst: Typed) -> Any:
    if not can_append(ISA):
        return _append_by_stretches

    def simd(more: Ranks, ranks: Ranks, n: Index, worst: Word) -> Index:
        return _append_simd(more, np.int64(len(more)), np.uint64(worst), ranks, np.int64(n))

    return simd


@intrinsic
def _append_simd(_typingctx: Any, more: Any, n: Any, worst: Any, ranks: Any, at: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_vector_code(context, builder, sig, args, declare_append)

    return types.int64(more, types.int64, types.uint64, ranks, types.int64), codegen


@callee
def keep_best(ranks: Ranks, n: Index, k: Index, slack: Index, counts: Int64) -> tuple[Index, Word]:
    """Drops all but the k best of n >= k ranks, in their order, or keeps up to `slack` more; (how many, the worst).

    Digit by digit from the top: `left` of the ranks that begin with `prefix` are among the best. The worst is a bound:
    no more than those that are kept are up to it. counts (N_BINS,) is scratch.
    """
    left, prefix, shift = np.int64(k), np.uint64(0), np.int64(64)
    surplus = np.int64(n)
    while surplus > slack and shift > 0:
        bits = min(np.int64(_DIGIT), shift)
        shift -= bits
        below, digit = np.uint64(shift), np.uint64(bits)
        for b in range(N_BINS):
            counts[b] = 0
        mask = np.uint64((1 << _DIGIT) - 1) >> np.uint64(_DIGIT - bits)
        for i in range(n):
            high = ranks[i] >> below
            if high >> digit == prefix:
                counts[np.int64(high & mask)] += 1
        chosen = np.int64(0)
        while counts[chosen] < left:
            left -= counts[chosen]
            chosen += 1
        surplus = counts[chosen] - left
        prefix = np.uint64(prefix << digit) | np.uint64(chosen)
    worst = ALL_RANKS if shift == 64 else (np.uint64(prefix << np.uint64(shift))) | (ALL_RANKS >> np.uint64(64 - shift))
    return append_ranks(window(ranks, 0, n), ranks, np.int64(0), worst), worst


@callee
def _in_order(ranks: Ranks, n: Index) -> bool:
    """Whether positions ascend."""
    falls = 0
    for i in range(1, n):
        falls += (ranks[i] & _POSITION) < (ranks[i - 1] & _POSITION)
    return falls == 0


@callee
def _sort_digit(ranks: Ranks, n: Index, shift: Index, bits: Index, out: Ranks, counts: Int64) -> None:
    """The ranks in order of one digit, those with the same one in the order in which they were."""
    below, mask = np.uint64(shift), np.uint64((1 << bits) - 1)
    for b in range(N_BINS):
        counts[b] = 0
    for i in range(n):
        counts[np.int64((ranks[i] >> below) & mask)] += 1
    start = np.int64(0)
    for b in range(N_BINS):
        start, counts[b] = start + counts[b], start
    for i in range(n):
        at = np.int64((ranks[i] >> below) & mask)
        out[counts[at]] = ranks[i]
        counts[at] += 1


@callee
def sort_ranks(ranks: Ranks, n: Index, scratch: Ranks, counts: Int64) -> None:
    """Sorts n ranks, digit by digit from the bottom; scratch (n,), counts (N_BINS,)."""
    differing = np.uint64(0)
    for i in range(n):
        differing |= ranks[i] ^ ranks[0]
    swapped = False
    for half in range(1 if _in_order(ranks, n) else 0, 2):
        for first in range(0, _HALF, _DIGIT):
            shift, bits = half * _HALF + first, min(_DIGIT, _HALF - first)
            if (differing >> np.uint64(shift)) & np.uint64((1 << bits) - 1):
                if swapped:
                    _sort_digit(scratch, n, shift, bits, ranks, counts)
                else:
                    _sort_digit(ranks, n, shift, bits, scratch, counts)
                swapped = not swapped
    if swapped:
        for i in range(n):
            ranks[i] = scratch[i]


@callee
def write_positions(ranks: Ranks, n: Index, out: Int32) -> None:
    """The positions of n ranks, and then -1."""
    for i in range(n):
        out[i] = np.int32(ranks[i] & _POSITION)
    for i in range(n, len(out)):
        out[i] = np.int32(-1)
