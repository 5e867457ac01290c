"""The attended latents: probabilities, a row a head, times the keys' latents, in the order of the list.

latent[head, c] = bf16(sum over the list's places, ascending, of weight[head, place] * key[place, c])
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Index
from ..launch import outlined
from ..micro.operands import A, C, Y
from ..micro.ukernel import KR_BF16, MR, NR
from ..scalars import min_of, row_of, sums_stay_normal, window
from ..sweeps.gemm import Depth, Walk, multiply_block
from ..sweeps.phase import Tasks, Team, share
from ..threads.tasks import block_of, ceil_div
from .arguments import Work
from .keys import Span, key_panels

__all__ = ["VALUES", "latent_tasks", "latents"]

VALUES = 3


@callee
def _n_blocks(work: Work) -> tuple[Index, Index]:
    """Into how many blocks the columns and the heads of a round are cut."""
    cut = work.round.cut
    return ceil_div(ceil_div(work.latent.shape[2], NR), cut.walk), ceil_div(cut.h, cut.heads)


@callee
def _latent_task(task: Index, n_tasks: Index, worker: Index, work: Work) -> None:
    """A walk of columns and some panels of heads of a token."""
    cut, scratch = work.round.cut, work.round.scratch
    _, n_all, width = work.latent.shape
    n_walks, n_head_blocks = _n_blocks(work)
    token, block = task // (n_walks * n_head_blocks), task % (n_walks * n_head_blocks)
    panel0, walk = block_of(ceil_div(width, NR), n_walks, block % n_walks)
    first_h, n_h = block_of(cut.h, n_head_blocks, block // n_walks)
    head = (cut.panel0 + first_h) * NR
    n_heads = min(n_h * NR, n_all - head)
    n_cols = min(walk * NR, width - panel0 * NR)
    out = ((cut.t0 + token) * n_all + head) * width + panel0 * NR
    n = work.round.counts[cut.t0 + token]
    if n == 0:
        for i in range(n_heads):
            row = window(work.latent, out + i * width, n_cols)
            for c in range(n_cols):
                row[c] = 0
        return
    ldw = scratch.weights.shape[2]
    row0 = (token * cut.h + first_h) * NR
    weights, floats, zero = window(scratch.weights, row0 * ldw, n_heads * ldw), scratch.sums, np.int64(0)
    magnitudes = window(scratch.w_min, row0, n_heads)
    panels, sums = row_of(scratch.panels, worker), row_of(scratch.sums, worker)
    n_tiles = ceil_div(n_heads, MR)
    for place in range(0, n, cut.depth):
        span = Span(cut.t0 + token, np.int64(place), min(cut.depth, n - place))
        k = ceil_div(span.n, KR_BF16) * KR_BF16
        least = key_panels(work, span, panel0 * NR, n_cols, worker)
        n_stored = n_cols if place + cut.depth >= n else zero
        b, depth = Walk(panels, cut.depth, zero, walk), Depth(zero, k, k)
        # By register tiles: one of heads with very small probabilities goes a slower way, since sums may be subnormal.
        for tile in range(n_tiles):
            i, n_rows = block_of(n_heads, n_tiles, tile)
            normal = sums_stay_normal(min_of(window(magnitudes, i, n_rows)), least)
            y = Y(work.latent, out + i * width, width, floats, zero, floats, scratch.mins, zero)
            c_here = C(sums, i * walk * NR, place > 0)
            multiply_block(A(weights, i * ldw + place, ldw), n_rows, b, depth, c_here, normal, y, n_stored)


@callee
def latent_tasks(work: Work) -> Tasks:
    """A task is a walk of columns and some panels of heads of a token."""
    n_walks, n_head_blocks = _n_blocks(work)
    return Tasks(np.int64(VALUES), np.int64(work.round.cut.t * n_walks * n_head_blocks), np.int64(1))


@outlined
def latents(worker: Index, team: Team, tasks: Tasks, work: Work) -> None:
    """Phase VALUES."""
    share(worker, team, tasks, _latent_task, work)
