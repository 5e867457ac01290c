"""The scores: queries as panels whose columns are heads, times the keys, a row each.

scores[p, head] = sum over latent and rope columns, ascending, of key[p] * query[head]        (not yet scaled)
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee, inlined
from ..kinds import Bits, Index, Int64
from ..launch import outlined
from ..llvm_ir import IN_L1
from ..micro.operands import A, B, C
from ..micro.table import ISA
from ..micro.ukernel import KR_BF16, MR, NR, ukernel
from ..prefetch import prefetch_to_write
from ..scalars import min_magnitude, min_of, row_of, sums_stay_normal, window
from ..sweeps.phase import Tasks, Team, share
from ..threads.tasks import block_of, block_start, ceil_div
from .arguments import Round, Scratch, Work
from .find import Span, ask_for_keys, find_next, next_rows
from .key_rows import key_rows
from .places import places_of
from .transpose import COLUMNS, HAS_COLUMNS, columns_of_rows

__all__ = ["PACK", "SCORES", "ask_for_first_keys", "pack_queries", "pack_tasks", "score_tasks", "scores"]

PACK, SCORES = 0, 1
_PLACES = ISA.places(is_int8=False)
_AHEAD = np.int64(16 * NR)  # elements of a panel, which comes from L2


@callee
def _to_columns(rows: Bits, width: Index, n_heads: Index, k0: Index, places: Int64, panel: Bits) -> None:
    """Rows (n_heads, width), flat, as the columns of a panel, from its step k0 of k on."""
    done = np.int64(0)
    if HAS_COLUMNS and n_heads == NR and k0 % KR_BF16 == 0:
        done = width - width % (2 * COLUMNS)
        for k in range(0, done, 2 * COLUMNS):
            for j in range(0, NR, COLUMNS):
                columns_of_rows(rows, j * width + k, width, panel, (k0 + k) * NR + 2 * j, np.int64(2 * NR))
    for k in range(done, width):
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
def _span_of(task: Index, work: Work) -> Span:
    """The places of a task's list; none, or less than none, behind its end."""
    cut = work.round.cut
    n_blocks = ceil_div(cut.n, cut.rows)
    token, first = task // n_blocks, np.int64(task % n_blocks * cut.rows)
    n = max(min(cut.rows, places_of(work.round, token) - first), 0)
    return Span(np.int64(cut.t0 + token), np.int64(cut.place0 + first), np.int64(n))


@callee
def ask_for_first_keys(worker: Index, tasks: Tasks, work: Work) -> None:
    """Asks for the keys of the first task that a worker draws."""
    first = block_start(tasks.n, work.round.cut.n_workers, worker)
    if first < tasks.n:
        span = _span_of(first, work)
        find_next(work, span, worker)
        ask_for_keys(next_rows(work, worker, span.n), np.int64(0), span.n)


@inlined
def _ask_for_sums(scratch: Scratch, panel: Index, first: Index, n: Index) -> None:
    """Asks for where the next register tile stores its sums: n positions of a panel of heads from `first` on."""
    prefetch_to_write(row_of(scratch.scores, panel), first * NR, n * NR)


@callee
def _score_task(task: Index, n_tasks: Index, worker: Index, work: Work) -> None:
    """Some positions of a token, and all heads of the round."""
    cut, scratch = work.round.cut, work.round.scratch
    n_blocks = ceil_div(cut.n, cut.rows)
    token = task // n_blocks
    span, following = _span_of(task, work), _span_of(min(task + 1, n_tasks - 1), work)
    if task + 1 == block_start(n_tasks, cut.n_workers, worker + 1):
        following = Span(span.token, span.first, np.int64(0))  # others begin there, and are done with it
    n, first = span.n, span.first - cut.place0
    if n <= 0:
        return
    _, most, lda = scratch.rows.shape
    rows, kp = window(scratch.rows, worker * most * lda, most * lda), scratch.queries.shape[2] // NR
    n_tiles, asked = ceil_div(n, MR), np.int64(0)
    at_once = min(n, np.int64(MR))
    _ask_for_sums(scratch, token * cut.h, first, at_once)
    least = key_rows(work, span, worker, rows, lda)
    find_next(work, following, worker)
    keys = next_rows(work, worker, following.n)
    normal = sums_stay_normal(min_of(window(scratch.q_min, token * cut.h, cut.h)), least)
    for panel in range(cut.h):
        at = token * cut.h + panel
        queries, sums = row_of(scratch.queries, at), row_of(scratch.scores, at)
        b = B(queries, np.int64(0), _AHEAD, np.int64(NR * KR_BF16), np.int64(IN_L1))
        for tile in range(n_tiles):
            # The keys of the next task come while products keep the core busy, a few with each register tile.
            until = following.n * (panel * n_tiles + tile + 1) // (cut.h * n_tiles)
            ask_for_keys(keys, asked, until)
            asked = until
            i, n_rows = block_of(n, n_tiles, tile)
            if tile + 1 < n_tiles:
                _ask_for_sums(scratch, at, first + i + n_rows, min(at_once, n - i - n_rows))
            elif panel + 1 < cut.h:
                _ask_for_sums(scratch, at + 1, first, at_once)
            # One register tile and panel: the loops of `multiply_block` would take as long as some steps of k.
            c = C(sums, (first + i) * NR, False)
            ukernel(n_rows, kp, A(rows, i * lda, lda), b, c, normal)


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
