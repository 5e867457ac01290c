"""The attended latents: probabilities, a row a head, times the keys' latents, in the order of the list.

latent[head, c] = bf16(sum over the list's places, ascending, of weight[head, place] * key[place, c])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Index
from ..launch import outlined
from ..micro.operands import A, C, Y
from ..micro.ukernel import KR_BF16, MR, NR
from ..scalars import min_of, round_bf16, row_of, sums_stay_normal, window
from ..sweeps.gemm import Depth, Walk, multiply_block
from ..sweeps.phase import Tasks, Team, share
from ..threads.tasks import block_of, block_start, ceil_div
from .arguments import LARGEST, SUM, Work
from .find import Span, ask_for_keys, find_next, next_columns
from .key_panels import key_panels
from .places import is_whole, places_of, tile_of, tile_step

__all__ = ["VALUES", "latent_tasks", "latents"]

VALUES = 3


@callee
def _n_blocks(work: Work) -> tuple[Index, Index]:
    """Into how many blocks the columns and the heads of a round are cut."""
    cut = work.round.cut
    return ceil_div(ceil_div(work.latent.shape[2], NR), cut.walk), ceil_div(cut.h, cut.heads)


class Block(NamedTuple):
    """Some columns and heads of a token: what a task writes.

    `token` and `row`, the first head's row of the weights, count in the round; `out` is where the latent begins.
    """

    token: Index
    row: Index
    n_heads: Index
    panel: Index
    walk: Index
    n_cols: Index
    out: Index


@callee
def _block_of(task: Index, work: Work) -> Block:
    cut = work.round.cut
    _, n_all, width = work.latent.shape
    n_walks, n_head_blocks = _n_blocks(work)
    token, block = task // (n_walks * n_head_blocks), task % (n_walks * n_head_blocks)
    panel, walk = block_of(ceil_div(width, NR), n_walks, block % n_walks)
    first_h, n_h = block_of(cut.h, n_head_blocks, block // n_walks)
    head = (cut.panel0 + first_h) * NR
    out = ((cut.t0 + token) * n_all + head) * width + panel * NR
    n_cols = min(walk * NR, width - panel * NR)
    row = (token * cut.h + first_h) * NR
    return Block(token, row, min(n_h * NR, n_all - head), panel, walk, n_cols, out)


class Places(NamedTuple):
    """Places first..first+n of a token's list, whose weights lie from `column` on; with `carry` sums go on."""

    first: Index
    n: Index
    column: Index
    carry: bool


@callee
def _products(work: Work, worker: Index, block: Block, places: Places, stores: bool) -> None:
    """Adds the products of some places to the worker's sums; with `stores` they are all, and go to the latents."""
    cut, scratch, width = work.round.cut, work.round.scratch, work.latent.shape[2]
    ldw, n_heads, token = scratch.weights.shape[2], block.n_heads, np.int64(cut.t0 + block.token)
    weights, floats, zero = window(scratch.weights, block.row * ldw, n_heads * ldw), scratch.sums, np.int64(0)
    magnitudes = window(scratch.w_min, block.row, n_heads)
    panels, sums = row_of(scratch.panels, worker), row_of(scratch.sums, worker)
    n_tiles = ceil_div(n_heads, MR)
    for place in range(0, places.n, cut.depth):
        span = Span(token, np.int64(places.first + place), min(cut.depth, places.n - place))
        k = ceil_div(span.n, KR_BF16) * KR_BF16
        least = key_panels(work, span, block.panel * NR, block.n_cols, worker)
        n_stored = block.n_cols if stores and place + cut.depth >= places.n else zero
        # Nothing comes behind: there lie the panels of another worker, who writes to them.
        b, depth = Walk(panels, cut.depth, zero, block.walk, zero), Depth(zero, k, k)
        behind, asked = min(cut.depth, places.n - place - span.n), zero
        find_next(work, Span(token, np.int64(span.first + span.n), behind), worker)
        keys = next_columns(work, worker, behind, block.panel * NR, block.n_cols)
        # By register tiles: one of heads with very small probabilities goes a slower way, since sums may be subnormal.
        for tile in range(n_tiles):
            # Keys that come next are asked for meanwhile, a few with each tile.
            until = behind * (tile + 1) // n_tiles
            ask_for_keys(keys, asked, until)
            asked = until
            i, n_rows = block_of(n_heads, n_tiles, tile)
            normal = sums_stay_normal(min_of(window(magnitudes, i, n_rows)), least)
            y = Y(work.latent, block.out + i * width, width, floats, zero, floats, scratch.q_min, zero)
            c_here = C(sums, i * block.walk * NR, place > 0 or places.carry)
            a = A(weights, i * ldw + places.column + place, ldw)
            multiply_block(a, n_rows, b, depth, c_here, normal, y, n_stored)


@callee
def _sums_of(sums: F32, block: Block, head: Index, panel: Index) -> F32:
    """The sums of a head and a panel, as `_products` leaves them."""
    n_tiles = ceil_div(block.n_heads, MR)
    tile = n_tiles - 1
    while block_start(block.n_heads, n_tiles, tile) > head:
        tile -= 1
    i, n_rows = block_of(block.n_heads, n_tiles, tile)
    return window(sums, (i * block.walk + panel * n_rows + head - i) * NR, NR)


@callee
def _carried_task(work: Work, worker: Index, block: Block, n: Index) -> None:
    """Goes on with the latents of earlier rounds, tile by tile: latents * factor + sums of a tile."""
    cut, scratch, width = work.round.cut, work.round.scratch, work.latent.shape[2]
    sums, tile = row_of(scratch.sums, worker), tile_of(cut)
    if cut.place0 == 0:
        for head in range(block.n_heads):
            attended = window(scratch.attended, (block.row + head) * width + block.panel * NR, block.n_cols)
            for c in range(block.n_cols):
                attended[c] = np.float32(0)
    merges, goes_on = cut.tile > 0, cut.tile == 0 and cut.place0 > 0
    for first in range(0, n, tile):
        if goes_on:
            _move_sums(work, sums, block, False)
        at = Places(np.int64(cut.place0 + first), min(tile, n - first), first // tile * tile_step(cut), goes_on)
        _products(work, worker, block, at, False)
        if merges:
            _merge(work, sums, block, first // tile)
        else:
            _move_sums(work, sums, block, True)
    if cut.last:
        _finish(work, block)


@callee
def _move_sums(work: Work, sums: F32, block: Block, keeps: bool) -> None:
    """The worker's sums to what is carried on, or back."""
    width = work.latent.shape[2]
    for head in range(block.n_heads):
        for panel in range(block.walk):
            n_cols = min(np.int64(NR), block.n_cols - panel * NR)
            at = (block.row + head) * width + (block.panel + panel) * NR
            kept, here = window(work.round.scratch.attended, at, n_cols), _sums_of(sums, block, head, panel)
            for c in range(n_cols):
                if keeps:
                    kept[c] = here[c]
                else:
                    here[c] = kept[c]


@callee
def _merge(work: Work, sums: F32, block: Block, tile: Index) -> None:
    scratch, width = work.round.scratch, work.latent.shape[2]
    for head in range(block.n_heads):
        row = block.row + head
        factor = window(row_of(scratch.factors, row // NR), tile * NR + row % NR, 1)[0]
        for panel in range(block.walk):
            n_cols = min(np.int64(NR), block.n_cols - panel * NR)
            at = row * width + (block.panel + panel) * NR
            kept, here = window(scratch.attended, at, n_cols), _sums_of(sums, block, head, panel)
            for c in range(n_cols):
                kept[c] = np.float32(np.float32(kept[c] * factor) + here[c])


@callee
def _finish(work: Work, block: Block) -> None:
    """The latents of all rounds, rounded; where tiles are merged, divided by the sum of the weights before."""
    scratch, width, merges = work.round.scratch, work.latent.shape[2], work.round.cut.tile > 0
    attends = work.round.counts[work.round.cut.t0 + block.token] > 0
    for head in range(block.n_heads):
        row = block.row + head
        kept = window(scratch.attended, row * width + block.panel * NR, block.n_cols)
        out = window(work.latent, block.out + head * width, block.n_cols)
        total = window(row_of(scratch.carried, row // NR), NR + row % NR, 1)[0]
        if not (merges and attends):
            total = np.float32(1)
        for c in range(block.n_cols):
            out[c] = round_bf16(np.float32(kept[c] / total))


@callee
def _latent_task(task: Index, n_tasks: Index, worker: Index, work: Work) -> None:
    """A walk of columns and some panels of heads of a token."""
    block = _block_of(task, work)
    n, width = places_of(work.round, block.token), work.latent.shape[2]
    if not is_whole(work.round.cut):
        _carried_task(work, worker, block, n)
    elif n > 0:
        _products(work, worker, block, Places(np.int64(0), n, np.int64(0), False), True)
    else:
        for i in range(block.n_heads):
            row = window(work.latent, block.out + i * width, block.n_cols)
            for c in range(block.n_cols):
                row[c] = 0


@callee
def latent_tasks(work: Work) -> Tasks:
    """A task is a walk of columns and some panels of heads of a token; none where scores are all that counts."""
    n_walks, n_head_blocks = _n_blocks(work)
    cut = work.round.cut
    n_tasks = 0 if cut.stage == LARGEST or cut.stage == SUM else cut.t * n_walks * n_head_blocks
    return Tasks(np.int64(VALUES), np.int64(n_tasks), np.int64(1))


@outlined
def latents(worker: Index, team: Team, tasks: Tasks, work: Work) -> None:
    """Phase VALUES."""
    share(worker, team, tasks, _latent_task, work)
