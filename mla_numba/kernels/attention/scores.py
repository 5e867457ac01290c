"""The scores: queries as panels whose columns are heads, times the keys, a row each.

scores[p, head] = sum over latent and rope columns, ascending, of key[p] * query[head]        (not yet scaled)
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Bits, Index, Int64
from ..launch import outlined
from ..micro.operands import A, C, Y
from ..micro.table import ISA
from ..micro.ukernel import KR_BF16, NR
from ..scalars import min_magnitude, min_of, row_of, sums_stay_normal, window
from ..sweeps.gemm import Depth, Walk, multiply_block
from ..sweeps.phase import Tasks, Team, share
from ..threads.tasks import ceil_div
from .arguments import Round, Work
from .keys import Span, key_rows

__all__ = ["PACK", "SCORES", "pack_queries", "pack_tasks", "score_tasks", "scores"]

PACK, SCORES = 0, 1
_PLACES = ISA.places(is_int8=False)


@callee
def _to_columns(rows: Bits, width: Index, n_heads: Index, k0: Index, places: Int64, panel: Bits) -> None:
    """Rows (n_heads, width), flat, as the columns of a panel, from its step k0 of k on."""
    for k in range(width):
        r = (k0 + k) % KR_BF16
        out = window(panel, (k0 + k - r) * NR, KR_BF16 * NR)
        for j in range(n_heads):
            out[places[r, j]] = rows[j * width + k]


@callee
def _pack_task(task: Index, n_tasks: Index, worker: Index, part: Round) -> None:
    """The queries of a panel of heads of a token."""
    cut, scratch = part.cut, part.scratch
    _, n_heads, latent = part.queries.nope.shape
    rope = part.queries.rope.shape[2]
    token, head = cut.t0 + task // cut.h, (cut.panel0 + task % cut.h) * NR
    n = min(np.int64(NR), n_heads - head)
    nope = window(part.queries.nope, (token * n_heads + head) * latent, n * latent)
    rotated = window(part.queries.rope, (token * n_heads + head) * rope, n * rope)
    panel = row_of(scratch.queries, task)
    if n < NR or (latent + rope) % KR_BF16:
        for i in range(len(panel)):
            panel[i] = 0
    _to_columns(nope, latent, n, np.int64(0), _PLACES, panel)
    _to_columns(rotated, rope, n, latent, _PLACES, panel)
    window(scratch.q_min, task, 1)[0] = min(min_magnitude(nope), min_magnitude(rotated))


@callee
def pack_tasks(part: Round) -> Tasks:
    """A task is a panel of heads of a token."""
    return Tasks(np.int64(PACK), np.int64(part.cut.t * part.cut.h), np.int64(1))


@outlined
def pack_queries(worker: Index, team: Team, tasks: Tasks, part: Round) -> None:
    """Phase PACK."""
    share(worker, team, tasks, _pack_task, part)


@callee
def _score_task(task: Index, n_tasks: Index, worker: Index, work: Work) -> None:
    """Some positions of a token, and all heads of the round."""
    cut, scratch, latent = work.round.cut, work.round.scratch, work.latent
    n_blocks = ceil_div(cut.n, cut.rows)
    token, first = task // n_blocks, task % n_blocks * cut.rows
    n = min(cut.rows, work.round.counts[cut.t0 + token] - first)
    if n <= 0:
        return
    rows, kp = row_of(scratch.rows, worker), scratch.queries.shape[2] // NR
    lda = len(rows) // cut.rows
    least = key_rows(work, Span(cut.t0 + token, first, n), worker, rows, lda)
    normal = sums_stay_normal(min_of(window(scratch.q_min, token * cut.h, cut.h)), least)
    zero, floats, ints = np.int64(0), scratch.sums, scratch.mins
    for panel in range(cut.h):
        at = token * cut.h + panel
        walk = Walk(row_of(scratch.queries, at), kp, zero, np.int64(1))
        sums = C(row_of(scratch.scores, at), first * NR, False)
        nowhere = Y(latent, zero, zero, floats, zero, floats, ints, zero)  # the sums stay where they are
        multiply_block(A(rows, zero, lda), n, walk, Depth(zero, kp, kp), sums, normal, nowhere, zero)


@callee
def score_tasks(work: Work) -> Tasks:
    """A task is some positions of a token."""
    return Tasks(
        np.int64(SCORES), np.int64(work.round.cut.t * ceil_div(work.round.cut.n, work.round.cut.rows)), np.int64(1)
    )


@outlined
def scores(worker: Index, team: Team, tasks: Tasks, work: Work) -> None:
    """Phase SCORES."""
    share(worker, team, tasks, _score_task, work)
