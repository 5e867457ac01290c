"""The lightning index of a tile of tokens, in one parallel region: the k best of the keys that each token sees.

    score(p) = scale(p) * sum over heads of weight * half(max(query . key(p), 0))

| phase   | a task is                       | it computes                                                             |
|---------|---------------------------------|-------------------------------------------------------------------------|
| PREPARE | a token                         | its queries as rows of A, its heads' weights                            |
| SCAN    | a group, and a run of keys      | scores, of which each worker buffers those that may be among the best   |
| MERGE   | a token, or a part of its list  | the k best of all workers' buffers, sorted: see `merging`               |

A group are tokens of one sequence that follow one another. Keys are read from the cache and packed once a group, a tile
of them at a time; their scores exist for one token and one tile of keys.

| array        | shape                | dtype       | notes                                                |
|--------------|----------------------|-------------|------------------------------------------------------|
| query        | (T, Ni, Di)          | int8        | codes                                                |
| query_scale  | (T, Ni, 1)           | uint16      | bits of fp16                                         |
| weights      | (T, Ni)              | uint16      | likewise                                             |
| limits       | (T,)                 | int64       | keys that a token sees                               |
| chosen       | (T, k)               | int32       | positions, the best first, then -1                   |
| rows         | (t, Np, kp)          | QUERY_DTYPE | scratch: queries; Np is Ni in whole BLOCKs           |
| head_weights | (t, Np)              | float32     | scratch                                              |
| offsets      | (t, Np)              | int32       | scratch: see `panel`                                 |
| ranks        | (n_workers, t, room) | uint64      | scratch: see `best`; room for k + slack_of(k) + TILE |
| n_ranks      | (n_workers, >= t)    | int64       | scratch: how many there are                          |
| ends         | (n_workers, >= t)    | uint64      | scratch: below which others come in                  |

The rows of n_ranks and ends are longer than t, since two workers that write to one cache line wait for each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee, inlined
from ..kinds import F32, Bits, Codes, Index, Int32, Int64, Values
from ..launch import kernel
from ..micro.operands import A
from ..micro.ukernel import NR
from ..scalars import round_f16, row_of, unowned, widen_f16, window
from ..sweeps.phase import Tasks, Team, share, wait
from ..threads.tasks import ceil_div, linger
from .best import BEGIN, END, Ranks, append_ranks, keep_best, rank_keys, slack_of
from .keys import TILE, KeyCache, KeyTile, find_keys, lines_of, pack_keys, widen_scales
from .merging import Buffers, Desk, merge_part, n_parts_of
from .panel import Ahead, HeadNumbers, Panels, offset_of, score_panels

__all__ = ["MERGE", "PHASES", "PREPARE", "SCAN", "Buffers", "Groups", "Queries", "Scratch", "lightning_tile"]

PHASES = ("prepare", "scan", "merge")
PREPARE, SCAN, MERGE = range(len(PHASES))
_SCALE = np.float32(2.0**-11)  # of a dot product


class Queries(NamedTuple):
    """The caller's tokens and what is chosen of them, and rows and numbers of those of the tile: see above."""

    query: Codes
    query_scale: Bits
    weights: Bits
    limits: Int64
    chosen: Int32
    rows: Values
    head_weights: F32
    offsets: Int32


class Groups(NamedTuple):
    """How tokens and keys fall into tasks.

    Group g is tokens first[g]..first[g + 1] of the tile, of sequence[g], and tasks from task[g] on, each `run` keys.
    All int64, (n + 1,) but for sequence (n,).
    """

    first: Int64
    task: Int64
    sequence: Int64
    run: Index


class Scratch(NamedTuple):
    """A row a worker: the arrays of `KeyTile`; scores (TILE,) float32; fresh (TILE,), merged (2 * room,),
    spare (2 * room or 2 * SAMPLE, whichever is more) and counts (N_BINS,) uint64.
    """

    codes: Codes
    places: Int64
    scale: F32
    rest: Codes
    scores: F32
    fresh: Ranks
    merged: Ranks
    spare: Ranks
    counts: Ranks


class Work(NamedTuple):
    """What the tasks of all phases need; the tile is tokens t0..t0+t."""

    queries: Queries
    cache: KeyCache
    groups: Groups
    buffers: Buffers
    scratch: Scratch
    t0: Index
    t: Index


@inlined
def _fill_row(codes: Codes, row: Values) -> None:
    """Codes and, behind them, zeros."""
    for j in range(len(codes)):
        row[j] = codes[j]
    for j in range(len(codes), len(row)):
        row[j] = 0


@callee
def _prepare_task(task: Index, n_tasks: Index, worker: Index, work: Work) -> None:
    queries, token = work.queries, work.t0 + task
    n_rows, n_heads = queries.rows.shape[1], queries.query.shape[1]
    scales, weights = window(queries.query_scale, token * n_heads, n_heads), row_of(queries.weights, token)
    head_weights, offsets = row_of(queries.head_weights, task), row_of(queries.offsets, task)
    for h in range(n_heads):
        codes = row_of(queries.query, token * n_heads + h)
        _fill_row(codes, row_of(queries.rows, task * n_rows + h))
        offsets[h] = offset_of(codes)
        product = np.float32(widen_f16(scales[h]) * widen_f16(weights[h]))
        head_weights[h] = np.float32(widen_f16(round_f16(product)) * _SCALE)
    for h in range(n_heads, n_rows):
        _fill_row(window(queries.query, 0, 0), row_of(queries.rows, task * n_rows + h))
        head_weights[h], offsets[h] = np.float32(0), np.int32(0)
    buffers = work.buffers
    for w in range(buffers.ranks.shape[0]):
        buffers.n_ranks[w, task], buffers.ends[w, task] = 0, END


@inlined
def _score_keys(work: Work, token: Index, tile: KeyTile, n: Index, scores: F32, ahead: Ahead) -> None:
    """Scores of a token and the first n keys of a tile, and of those that fill the last panel."""
    queries, n_heads = work.queries, work.queries.query.shape[1]
    n_rows, kp = queries.rows.shape[1], queries.rows.shape[2]
    n_panels = ceil_div(n, NR)
    sums = window(scores, 0, n_panels * NR)
    for j in range(len(sums)):
        sums[j] = np.float32(0)
    panels = Panels(tile.codes, np.int64(0), scores, np.int64(0), np.int64(n_panels))
    a = A(unowned(queries.rows), np.int64(token * n_rows * kp), np.int64(kp))
    heads = HeadNumbers(row_of(queries.head_weights, token), row_of(queries.offsets, token))
    score_panels(np.int64(n_heads), kp, a, heads, panels, ahead)


@inlined
def _collect(work: Work, worker: Index, token: Index, position: Index, tile: KeyTile, n: Index, ahead: Ahead) -> None:
    """Scores of a token and the first n keys of a tile, at a position, and from there into the worker's buffer."""
    buffers, scratch = work.buffers, work.scratch
    scores, fresh = row_of(scratch.scores, worker), window(row_of(scratch.fresh, worker), 0, n)
    _score_keys(work, token, tile, n, scores, ahead)
    rank_keys(scores, tile.scale, position, fresh)
    ranks = row_of(buffers.ranks, worker * buffers.ranks.shape[1] + token)
    at = worker * buffers.n_ranks.shape[1] + token
    counts, ends = unowned(buffers.n_ranks), unowned(buffers.ends)
    k, room = work.queries.chosen.shape[1], buffers.ranks.shape[2]
    if counts[at] + n > room:
        counts[at], ends[at] = keep_best(ranks, counts[at], k, slack_of(k), row_of(scratch.spare, worker))
    counts[at] = append_ranks(fresh, ranks, counts[at], BEGIN, ends[at])


@callee
def _scan_task(task: Index, n_tasks: Index, worker: Index, work: Work) -> None:
    groups, scratch = work.groups, work.scratch
    g = np.int64(0)
    while task >= groups.task[g + 1]:
        g += 1
    first, end = groups.first[g], groups.first[g + 1]
    limits = window(work.queries.limits, work.t0, work.t)
    begin = (task - groups.task[g]) * groups.run
    until = min(begin + groups.run, limits[end - 1])
    tile = KeyTile(
        row_of(scratch.codes, worker), row_of(scratch.places, worker), row_of(scratch.scale, worker),
        row_of(scratch.rest, worker),
    )  # fmt: skip
    codes, (n_lines, distance) = unowned(work.cache.codes.flat), lines_of(work.cache)
    sequence = groups.sequence[g]
    find_keys(work.cache, sequence, begin, min(np.int64(TILE), until - begin), tile)
    for position in range(begin, until, TILE):
        n = min(np.int64(TILE), until - position)
        pack_keys(work.cache, n, tile)
        widen_scales(work.cache, sequence, np.int64(position), n, tile)
        following = min(np.int64(TILE), limits[end - 1] - position - n)  # those of the next task, too
        find_keys(work.cache, sequence, position + n, following, tile)
        n_ahead = np.int64(NR if following > 0 else 0)
        for token in range(first, end):
            seen = min(n, limits[token] - position)
            if seen > 0:
                ahead = Ahead(codes, tile.places, n_ahead, n_lines, distance)
                _collect(work, worker, token, np.int64(position), tile, seen, ahead)
                n_ahead = np.int64(0)


@callee
def _merge_task(task: Index, n_tasks: Index, worker: Index, work: Work) -> None:
    scratch, n_parts = work.scratch, n_tasks // work.t
    token, part = task // n_parts, task % n_parts
    desk = Desk(row_of(scratch.merged, worker), row_of(scratch.spare, worker), row_of(scratch.counts, worker))
    merge_part(work.buffers, token, part, n_parts, desk, row_of(work.queries.chosen, work.t0 + token))


@kernel
def lightning_tile(
    worker: Index, queries: Queries, cache: KeyCache, groups: Groups, t0: Index, buffers: Buffers,
    scratch: Scratch, team: Team,
) -> None:  # fmt: skip
    """One worker's way through the phases of a tile of tokens."""
    t = np.int64(queries.rows.shape[0])
    work = Work(queries, cache, groups, buffers, scratch, np.int64(t0), t)
    of_prepare = Tasks(np.int64(PREPARE), t, np.int64(1))
    of_scan = Tasks(np.int64(SCAN), groups.task[len(groups.task) - 1], np.int64(1))
    n_parts = n_parts_of(np.int64(team.n_workers), t, np.int64(queries.chosen.shape[1]))
    of_merge = Tasks(np.int64(MERGE), t * n_parts, np.int64(1))
    share(worker, team, of_prepare, _prepare_task, work)
    wait(team, of_prepare)
    share(worker, team, of_scan, _scan_task, work)
    wait(team, of_scan)
    share(worker, team, of_merge, _merge_task, work)
    if worker == 0:
        linger(team.counters, MERGE, team.n_workers, of_merge.n)  # as in a tile of the prolog
