"""Where the keys of a token's list lie in a cache, and asking for those that come next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import by_dtype, callee, inlined
from ..kinds import Index, Int64, Values
from ..prefetch import prefetch_far
from ..scalars import row_of, unowned, window
from .arguments import Work
from .slots import block_and_row
from .source import N_SCALES, Source, columns_of, source_of

__all__ = ["AHEAD", "Next", "Span", "ask_for_keys", "bases_of", "find_keys", "find_next", "next_columns", "next_rows"]

AHEAD = 8  # keys that are asked for while others are dequantised


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
def find_keys(work: Work, span: Span, bases: Int64) -> None:
    """Where the keys of a span begin, (3, n) flat: in kv, in kr, and their scales in k_scale."""
    for i in range(span.n):
        bases[i], bases[span.n + i], bases[2 * span.n + i] = _find_one(work, span, i)


@inlined
def bases_of(work: Work, worker: Index, half: Index) -> Int64:
    """A worker's bases: half 0 those of the span at work, half 1 those of the one that comes next."""
    held = row_of(work.round.scratch.bases, worker)
    n = len(held) // 2
    return window(held, half * n, n)


@callee
def find_next(work: Work, span: Span, worker: Index) -> None:
    """Finds the keys of a span, for which `ask_for_keys` asks, some at a time."""
    find_keys(work, span, bases_of(work, worker, np.int64(1)))


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
        min(rope, work.caches.kr.layout[2]), bases_of(work, worker, np.int64(1)),
    )  # fmt: skip


@inlined
def next_columns(work: Work, worker: Index, n: Index, first: Index, n_cols: Index) -> Next:
    """Keys of which `key_panels` takes some columns."""
    columns = columns_of(work, first, n_cols)
    return Next(
        n, source_of(work), columns.at, min(columns.n, columns.left_in_run), unowned(work.caches.kr.flat),
        np.int64(0), bases_of(work, worker, np.int64(1)),
    )  # fmt: skip


@inlined
def ask_for_keys(keys: Next, first: Index, end: Index) -> None:
    """Asks for keys first..end, which are read some microseconds later."""
    for i in range(first, end):
        prefetch_far(keys.source.latents, keys.bases[i] + keys.at, keys.n_latent)
        if keys.n_rope > 0:
            prefetch_far(keys.ropes, keys.bases[keys.n + i], keys.n_rope)
        _ask_for_scales_of(keys.source, keys.bases[2 * keys.n + i])
