"""Keys, read from the cache and dequantised: as rows of A for the scores, as panels of B for the latents.

key[c] = bf16(float32(code[c]) * scale[c // group]) of an int8 cache; of a bf16 one, and of the rope part, as it is
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..isa import BY_COLUMN_REVERSED
from ..jit.callee import by_dtype, callee, inlined
from ..kinds import Bits, Index, Int64, Real, Values, Word
from ..micro.table import ISA
from ..micro.ukernel import KR_BF16, NR
from ..row.operand import bf16_operand_row
from ..row.scatter import chunk_at
from ..scalars import (
    NONE_NONZERO,
    bits_of_f32,
    f32_of_bits,
    min_magnitude,
    pair_window,
    round_bf16,
    row_of,
    unowned,
    window,
)
from .arguments import Work
from .pairs import interleave
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


class Columns(NamedTuple):
    """n columns of a latent from its element `at` on, and what is left of the first one's run and scale group."""

    at: Index
    n: Index
    left_in_run: Index
    group: Index
    left_in_group: Index


class Source(NamedTuple):
    """A cache's latents, flat, in runs of c0 elements `stride` apart; and their scales, one for `group` elements."""

    latents: Values
    scales: Values
    c0: Index
    stride: Index
    group: Index


@inlined
def _source(work: Work) -> Source:
    layout = work.caches.kv.layout
    latents, scales = unowned(work.caches.kv.flat), unowned(work.caches.k_scale.flat)
    return Source(latents, scales, layout[2], layout[3], np.int64(work.group))


@inlined
def _columns(work: Work, first: Index, n: Index) -> Columns:
    group = np.int64(work.group)
    at, left = chunk_at(work.caches.kv.layout, np.int64(0), np.int64(first))
    return Columns(at, np.int64(n), left, first // group, group - first % group)


@callee
def _find(work: Work, span: Span, bases: Int64) -> None:
    """Where the keys of a span begin, (3, n) flat: in kv, in kr, and their scales in k_scale."""
    lists, caches = work.lists, work.caches
    kv, kr, k_scale = caches.kv.layout, caches.kr.layout, caches.k_scale.layout
    size, k = np.int64(lists.block_size), lists.positions.shape[1]
    width = lists.block_table.shape[1]
    blocks = window(lists.block_table, lists.sequences[span.token] * width, width)
    for i in range(span.n):
        position = np.int64(span.first + i)
        if not lists.dense:
            position = np.int64(window(lists.positions, span.token * k + span.first + i, 1)[0])
        block, row = blocks[position // size], position % size
        bases[i] = block * kv[1] + row * kv[4]
        bases[span.n + i] = block * kr[1] + row * kr[4]
        bases[2 * span.n + i] = block * k_scale[1] + row * k_scale[4]


@inlined
def _of_f16(bits: Word) -> Real:
    """The float32 of an fp16 given as uint16 bits: its exponent's bias is 112 less."""
    wide = np.uint32(bits)
    size = np.uint32(np.uint32(wide & np.uint32(0x7FFF)) << np.uint32(13))
    value = f32_of_bits(size) * np.float32(2.0**112)
    if np.uint32(wide & np.uint32(0x7C00)) == np.uint32(0x7C00):
        value = f32_of_bits(np.uint32(size | _NO_EXPONENT))
    return -value if wide >= np.uint32(0x8000) else value


@inlined
def _of_f32(value: Real) -> Real:
    return np.float32(value)


@by_dtype("value", {np.uint16: _of_f16}, otherwise=_of_f32, inline=True)
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


@inlined
def _dequantised(source: Source, base: Index, scales: Index, columns: Columns, out: Bits) -> Index:
    c0, group = source.c0, source.group
    at, of_run, of_group, scale_at = (
        base + columns.at,
        columns.left_in_run,
        columns.left_in_group,
        scales + columns.group,
    )
    least, c = NONE_NONZERO, np.int64(0)
    while c < columns.n:
        run = min(min(of_run, of_group), columns.n - c)
        scale = _scale_of(window(source.scales, scale_at, 1)[0])
        _scaled(window(source.latents, at, run), scale, window(out, c, run))
        if scale != np.float32(0):  # a code is 0 or at least 1
            least = min(least, max(np.int32(np.int32(round_bf16(scale)) & np.int32(0x7FFF)), np.int32(1)))
        c, at, of_run, of_group = c + run, at + run, of_run - run, of_group - run
        if of_run == 0:
            at, of_run = at + source.stride - c0, c0
        if of_group == 0:
            scale_at, of_group = scale_at + 1, group
    return np.int32(least)


@inlined
def _copied(values: Bits, c0: Index, stride: Index, at: Index, of_run: Index, out: Bits) -> Index:
    """Elements from `at` on, of which `of_run` come before the next run; returns their `min_magnitude`."""
    c = np.int64(0)
    while c < len(out):
        run = min(of_run, len(out) - c)
        given, taken = window(values, at, run), window(out, c, run)
        for j in range(run):
            taken[j] = given[j]
        c, at, of_run = c + run, at + of_run + stride - c0, c0
    return min_magnitude(out)


@inlined
def _as_they_are(source: Source, base: Index, scales: Index, columns: Columns, out: Bits) -> Index:
    return _copied(source.latents, source.c0, source.stride, base + columns.at, columns.left_in_run, out)


@by_dtype("source.latents", {np.int8: _dequantised}, otherwise=_as_they_are, inline=True)
def _latent(source: Source, base: Index, scales: Index, columns: Columns, out: Bits) -> Index:
    """Columns of the latent that begins at `base`, with scales from `scales` on; returns at most `min_magnitude`."""


@inlined
def _ask_for_codes(source: Source, base: Index, scales: Index, columns: Columns) -> None:
    prefetch(source.latents, base + columns.at, min(columns.n, columns.left_in_run))
    prefetch(source.scales, scales, np.int64(N_SCALES))


@inlined
def _ask_for_values(source: Source, base: Index, scales: Index, columns: Columns) -> None:
    prefetch(source.latents, base + columns.at, min(columns.n, columns.left_in_run))


@by_dtype("source.latents", {np.int8: _ask_for_codes}, otherwise=_ask_for_values, inline=True)
def _ask_for(source: Source, base: Index, scales: Index, columns: Columns) -> None:
    """Asks for the first run of some columns of a latent, and for its scales."""


@callee
def key_rows(work: Work, span: Span, worker: Index, rows: Values, lda: Index) -> Index:
    """The keys of a span, latent and rope part, as rows of A `lda` apart; returns at most their `min_magnitude`."""
    latent, rope = work.latent.shape[2], work.round.queries.rope.shape[2]
    kp = (latent + rope + KR_BF16 - 1) // KR_BF16 * KR_BF16
    source, least = _source(work), NONE_NONZERO
    ropes, rope_c0, rope_stride = unowned(work.caches.kr.flat), work.caches.kr.layout[2], work.caches.kr.layout[3]
    bits, bases = row_of(work.round.scratch.bits, worker), row_of(work.round.scratch.bases, worker)
    columns = _columns(work, np.int64(0), latent)
    _find(work, span, bases)
    kv, kr, scales = window(bases, 0, span.n), window(bases, span.n, span.n), window(bases, 2 * span.n, span.n)
    of_latent, of_rope = window(bits, 0, latent), window(bits, latent, rope)
    for i in range(span.n):
        ahead = min(i + _AHEAD, span.n - 1)
        _ask_for(source, kv[ahead], scales[ahead], columns)
        prefetch(ropes, kr[ahead], min(rope_c0, rope))
        least = min(least, _latent(source, kv[i], scales[i], columns, of_latent))
        least = min(least, _copied(ropes, rope_c0, rope_stride, kr[i], rope_c0, of_rope))
        bf16_operand_row(window(bits, 0, latent + rope), 1, window(rows, i * lda, kp))
    return np.int32(least)


@inlined
def _in_words(bits: Bits, ld: Index, panel: Index, out: Bits) -> None:
    interleave(window(bits, panel * NR, NR), window(bits, ld + panel * NR, NR), pair_window(out, 0, NR))


_PLACES = ISA.places(is_int8=False)


@inlined
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
    depth, least = work.round.cut.depth, NONE_NONZERO
    n_panels = (n_cols + NR - 1) // NR
    ld = n_panels * NR
    scratch, source = work.round.scratch, _source(work)
    bits, panels, bases = row_of(scratch.bits, worker), row_of(scratch.panels, worker), row_of(scratch.bases, worker)
    columns = _columns(work, first, n_cols)
    _find(work, span, bases)
    kv, scales = window(bases, 0, span.n), window(bases, 2 * span.n, span.n)
    for c in range(KR_BF16 * ld):
        bits[c] = 0
    for i in range(0, span.n, KR_BF16):
        for r in range(KR_BF16):
            row = window(bits, r * ld, n_cols)
            if i + r < span.n:
                ahead = min(i + r + _AHEAD, span.n - 1)
                _ask_for(source, kv[ahead], scales[ahead], columns)
                least = min(least, _latent(source, kv[i + r], scales[i + r], columns, row))
            else:
                for c in range(n_cols):
                    row[c] = 0
        for panel in range(n_panels):
            _step(bits, ld, panel, window(panels, (panel * depth + i) * NR, KR_BF16 * NR))
    return np.int32(least)
