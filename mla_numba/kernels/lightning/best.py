"""The best keys of a token, of scores that come in any order and are never all kept.

A key is a rank: a uint64 whose upper half falls as the score rises, and whose lower half is the position. So ranks are
a total order, the best first: by score, then by position. -0.0 counts as 0.0, and a NaN comes before all numbers.

Ranks that may be among the k best are appended to a buffer. When it is full, all but about k are dropped, and from then
on only ranks below a bound come in. What is kept in the end does not depend on the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ..jit.callee import callee, inlined, overload_callee
from ..kinds import F32, Index, Real, Typed, Word
from ..micro.table import ISA
from ..scalars import bits_of_f32, window
from .chosen import can_append, declare_append
from .vector_code import call_vector_code

__all__ = [
    "BEGIN", "END", "SAMPLE", "Ranks", "append_ranks", "count_below", "extremes", "find_end", "guess_end", "keep_best",
    "rank_keys", "slack_of", "take_sample",
]  # fmt: skip

Ranks = NDArray[np.uint64]
BEGIN, END = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)  # all ranks are from here on and below there
SAMPLE = 1024  # ranks, and up to twice as many
_CAUTION = 2.5  # standard deviations
_HALF = 32
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


def append_ranks(more: Ranks, ranks: Ranks, n: Index, first: Word, end: Word) -> Index:
    """Appends to n ranks those of `more` from `first` on and below `end`; how many there are then.

    `more` may be ranks[i:] for i >= n.
    """
    return _append_by_stretches(more, ranks, n, first, end)


@callee
def _append_by_stretches(more: Ranks, ranks: Ranks, n: Index, first: Word, end: Word) -> Index:
    """Of a long sequence few keys are near. So _STRETCH of them are first compared at once."""
    for begin in range(0, len(more), _STRETCH):
        stretch = window(more, begin, min(np.int64(_STRETCH), len(more) - begin))
        if count_below(stretch, end):
            for j in range(len(stretch)):
                rank = stretch[j]
                ranks[n] = rank
                n += np.int64(first <= rank < end)
    return np.int64(n)


@overload_callee(append_ranks)
def _append_ranks(more: Typed, ranks: Typed, n: Typed, first: Typed, end: Typed) -> Any:
    if not can_append(ISA):
        return _append_by_stretches

    def simd(more: Ranks, ranks: Ranks, n: Index, first: Word, end: Word) -> Index:
        return _append_simd(more, np.int64(len(more)), np.uint64(first), np.uint64(end), ranks, np.int64(n))

    return simd


@intrinsic
def _append_simd(_typingctx: Any, more: Any, n: Any, first: Any, end: Any, ranks: Any, at: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_vector_code(context, builder, sig, args, declare_append)

    return types.int64(more, types.int64, types.uint64, types.uint64, ranks, types.int64), codegen


@callee
def count_below(ranks: Ranks, end: Word) -> Index:
    """How many ranks are below `end`."""
    n = np.int64(0)
    for i in range(len(ranks)):
        n += np.int64(ranks[i] < end)
    return n


@callee
def extremes(ranks: Ranks) -> tuple[Word, Word]:
    """The least and the most of some ranks, at least one."""
    least, most = ranks[0], ranks[0]
    for i in range(len(ranks)):
        least, most = min(least, ranks[i]), max(most, ranks[i])
    return least, most


@callee
def find_end(ranks: Ranks, k: Index, slack: Index) -> Word:
    """What k to k + slack of at least k ranks are below.

    It lies between two bounds whose distance is halved again and again: to compare all ranks, many at once, takes less
    than to sort them into bins.
    """
    least, most = extremes(ranks)
    low, high, n = np.uint64(least), np.uint64(most + np.uint64(1)), np.int64(len(ranks))
    while n - k > slack and low < high:
        middle = np.uint64(low + ((high - low) >> np.uint64(1)))
        n_below = count_below(ranks, middle)
        if n_below >= k:
            high, n = middle, n_below
        else:
            low = np.uint64(middle + np.uint64(1))
    return high


@callee
def take_sample(ranks: Ranks, step: Index, sample: Ranks, n: Index) -> Index:
    """Appends to the n ranks of a sample each step-th of some; how many there are then."""
    for i in range(step - 1, len(ranks), step):
        sample[n] = ranks[i]
        n += 1
    return np.int64(n)


@callee
def guess_end(sample: Ranks, n: Index, k: Index) -> Word:
    """What k of n ranks, and few more, are likely below, by a sample of them."""
    n = max(n, 1)
    share = len(sample) / n
    deviation = np.sqrt(k * share * (1 - k / n))
    wanted = np.int64(np.ceil(k * share + _CAUTION * deviation))
    return find_end(sample, wanted, np.int64(deviation)) if wanted < len(sample) else END


@callee
def slack_of(k: Index) -> Index:
    """How many ranks more than k may be kept: so many that what a sample says mostly is enough."""
    return k // 4


@callee
def keep_best(ranks: Ranks, n: Index, k: Index, slack: Index, sample: Ranks) -> tuple[Index, Word]:
    """Drops all but the k best of n >= k ranks, in their order, or keeps up to `slack` more.

    Returns how many there are then, and a bound that all of these, and no others, are below. sample (2 * SAMPLE,) is
    scratch.
    """
    every, step = window(ranks, 0, n), n // SAMPLE
    end, n_kept = END, np.int64(n)
    if step > 1:
        end = guess_end(window(sample, 0, take_sample(every, step, sample, np.int64(0))), n, k)
        n_kept = count_below(every, end)
    if n_kept < k or n_kept > k + slack:
        end = find_end(every, k, slack)
    return append_ranks(every, ranks, np.int64(0), BEGIN, end), end
