"""Keys, read from the cache and dequantised: as rows of A for the scores, as panels of B for the latents.

    key[c] = bf16(float32(code[c]) * scale[c // group]) of an int8 cache; of a bf16 one, and of the rope part, as it is
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..isa import BY_COLUMN_REVERSED
from ..jit.callee import by_dtype, callee
from ..kinds import Bits, Index, Int64, Real, Values, Word
from ..micro.table import ISA
from ..micro.ukernel import KR_BF16, NR
from ..row.operand import bf16_operand_row
from ..row.scatter import Slots, chunk_at, slot_base
from ..scalars import (
    NONE_NONZERO,
    as_f32,
    bits_of_f32,
    f32_of_bits,
    min_magnitude,
    pair_window,
    round_bf16,
    row_of,
    window,
)
from .arguments import Caches, Lists, Work
from .prefetch import prefetch

__all__ = ["Span", "key_panels", "key_rows"]

N_SCALES = 4
_AHEAD = 8  # keys that are asked for while others are dequantised
_NO_EXPONENT = np.uint32(0x7F800000)


class Span(NamedTuple):
    """Places first..first+n of a token's list."""

    token: Index
    first: Index
    n: Index


@callee
def _slot_of(lists: Lists, token: Index, place: Index) -> Index:
    """The slot of the key at a place of a token's list."""
    position = np.int64(place)
    if not lists.dense:
        position = np.int64(window(lists.positions, token * lists.positions.shape[1] + place, 1)[0])
    row, size = lists.sequences[token], np.int64(lists.block_size)
    block = window(lists.block_table, row * lists.block_table.shape[1] + position // size, 1)[0]
    return block * size + position % size


@callee
def _of_f16(bits: Word) -> Real:
    """The float32 of an fp16 given as uint16 bits: its exponent's bias is 112 less."""
    wide = np.uint32(bits)
    size = np.uint32(np.uint32(wide & np.uint32(0x7FFF)) << np.uint32(13))
    value = f32_of_bits(size) * np.float32(2.0**112)
    if np.uint32(wide & np.uint32(0x7C00)) == np.uint32(0x7C00):
        value = f32_of_bits(np.uint32(size | _NO_EXPONENT))
    return -value if wide >= np.uint32(0x8000) else value


@callee
def _of_f32(value: Real) -> Real:
    return np.float32(value)


@by_dtype("value", {np.uint16: _of_f16}, otherwise=_of_f32)
def _scale_of(value: Real) -> Real:
    """A scale as float32."""


@callee
def _scaled(codes: Values, scale: Real, out: Bits) -> None:
    """out = bf16(codes * scale); only a scale that is Inf or NaN makes a NaN."""
    if np.uint32(bits_of_f32(scale) & _NO_EXPONENT) == _NO_EXPONENT:
        for j in range(len(codes)):
            out[j] = round_bf16(np.float32(np.float32(codes[j]) * scale))
    else:
        for j in range(len(codes)):
            bits = bits_of_f32(np.float32(np.float32(codes[j]) * scale))
            odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            out[j] = np.uint16(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))


@callee
def _dequantised(caches: Caches, group: Index, slot: Index, first: Index, out: Bits) -> Index:
    layout, end = caches.kv.layout, first + len(out)
    base, scales = slot_base(layout, slot), slot_base(caches.k_scale.layout, slot)
    least, c = NONE_NONZERO, np.int64(first)
    while c < end:
        at, run = chunk_at(layout, base, c)
        run = min(run, group - c % group, end - c)
        scale = _scale_of(window(caches.k_scale.flat, scales + c // group, 1)[0])
        _scaled(window(caches.kv.flat, at, run), scale, window(out, c - first, run))
        if scale != np.float32(0):  # a code is 0 or at least 1
            least = min(least, max(np.int32(np.int32(round_bf16(scale)) & np.int32(0x7FFF)), np.int32(1)))
        c += run
    return np.int32(least)


@callee
def _copied(layout: Values, flat: Bits, slot: Index, first: Index, out: Bits) -> Index:
    base, end, c = slot_base(layout, slot), first + len(out), np.int64(first)
    while c < end:
        at, run = chunk_at(layout, base, c)
        run = min(run, end - c)
        values, taken = window(flat, at, run), window(out, c - first, run)
        for j in range(run):
            taken[j] = values[j]
        c += run
    return min_magnitude(out)


@callee
def _copied_latent(caches: Caches, group: Index, slot: Index, first: Index, out: Bits) -> Index:
    return _copied(caches.kv.layout, caches.kv.flat, slot, first, out)


@by_dtype("caches.kv.flat", {np.int8: _dequantised}, otherwise=_copied_latent)
def _latent(caches: Caches, group: Index, slot: Index, first: Index, out: Bits) -> Index:
    """Elements first, first + 1, ... of a slot's latent to `out`; returns at most their `min_magnitude`."""


@callee
def _find_slots(lists: Lists, span: Span, slots: Int64) -> None:
    """slots[i]: that of the key at place first + i."""
    for i in range(span.n):
        slots[i] = _slot_of(lists, span.token, span.first + i)


@callee
def _scales_asked_for(caches: Caches, slot: Index) -> None:
    prefetch(caches.k_scale.flat, slot_base(caches.k_scale.layout, slot), N_SCALES)


@callee
def _nothing_asked_for(caches: Caches, slot: Index) -> None:
    pass


@by_dtype("caches.kv.flat", {np.int8: _scales_asked_for}, otherwise=_nothing_asked_for)
def _ask_for_scales(caches: Caches, slot: Index) -> None:
    """Asks for the scales of a slot, where there are any."""


@callee
def _ask_for(slots: Slots, slot: Index, first: Index, n: Index) -> None:
    """Asks for elements first..first+n of a slot, where these lie side by side."""
    at, run = chunk_at(slots.layout, slot_base(slots.layout, slot), first)
    prefetch(slots.flat, at, min(n, run))


@callee
def key_rows(work: Work, span: Span, worker: Index, rows: Values, lda: Index) -> Index:
    """The keys of a span, latent and rope part, as rows of A `lda` apart; returns at most their `min_magnitude`."""
    latent, rope = work.latent.shape[2], work.queries.rope.shape[2]
    kp = (latent + rope + KR_BF16 - 1) // KR_BF16 * KR_BF16
    caches, least = work.caches, NONE_NONZERO
    bits, slots = row_of(work.scratch.bits, worker), row_of(work.scratch.slots, worker)
    _find_slots(work.lists, span, slots)
    for i in range(span.n):
        slot = slots[i]
        if i + _AHEAD < span.n:
            _ask_for(caches.kv, slots[i + _AHEAD], np.int64(0), latent)
            _ask_for(caches.kr, slots[i + _AHEAD], np.int64(0), rope)
            _ask_for_scales(caches, slots[i + _AHEAD])
        least = min(least, _latent(caches, work.group, slot, np.int64(0), window(bits, 0, latent)))
        least = min(least, _copied(caches.kr.layout, caches.kr.flat, slot, np.int64(0), window(bits, latent, rope)))
        bf16_operand_row(window(bits, 0, latent + rope), 1, window(rows, i * lda, kp))
    return np.int32(least)


@callee
def _in_words(bits: Bits, ld: Index, panel: Index, out: Bits) -> None:
    even, odd, words = window(bits, panel * NR, NR), window(bits, ld + panel * NR, NR), pair_window(out, 0, NR)
    for j in range(NR):
        words[j] = np.uint32(np.uint32(odd[j]) | np.uint32(np.uint32(even[j]) << np.uint32(16)))


_PLACES = ISA.places(is_int8=False)


@callee
def _in_places(bits: Bits, ld: Index, panel: Index, out: Bits) -> None:
    for r in range(KR_BF16):
        row = window(bits, r * ld + panel * NR, NR)
        for j in range(NR):
            out[_PLACES[r, j]] = row[j]


# A step of a panel: KR rows of bits, ld apart, of which it takes NR columns.
_step = _in_words if ISA.bf16_order is BY_COLUMN_REVERSED and KR_BF16 == 2 else _in_places


@callee
def key_panels(work: Work, span: Span, first: Index, n_cols: Index, worker: Index) -> Index:
    """Columns first..first+n_cols of the latents of a span as panels of B, one `cut.depth` * NR behind the other.

    Returns at most their `min_magnitude`. Columns are padded to NR and places to KR by zeros.
    """
    depth, least = work.cut.depth, NONE_NONZERO
    n_panels = (n_cols + NR - 1) // NR
    ld = n_panels * NR
    scratch, caches = work.scratch, work.caches
    bits, panels, slots = row_of(scratch.bits, worker), row_of(scratch.panels, worker), row_of(scratch.slots, worker)
    _find_slots(work.lists, span, slots)
    for c in range(KR_BF16 * ld):
        bits[c] = 0
    for i in range(0, span.n, KR_BF16):
        for r in range(KR_BF16):
            row = window(bits, r * ld, n_cols)
            if i + r < span.n:
                if i + r + _AHEAD < span.n:
                    _ask_for(caches.kv, slots[i + r + _AHEAD], first, n_cols)
                    _ask_for_scales(caches, slots[i + r + _AHEAD])
                least = min(least, _latent(caches, work.group, slots[i + r], first, row))
            else:
                for c in range(n_cols):
                    row[c] = 0
        for panel in range(n_panels):
            _step(bits, ld, panel, window(panels, (panel * depth + i) * NR, KR_BF16 * NR))
    return np.int32(least)
