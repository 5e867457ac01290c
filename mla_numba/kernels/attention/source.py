"""A cache's latents as they are kept: where their columns lie, their scales, and any columns as bf16 bits.

key[c] = bf16(float32(code[c]) * scale[c // group]) of an int8 cache; of a bf16 one as it is
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import by_dtype, callee, inlined
from ..kinds import Bits, Index, Real, Values, Word
from ..prefetch import prefetch
from ..row.scatter import chunk_at
from ..scalars import (
    NONE_NONZERO,
    bits_of_f32,
    f32_of_bits,
    min_magnitude,
    round_bf16,
    unowned,
    window,
)
from .arguments import Work

__all__ = [
    "N_SCALES",
    "Columns",
    "Source",
    "ask_for",
    "columns_of",
    "copied",
    "latent_bits",
    "least_of_scale",
    "scale_of",
    "source_of",
]

N_SCALES = 4
_NO_EXPONENT = np.uint32(0x7F800000)


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
def source_of(work: Work) -> Source:
    """The latents of a call's cache."""
    layout = work.caches.kv.layout
    latents, scales = unowned(work.caches.kv.flat), unowned(work.caches.k_scale.flat)
    return Source(latents, scales, layout[2], layout[3], np.int64(work.group))


@inlined
def columns_of(work: Work, first: Index, n: Index) -> Columns:
    """Columns first..first+n of its latents."""
    group = np.int64(work.group)
    at, left = chunk_at(work.caches.kv.layout, np.int64(0), np.int64(first))
    return Columns(at, np.int64(n), left, first // group, group - first % group)


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
def scale_of(value: Real) -> Real:
    """A scale as float32."""


@inlined
def least_of_scale(scale: Real) -> Index:
    """At most the `min_magnitude` of codes times a scale: a code is 0 or at least 1."""
    if scale == np.float32(0):
        return NONE_NONZERO
    return max(np.int32(np.int32(round_bf16(scale)) & np.int32(0x7FFF)), np.int32(1))


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
        scale = scale_of(window(source.scales, scale_at, 1)[0])
        _scaled(window(source.latents, at, run), scale, window(out, c, run))
        least = min(least, least_of_scale(scale))
        c, at, of_run, of_group = c + run, at + run, of_run - run, of_group - run
        if of_run == 0:
            at, of_run = at + source.stride - c0, c0
        if of_group == 0:
            scale_at, of_group = scale_at + 1, group
    return np.int32(least)


@inlined
def copied(values: Bits, c0: Index, stride: Index, at: Index, of_run: Index, out: Bits) -> Index:
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
    return copied(source.latents, source.c0, source.stride, base + columns.at, columns.left_in_run, out)


@by_dtype("source.latents", {np.int8: _dequantised}, otherwise=_as_they_are, inline=True)
def latent_bits(source: Source, base: Index, scales: Index, columns: Columns, out: Bits) -> Index:
    """Columns of the latent that begins at `base`, with scales from `scales` on; returns at most `min_magnitude`."""


@inlined
def _ask_for_codes(source: Source, base: Index, scales: Index, columns: Columns) -> None:
    prefetch(source.latents, base + columns.at, min(columns.n, columns.left_in_run))
    prefetch(source.scales, scales, np.int64(N_SCALES))


@inlined
def _ask_for_values(source: Source, base: Index, scales: Index, columns: Columns) -> None:
    prefetch(source.latents, base + columns.at, min(columns.n, columns.left_in_run))


@by_dtype("source.latents", {np.int8: _ask_for_codes}, otherwise=_ask_for_values, inline=True)
def ask_for(source: Source, base: Index, scales: Index, columns: Columns) -> None:
    """Asks for the first run of some columns of a latent, and for its scales."""
