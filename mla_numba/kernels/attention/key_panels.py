"""Keys, read from the cache and dequantised, as panels of B for the latents.

Where a cache holds codes in whole runs, vector code makes operands of them at once; else they are bits first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..isa import BY_COLUMN_REVERSED
from ..jit.callee import by_dtype, callee, inlined
from ..kinds import Bits, Index, Int64
from ..micro.table import ISA
from ..micro.ukernel import KR_BF16, NR
from ..scalars import NONE_NONZERO, min_magnitude, pair_window, row_of, window
from .arguments import Work
from .dequantise import HAS_STEPS, WILD, step_of_codes
from .find import AHEAD, Span, bases_of, find_keys
from .pairs import interleave
from .runs import fall_in_runs, least_of_all
from .source import Columns, Source, ask_for, columns_of, latent_bits, scale_of, source_of

__all__ = ["key_panels"]


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
    least = min(least_of_all(source, pair.scales_even, columns), least_of_all(source, pair.scales_odd, columns))
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
    bases = bases_of(work, worker, np.int64(0))
    columns = columns_of(work, first, n_cols)
    whole = KR_BF16 == 2 and fall_in_runs(source, columns, np.int64(NR), HAS_STEPS)
    find_keys(work, span, bases)
    kv, scales = window(bases, 0, span.n), window(bases, 2 * span.n, span.n)
    for c in range(KR_BF16 * ld):
        bits[c] = 0
    for i in range(0, span.n, KR_BF16):
        for r in range(min(np.int64(KR_BF16), span.n - i)):
            ahead = min(i + r + AHEAD, span.n - 1)
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
