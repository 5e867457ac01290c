"""Keys, read from the cache and dequantised: as rows of A for the scores, as panels of B for the latents.

Where a cache holds codes in whole runs, vector code makes operands of them at once; else they are bits first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..isa import BY_COLUMN_REVERSED
from ..jit.callee import by_dtype, callee, inlined
from ..kinds import Bits, Index, Int64, Values, Words
from ..micro.table import ISA
from ..micro.ukernel import KR_BF16, NR
from ..prefetch import prefetch, prefetch_far
from ..row.operand import bf16_operand_row
from ..scalars import NONE_NONZERO, min_magnitude, pair_window, row_of, unowned, window
from .arguments import Work
from .dequantise import (
    HAS_ROWS,
    HAS_STEPS,
    N_SMALLEST,
    ROW_RUN,
    WILD,
    least_of_tame,
    row_of_bits,
    row_of_codes,
    step_of_codes,
)
from .pairs import interleave
from .slots import block_and_row
from .source import (
    N_SCALES,
    Columns,
    Source,
    ask_for,
    columns_of,
    copied,
    latent_bits,
    scale_of,
    source_of,
)

__all__ = ["Span", "ask_for_keys", "find_next", "key_panels", "key_rows", "next_columns", "next_rows"]

_AHEAD = 8  # keys that are asked for while others are dequantised


class Span(NamedTuple):
    """Places first..first+n of a token's list."""

    token: Index
    first: Index
    n: Index


@inlined
def _find_one(work: Work, span: Span, i: Index) -> tuple[Index, Index, Index]:
    """Where key i of a span begins: in kv, in kr, and its scales in k_scale."""
    lists, caches = work.lists, work.caches
    kv, kr, k_scale = caches.kv.layout, caches.kr.layout, caches.k_scale.layout
    if lists.dense:
        size, position = np.int64(lists.block_size), np.int64(span.first + i)
        at = lists.sequences[span.token] * lists.block_table.shape[1] + position // size
        block, row = window(lists.block_table, at, 1)[0], position % size
    else:
        slot = window(lists.slots, span.token * lists.slots.shape[1] + span.first + i, 1)[0]
        block, row = block_and_row(slot, lists.row_bits)
    return block * kv[1] + row * kv[4], block * kr[1] + row * kr[4], block * k_scale[1] + row * k_scale[4]


@callee
def _find(work: Work, span: Span, bases: Int64) -> None:
    """Where the keys of a span begin, (3, n) flat: in kv, in kr, and their scales in k_scale."""
    for i in range(span.n):
        bases[i], bases[span.n + i], bases[2 * span.n + i] = _find_one(work, span, i)


@inlined
def _bases(work: Work, worker: Index, half: Index) -> Int64:
    """A worker's bases: half 0 those of the span at work, half 1 those of the one that comes next."""
    held = row_of(work.round.scratch.bases, worker)
    n = len(held) // 2
    return window(held, half * n, n)


@callee
def find_next(work: Work, span: Span, worker: Index) -> None:
    """Finds the keys of a span, for which `ask_for_keys` asks, some at a time."""
    _find(work, span, _bases(work, worker, np.int64(1)))


@inlined
def _ask_for_scales(source: Source, at: Index) -> None:
    prefetch_far(source.scales, at, np.int64(N_SCALES))


@inlined
def _ask_for_no_scales(source: Source, at: Index) -> None:
    pass


@by_dtype("source.latents", {np.int8: _ask_for_scales}, otherwise=_ask_for_no_scales, inline=True)
def _ask_for_scales_of(source: Source, at: Index) -> None:
    """Asks for the scales from `at` on, where there are any."""


class Next(NamedTuple):
    """The n keys that `find_next` found, and what is asked for of each: n_latent and n_rope elements, scales.

    at: where the latent's elements begin, counted from the key's base.
    """

    n: Index
    source: Source
    at: Index
    n_latent: Index
    ropes: Values
    n_rope: Index
    bases: Int64


@inlined
def next_rows(work: Work, worker: Index, n: Index) -> Next:
    """Keys of which `key_rows` takes all."""
    columns, rope = columns_of(work, np.int64(0), work.latent.shape[2]), np.int64(work.round.queries.rope.shape[2])
    return Next(
        n, source_of(work), columns.at, min(columns.n, columns.left_in_run), unowned(work.caches.kr.flat),
        min(rope, work.caches.kr.layout[2]), _bases(work, worker, np.int64(1)),
    )  # fmt: skip


@inlined
def next_columns(work: Work, worker: Index, n: Index, first: Index, n_cols: Index) -> Next:
    """Keys of which `key_panels` takes some columns."""
    columns = columns_of(work, first, n_cols)
    return Next(
        n, source_of(work), columns.at, min(columns.n, columns.left_in_run), unowned(work.caches.kr.flat),
        np.int64(0), _bases(work, worker, np.int64(1)),
    )  # fmt: skip


@inlined
def ask_for_keys(keys: Next, first: Index, end: Index) -> None:
    """Asks for keys first..end, which are read some microseconds later."""
    for i in range(first, end):
        prefetch_far(keys.source.latents, keys.bases[i] + keys.at, keys.n_latent)
        if keys.n_rope > 0:
            prefetch_far(keys.ropes, keys.bases[keys.n + i], keys.n_rope)
        _ask_for_scales_of(keys.source, keys.bases[2 * keys.n + i])


@inlined
def _whole_codes(source: Source, columns: Columns, unit: Index, has: bool) -> bool:
    return (
        has and source.c0 % unit == 0 and source.group % unit == 0 and columns.n % unit == 0
        and columns.left_in_run % unit == 0 and columns.left_in_group % unit == 0
    )  # fmt: skip


@inlined
def _whole_values(source: Source, columns: Columns, unit: Index, has: bool) -> bool:
    return source.c0 % unit == 0 and columns.n % unit == 0 and columns.left_in_run % unit == 0


@by_dtype("source.latents", {np.int8: _whole_codes}, otherwise=_whole_values, inline=True)
def _whole(source: Source, columns: Columns, unit: Index, has: bool) -> Any:
    """Whether columns fall into runs of `unit` elements, side by side and of one scale, and there is code for codes."""


@inlined
def _least_tame(source: Source, scales: Index, columns: Columns) -> Index:
    least, at = NONE_NONZERO, scales + columns.group
    for _ in range(-(source.group - columns.left_in_group), columns.n, source.group):
        least, at = min(least, least_of_tame(scale_of(window(source.scales, at, 1)[0]))), at + 1
    return np.int32(least)


@inlined
def _row_of_codes(source: Source, base: Index, scales: Index, columns: Columns, out: Values) -> Index:
    least = _least_tame(source, scales, columns)
    if least < 0:
        return WILD
    at, of_run, of_group = base + columns.at, columns.left_in_run, columns.left_in_group
    scale_at, c = scales + columns.group, np.int64(0)
    while c < columns.n:
        run = min(min(of_run, of_group), columns.n - c)
        scale = scale_of(window(source.scales, scale_at, 1)[0])
        row_of_codes(window(source.latents, at, run), scale, window(out, c, run))
        c, at, of_run, of_group = c + run, at + run, of_run - run, of_group - run
        if of_run == 0:
            at, of_run = at + source.stride - source.c0, source.c0
        if of_group == 0:
            scale_at, of_group = scale_at + 1, source.group
    return least


@inlined
def _operands(values: Bits, c0: Index, stride: Index, at: Index, n: Index, out: Values) -> Index:
    """n elements in runs of c0 as elements of a row of A, whole steps of KR; returns their `min_magnitude`."""
    least, c = NONE_NONZERO, np.int64(0)
    while c < n:
        run = min(c0, n - c)
        given = window(values, at, run)
        least = min(least, min_magnitude(given))
        bf16_operand_row(given, 1, window(out, c, run if c + run < n else len(out) - c))
        c, at = c + run, at + stride
    return np.int32(least)


@inlined
def _row_of_values(source: Source, base: Index, scales: Index, columns: Columns, out: Values) -> Index:
    out = window(out, 0, columns.n)
    return _operands(source.latents, source.c0, source.stride, base + columns.at, columns.n, out)


@by_dtype("source.latents", {np.int8: _row_of_codes}, otherwise=_row_of_values, inline=True)
def _row(source: Source, base: Index, scales: Index, columns: Columns, out: Values) -> Index:
    """A latent as elements of a row of A; returns at most their `min_magnitude`, or WILD and has done nothing."""


@inlined
def _no_smallest(work: Work, worker: Index) -> Words:
    """Where `row_of_bits` keeps the smallest magnitudes of a span, of which there are none yet."""
    smallest = window(row_of(work.round.scratch.words, worker), 0, N_SMALLEST)
    for i in range(N_SMALLEST):
        smallest[i] = np.uint32(0xFFFFFFFF)
    return smallest


@callee
def _least_of(smallest: Words) -> Index:
    """The `min_magnitude` of what `row_of_bits` was given."""
    least = np.int64(0xFFFF)
    for i in range(N_SMALLEST):
        word = np.int64(smallest[i])
        least = min(least, min(word & np.int64(0xFFFF), word >> 16))
    return np.int32(min(least + 1, np.int64(NONE_NONZERO)))


@callee
def key_rows(work: Work, span: Span, worker: Index, rows: Values, lda: Index) -> Index:
    """The keys of a span, latent and rope part, as rows of A `lda` apart; returns at most their `min_magnitude`."""
    latent, rope = work.latent.shape[2], work.round.queries.rope.shape[2]
    kp = (latent + rope + KR_BF16 - 1) // KR_BF16 * KR_BF16
    source, least = source_of(work), NONE_NONZERO
    ropes, rope_c0, rope_stride = unowned(work.caches.kr.flat), work.caches.kr.layout[2], work.caches.kr.layout[3]
    bits, bases = row_of(work.round.scratch.bits, worker), _bases(work, worker, np.int64(0))
    columns = columns_of(work, np.int64(0), latent)
    whole = _whole(source, columns, np.int64(ROW_RUN), HAS_ROWS) and (rope_c0 % KR_BF16 == 0 or rope <= rope_c0)
    _find(work, span, bases)
    kv, kr, scales = window(bases, 0, span.n), window(bases, span.n, span.n), window(bases, 2 * span.n, span.n)
    of_latent, of_rope = window(bits, 0, latent), window(bits, latent, rope)
    whole_rope, smallest = HAS_ROWS and rope % ROW_RUN == 0 and 0 < rope <= rope_c0, _no_smallest(work, worker)
    for i in range(span.n):
        ahead = min(i + _AHEAD, span.n - 1)
        ask_for(source, kv[ahead], scales[ahead], columns)
        prefetch(ropes, kr[ahead], min(rope_c0, rope))
        row, of_key = window(rows, i * lda, kp), WILD
        if whole:
            of_key = _row(source, kv[i], scales[i], columns, row)
        if of_key >= 0:
            least = min(least, of_key)
            if whole_rope:
                row_of_bits(window(ropes, kr[i], rope), window(row, latent, rope), smallest)
                continue
            least = min(least, _operands(ropes, rope_c0, rope_stride, kr[i], rope, window(row, latent, kp - latent)))
        else:
            least = min(least, latent_bits(source, kv[i], scales[i], columns, of_latent))
            least = min(least, copied(ropes, rope_c0, rope_stride, kr[i], rope_c0, of_rope))
            bf16_operand_row(window(bits, 0, latent + rope), 1, row)
    return np.int32(min(least, _least_of(smallest)))


@inlined
def _two_in_words(even: Bits, odd: Bits, out: Bits) -> None:
    interleave(even, odd, pair_window(out, 0, NR))


_PLACES = ISA.places(is_int8=False)


@inlined
def _two_in_places(even: Bits, odd: Bits, out: Bits) -> None:
    for j in range(NR):
        out[_PLACES[0, j]] = even[j]
        out[_PLACES[-1, j]] = odd[j]


# A step of two rows of a panel's NR columns.
_two = _two_in_words if ISA.bf16_order is BY_COLUMN_REVERSED and KR_BF16 == 2 else _two_in_places


@inlined
def _step(bits: Bits, ld: Index, panel: Index, out: Bits) -> None:
    """A step of a panel: KR rows of bits, ld apart, of which it takes NR columns."""
    first, last = panel * NR, (KR_BF16 - 1) * ld + panel * NR
    _two(window(bits, first, NR), window(bits, last, NR), out)


class Pair(NamedTuple):
    """Two keys, one after the other in a list: where their latents and their scales begin."""

    even: Index
    odd: Index
    scales_even: Index
    scales_odd: Index


@inlined
def _steps_of_codes(source: Source, pair: Pair, columns: Columns, panels: Bits, at: Index, stride: Index) -> Index:
    least = min(_least_tame(source, pair.scales_even, columns), _least_tame(source, pair.scales_odd, columns))
    if least < 0:
        return WILD
    begin, of_run, of_group = columns.at, columns.left_in_run, columns.left_in_group
    group, c = columns.group, np.int64(0)
    while c < columns.n:
        run = min(min(of_run, of_group), columns.n - c)
        even, odd = (
            window(source.latents, pair.even + begin, run), window(source.latents, pair.odd + begin, run)
        )  # fmt: skip
        of_even = scale_of(window(source.scales, pair.scales_even + group, 1)[0])
        of_odd = scale_of(window(source.scales, pair.scales_odd + group, 1)[0])
        step_of_codes(even, of_even, odd, of_odd, panels, at + c // NR * stride, stride)
        c, begin, of_run, of_group = c + run, begin + run, of_run - run, of_group - run
        if of_run == 0:
            begin, of_run = begin + source.stride - source.c0, source.c0
        if of_group == 0:
            group, of_group = group + 1, source.group
    return np.int32(least)


@inlined
def _steps_of_values(source: Source, pair: Pair, columns: Columns, panels: Bits, at: Index, stride: Index) -> Index:
    least, begin, of_run = NONE_NONZERO, columns.at, columns.left_in_run
    for c in range(0, columns.n, NR):
        even = window(source.latents, pair.even + begin, NR)
        odd = window(source.latents, pair.odd + begin, NR)
        least = min(least, min(min_magnitude(even), min_magnitude(odd)))
        _two(even, odd, window(panels, at + c // NR * stride, KR_BF16 * NR))
        begin, of_run = begin + NR, of_run - NR
        if of_run == 0:
            begin, of_run = begin + source.stride - source.c0, source.c0
    return np.int32(least)


@by_dtype("source.latents", {np.int8: _steps_of_codes}, otherwise=_steps_of_values, inline=True)
def _steps(source: Source, pair: Pair, columns: Columns, panels: Bits, at: Index, stride: Index) -> Index:
    """A step of whole panels of two keys, to panels[at:] and `stride` on; as `_row`."""


@inlined
def _any_steps(source: Source, kv: Int64, scales: Int64, columns: Columns, bits: Bits) -> Index:
    """KR rows of bits, of as many keys as there are, and zeros; returns at most their `min_magnitude`."""
    ld, least = (columns.n + NR - 1) // NR * NR, NONE_NONZERO
    for r in range(KR_BF16):
        row = window(bits, r * ld, columns.n)
        if r < len(kv):
            least = min(least, latent_bits(source, kv[r], scales[r], columns, row))
        else:
            for c in range(columns.n):
                row[c] = 0
    return np.int32(least)


@callee
def key_panels(work: Work, span: Span, first: Index, n_cols: Index, worker: Index) -> Index:
    """Columns first..first+n_cols of the latents of a span as panels of B, one `cut.depth` * NR behind the other.

    Returns at most their `min_magnitude`. Columns are padded to NR and places to KR by zeros.
    """
    depth, least = work.round.cut.depth, NONE_NONZERO
    ld = (n_cols + NR - 1) // NR * NR
    scratch, source = work.round.scratch, source_of(work)
    bits, panels = row_of(scratch.bits, worker), row_of(scratch.panels, worker)
    bases = _bases(work, worker, np.int64(0))
    columns = columns_of(work, first, n_cols)
    whole = KR_BF16 == 2 and _whole(source, columns, np.int64(NR), HAS_STEPS)
    _find(work, span, bases)
    kv, scales = window(bases, 0, span.n), window(bases, 2 * span.n, span.n)
    for c in range(KR_BF16 * ld):
        bits[c] = 0
    for i in range(0, span.n, KR_BF16):
        for r in range(min(np.int64(KR_BF16), span.n - i)):
            ahead = min(i + r + _AHEAD, span.n - 1)
            ask_for(source, kv[ahead], scales[ahead], columns)
        of_step = WILD
        if whole and i + 1 < span.n:
            pair = Pair(kv[i], kv[i + 1], scales[i], scales[i + 1])
            of_step = _steps(source, pair, columns, panels, np.int64(i * NR), depth * NR)
        if of_step < 0:
            of_step = _any_steps(source, window(kv, i, span.n - i), window(scales, i, span.n - i), columns, bits)
            for panel in range(ld // NR):
                _step(bits, ld, panel, window(panels, (panel * depth + i) * NR, KR_BF16 * NR))
        least = min(least, of_step)
    return np.int32(least)
