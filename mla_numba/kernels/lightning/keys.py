"""A tile of the keys of a sequence: gathered from the blocks of a cache, packed, with their scales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee, inlined
from ..kinds import F32, Codes, Index, Int64
from ..micro.ukernel import NR
from ..prefetch import prefetch
from ..row.scatter import Slots, chunk_at
from ..scalars import row_of, widen_f16, window
from ..threads.tasks import ceil_div
from .panel import RUN, Runs, pack_panel

__all__ = ["PANELS", "TILE", "KeyCache", "KeyTile", "find_keys", "lines_of", "pack_keys", "widen_scales"]

PANELS = 128 // NR  # of a tile: its keys, as they lie in the cache and packed, and a token's heads fit a first cache
TILE = PANELS * NR
_LINE = 64  # codes


class KeyCache(NamedTuple):
    """The keys: codes, int8, and scales, uint16 bits of fp16; rows of `width` codes; table (B, blocks) int64."""

    codes: Slots
    scale: Slots
    width: Index
    table: Int64


class KeyTile(NamedTuple):
    """A worker's tile of TILE keys.

    | array  | shape               | dtype   | notes                                            |
    |--------|---------------------|---------|--------------------------------------------------|
    | codes  | (PANELS * kp * NR,) | int8    | packed                                           |
    | places | (TILE,)             | int64   | where the keys lie in the cache                  |
    | scale  | (TILE,)             | float32 | of a key                                         |
    | rest   | (NR * RUN,)         | int8    | what is left of rows that are no multiple of RUN |
    """

    codes: Codes
    places: Int64
    scale: F32
    rest: Codes


@inlined
def find_keys(cache: KeyCache, sequence: Index, first: Index, n: Index, tile: KeyTile) -> None:
    """Places of keys first..first+n <= TILE of a sequence, page by page; asks for their scales."""
    of_codes, of_scale = cache.codes.layout, cache.scale.layout
    blocks, block_size = row_of(cache.table, sequence), of_codes[0]
    done = np.int64(0)
    while done < n:
        block, row = blocks[(first + done) // block_size], (first + done) % block_size
        n_cur = min(block_size - row, n - done)
        base, step = block * of_codes[1] + row * of_codes[4], of_codes[4]
        places = window(tile.places, done, n_cur)
        for j in range(n_cur):
            places[j] = base + j * step
        prefetch(cache.scale.flat, block * of_scale[1] + row, n_cur)
        done += n_cur


@inlined
def widen_scales(cache: KeyCache, sequence: Index, first: Index, n: Index, tile: KeyTile) -> None:
    """The scales of keys that were found."""
    of_scale = cache.scale.layout
    blocks, block_size = row_of(cache.table, sequence), cache.codes.layout[0]
    done = np.int64(0)
    while done < n:
        block, row = blocks[(first + done) // block_size], (first + done) % block_size
        n_cur = min(block_size - row, n - done)
        scale, bits = window(tile.scale, done, n_cur), window(cache.scale.flat, block * of_scale[1] + row, n_cur)
        for j in range(n_cur):
            scale[j] = widen_f16(bits[j])
        done += n_cur


@callee
def lines_of(cache: KeyCache) -> tuple[Index, Index]:
    """In how many cache lines, about, the codes of a key lie, and the elements from one to the next."""
    distance, _ = chunk_at(cache.codes.layout, np.int64(0), np.int64(RUN))
    if distance == RUN:
        return ceil_div(np.int64(cache.width), np.int64(_LINE)), np.int64(_LINE)
    return ceil_div(np.int64(cache.width), np.int64(RUN)), np.int64(distance)


@callee
def _take_rest(cache: KeyCache, tile: KeyTile, col: Index) -> None:
    """The last codes of NR rows, and zeros, as one run each."""
    n_whole = cache.width // RUN * RUN
    for j in range(NR):
        at, _ = chunk_at(cache.codes.layout, tile.places[col + j], n_whole)
        codes, run = window(cache.codes.flat, at, cache.width - n_whole), window(tile.rest, j * RUN, RUN)
        for e in range(RUN):
            run[e] = codes[e] if e < len(codes) else np.int8(0)


@inlined
def pack_keys(cache: KeyCache, n: Index, tile: KeyTile) -> None:
    """Packs the n keys that were found. A last panel is filled up with one of them again."""
    n_panels = ceil_div(n, NR)
    for j in range(n, n_panels * NR):
        tile.places[j] = tile.places[0]
    n_runs = cache.width // RUN
    kp = ceil_div(cache.width, RUN) * RUN
    distance, _ = chunk_at(cache.codes.layout, np.int64(0), np.int64(RUN))
    for p in range(n_panels):
        col = p * NR
        panel = window(tile.codes, p * kp * NR, kp * NR)
        if n_runs:
            pack_panel(Runs(cache.codes.flat, tile.places, np.int64(col), n_runs, distance), panel)
        if kp > cache.width:
            _take_rest(cache, tile, np.int64(col))
            for j in range(NR):
                tile.places[col + j] = j * RUN
            rest = window(panel, n_runs * RUN * NR, RUN * NR)
            pack_panel(Runs(tile.rest, tile.places, np.int64(col), np.int64(1), np.int64(0)), rest)
