"""Where a cache row lies, and which token may write it: ScatterUpdate_kvCache, _krCache, _kScaleCache.

Element c of slot s lies at `(s // BS) * block_stride + (c // c0) * chunk_stride + (s % BS) * slot_stride + c % c0`:

| cache_mode | c0                          | chunk_stride | slot_stride |
|------------|-----------------------------|--------------|-------------|
| PA_BSND    | d (a row is one chunk)      | any          | d           |
| PA_NZ      | 32 bytes of elements        | BS * c0      | c0          |

`layout` is int64 [block_size, block_stride, c0, chunk_stride, slot_stride], all in elements.
"""

from __future__ import annotations

from typing import NamedTuple

from ..jit.callee import callee
from ..kinds import F32, Index, Int64, Real, Values
from ..scalars import window
from .rmsnorm_quant import quant_row


class Slots(NamedTuple):
    """A cache's array: all its elements as they lie in memory, flat, and the layout."""

    flat: Values
    layout: Int64


@callee
def slot_base(layout: Int64, slot: Index) -> Index:
    """The flat position of element 0 of a slot."""
    return slot // layout[0] * layout[1] + slot % layout[0] * layout[4]


@callee
def is_last(cache_index: Int64, token: Index) -> bool:
    """Whether no later token names the same slot. It makes the later one win whichever thread writes first.

    A count over all later tokens, without an early way out, so that it is a loop of vector compares.
    """
    slot = cache_index[token]
    later = window(cache_index, token + 1, len(cache_index) - token - 1)
    n_later = 0
    for i in range(len(later)):
        n_later += later[i] == slot
    return n_later == 0


@callee
def chunk_at(layout: Int64, base: Index, element: Index) -> tuple[Index, Index]:
    """Where elements element, element + 1, ... of the slot at `base` lie, and how many of them side by side."""
    c0 = layout[2]
    within = element % c0
    return base + element // c0 * layout[3] + within, c0 - within


@callee
def write_codes(y: F32, s: Real, cache: Slots, slot: Index, first: Index) -> None:
    """The codes rint(y * s) to elements first, first + 1, ... of a slot."""
    base, done = slot_base(cache.layout, slot), 0
    while done < len(y):
        at, room = chunk_at(cache.layout, base, first + done)
        n = min(room, len(y) - done)
        quant_row(window(y, done, n), s, window(cache.flat, at, n))
        done += n
