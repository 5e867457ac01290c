"""Keys, read from the cache and dequantised, as rows of A for the scores.

Where a cache holds codes in whole runs, vector code makes operands of them at once; else they are bits first.
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import by_dtype, callee, inlined
from ..kinds import Bits, Index, Values, Words
from ..micro.ukernel import KR_BF16
from ..prefetch import prefetch
from ..row.operand import bf16_operand_row
from ..scalars import NONE_NONZERO, min_magnitude, row_of, unowned, window
from .arguments import Work
from .dequantise import HAS_ROWS, N_SMALLEST, ROW_RUN, WILD, row_of_bits, row_of_codes
from .find import AHEAD, Span, bases_of, find_keys
from .runs import fall_in_runs, least_of_all
from .source import Columns, Source, ask_for, columns_of, copied, latent_bits, scale_of, source_of

__all__ = ["key_rows"]


@inlined
def _row_of_codes(source: Source, base: Index, scales: Index, columns: Columns, out: Values) -> Index:
    least = least_of_all(source, scales, columns)
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
    bits, bases = row_of(work.round.scratch.bits, worker), bases_of(work, worker, np.int64(0))
    columns = columns_of(work, np.int64(0), latent)
    whole = fall_in_runs(source, columns, np.int64(ROW_RUN), HAS_ROWS) and (rope_c0 % KR_BF16 == 0 or rope <= rope_c0)
    find_keys(work, span, bases)
    kv, kr, scales = window(bases, 0, span.n), window(bases, span.n, span.n), window(bases, 2 * span.n, span.n)
    of_latent, of_rope = window(bits, 0, latent), window(bits, latent, rope)
    whole_rope, smallest = HAS_ROWS and rope % ROW_RUN == 0 and 0 < rope <= rope_c0, _no_smallest(work, worker)
    for i in range(span.n):
        ahead = min(i + AHEAD, span.n - 1)
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
