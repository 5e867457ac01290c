"""The k best of the ranks that all workers hold of a token: their positions, as a list whose parts are tasks.

A part is of the ranks between two bounds, sorted, behind as many as are below the first one. The bounds are guessed by
a sample of all ranks, which each task of a token takes alike; so parts are about as long, and together what one task
would write, wherever they begin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import Index, Int32, Int64, Word
from ..scalars import row_of, window
from ..threads.tasks import ceil_div
from .best import BEGIN, END, SAMPLE, Ranks, append_ranks, count_below, guess_end, keep_best, slack_of, take_sample
from .sorting import sort_ranks, write_positions

__all__ = ["Buffers", "Desk", "bounds_of", "merge_part", "n_parts_of"]

_LEAST_PART = 512  # ranks; fewer are sorted in less time than it takes to compare all again


class Buffers(NamedTuple):
    """The workers' buffers of ranks: see `tile`."""

    ranks: Ranks
    n_ranks: Int64
    ends: Ranks


class Desk(NamedTuple):
    """What a worker merges in: a row of `tile.Scratch`."""

    merged: Ranks
    spare: Ranks
    counts: Ranks


class Bounds(NamedTuple):
    """Ranks from `first` on and below `end`."""

    first: Word
    end: Word


@callee
def n_parts_of(n_workers: Index, t: Index, k: Index) -> Index:
    """Into how many parts the list of each of t tokens is cut: one for each worker, if they are long enough."""
    return np.int64(max(1, min(ceil_div(n_workers, t), k // _LEAST_PART)))


@callee
def _held(buffers: Buffers, w: Index, token: Index) -> Ranks:
    """The ranks that a worker holds of a token."""
    return window(row_of(buffers.ranks, w * buffers.ranks.shape[1] + token), 0, buffers.n_ranks[w, token])


@callee
def _count_all(buffers: Buffers, token: Index) -> tuple[Index, Word]:
    """How many ranks all workers hold, and the least of their bounds: there are k ranks below any that is not END."""
    n, end = np.int64(0), END
    for w in range(buffers.n_ranks.shape[0]):
        n, end = n + buffers.n_ranks[w, token], min(end, buffers.ends[w, token])
    return n, end


@callee
def _sample_all(buffers: Buffers, token: Index, n: Index, sample: Ranks) -> Ranks:
    """Some of the n ranks that all workers hold."""
    n_sample, step = np.int64(0), max(np.int64(1), n // SAMPLE)
    for w in range(buffers.n_ranks.shape[0]):
        n_sample = take_sample(_held(buffers, w, token), step, sample, n_sample)
    return window(sample, 0, n_sample)


@callee
def bounds_of(sample: Ranks, n: Index, n_best: Index, part: Index, n_parts: Index, end_of_all: Word) -> Bounds:
    """What ranks are in a part of the n_best of n, none or more: where the one before ends, it begins."""
    first, end = BEGIN, BEGIN
    for p in range(part + 1):
        first, end = end, max(end, min(end_of_all, guess_end(sample, n, n_best * (p + 1) // n_parts)))
    return Bounds(first, end)


@callee
def _gather(buffers: Buffers, token: Index, k: Index, bounds: Bounds, desk: Desk) -> Index:
    """The ranks of all workers within bounds, or about the k best of them where they are too many; how many."""
    n, end = np.int64(0), bounds.end
    for w in range(buffers.n_ranks.shape[0]):
        held = _held(buffers, w, token)
        if n + len(held) > len(desk.merged):
            n, bound = keep_best(desk.merged, n, k, slack_of(k), desk.spare)
            end = min(end, bound)
        n = append_ranks(held, desk.merged, n, bounds.first, end)
    return n


@callee
def merge_part(buffers: Buffers, token: Index, part: Index, n_parts: Index, desk: Desk, chosen: Int32) -> None:
    """Writes a part of the list of a token, and the last one also -1 for what it lacks of k ranks."""
    k, is_last = np.int64(len(chosen)), part + 1 == n_parts
    n, end_of_all = _count_all(buffers, token)
    n_best = min(n, k)
    bounds = bounds_of(_sample_all(buffers, token, n, desk.spare), n, n_best, part, n_parts, end_of_all)
    before = np.int64(0)
    for w in range(buffers.n_ranks.shape[0] if part else 0):
        before += count_below(_held(buffers, w, token), bounds.first)
    n_part = np.int64(0)
    for end in (bounds.end, end_of_all):
        n_part = _gather(buffers, token, k, Bounds(bounds.first, end), desk)
        if not is_last or before + n_part >= n_best:  # otherwise the sample misled
            break
    best = window(desk.merged, 0, n_part)
    sort_ranks(best, desk.spare, desk.counts)
    room = max(np.int64(0), k - before)
    write_positions(best, window(chosen, k - room, room if is_last else min(n_part, room)))
