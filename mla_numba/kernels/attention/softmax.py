"""The softmax over a token's positions, for NR heads side by side.

    m = max(s * scale)    e = exp(s * scale - m)    l = sum of e    weight = bf16(e / l)

The sum runs over 16 lanes, a place of the list in lane `place mod 16`, ascending, and then over the lanes as a tree,
lane i with lane i + half. Scores of a panel lie position after position, NR heads each. So 16 positions are 16 * NR
elements one after the other, and beside them lie m, l and the sums of the lanes, repeated for each lane.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import by_dtype, callee
from ..kinds import F32, Bits, Index, Real, Values, Words
from ..launch import outlined
from ..micro.ukernel import A_BF16_DTYPE, NR
from ..prefetch import LINE_BYTES, prefetch_to_write
from ..scalars import NONE_NONZERO, pair_window, round_bf16, row_of, unowned, widen, window
from ..sweeps.phase import Tasks, Team, share
from .arguments import LARGEST, SUM, VALUES_OF, Round
from .exp import exp_negative
from .exponentials import add_exponentials, add_step
from .places import LANES, is_whole, places_of, tile_of, tile_step
from .quotients import NO_SMALLEST, pairs_of_quotients
from .transpose import COLUMNS, HAS_ROWS, ROWS, rows_of_columns

__all__ = ["SOFTMAX", "softmax", "softmax_tasks"]

SOFTMAX = 2
_STEP = LANES * NR
_HALF = LANES // 2
_LINE = LINE_BYTES // np.dtype(A_BF16_DTYPE).itemsize  # elements of a row of weights
_MINUS_INF = np.float32(-np.inf)
_ZERO = np.float32(0)


@callee
def _largest(scores: F32, scale: Real, most: F32) -> None:
    """most[i]: the largest of each head's scaled scores, repeated for each lane."""
    for i in range(_STEP):
        most[i] = _MINUS_INF
    for first in range(0, len(scores), _STEP):
        n = np.int64(min(_STEP, len(scores) - first))
        block, top = window(scores, first, n), window(most, 0, n)
        for i in range(n):
            top[i] = max(top[i], np.float32(block[i] * scale))
    _to_one_lane(most)
    _repeat(most)


@callee
def _to_one_lane(most: F32) -> None:
    half = _STEP // 2
    while half >= NR:
        low, high = window(most, 0, half), window(most, half, half)
        for i in range(half):
            low[i] = max(low[i], high[i])
        half //= 2


@callee
def _repeat(lanes: F32) -> None:
    """The values of lane 0 in all lanes."""
    first = window(lanes, 0, NR)
    for lane in range(1, LANES):
        out = window(lanes, lane * NR, NR)
        for j in range(NR):
            out[j] = first[j]


class Rows(NamedTuple):
    """Where the weights of a panel of heads begin: NR rows of A, `step` apart; nowhere if that is 0."""

    weights: Values
    at: Index
    step: Index


@callee
def _rows_of(part: Round, task: Index, column: Index) -> Rows:
    """Those of a task, from a column on."""
    ldw = part.scratch.weights.shape[2]
    return Rows(unowned(part.scratch.weights), task * NR * ldw + column, ldw)


@callee
def _ask_for_line(rows: Rows, column: Index) -> None:
    """Asks for a line of each row, which is written next: no core follows so many rows by itself."""
    for j in range(NR):
        prefetch_to_write(rows.weights, rows.at + j * rows.step + column, np.int64(1))


@callee
def _exponentials(scores: F32, scale: Real, most: F32, total: F32, rows: Rows) -> None:
    """scores = e, which are added to `total`, by head and lane.

    Meanwhile the lines come that their weights are written to, from whichever core read them last.
    """
    behind = len(scores) % _STEP
    whole = len(scores) - behind
    for first in range(0, whole, _LINE * NR):
        if rows.step > 0:
            _ask_for_line(rows, first // NR)
        some = window(scores, first, min(_LINE * NR, whole - first))
        add_exponentials(some, scale, window(most, 0, _STEP), window(total, 0, _STEP))
    if behind > 0:
        add_step(window(scores, whole, behind), scale, window(most, 0, behind), window(total, 0, behind))


@callee
def _add_lanes(total: F32) -> None:
    """The sum over the lanes of each head, repeated for each lane."""
    half = _STEP // 2
    while half >= NR:
        low, high = window(total, 0, half), window(total, half, half)
        for i in range(half):
            low[i] = low[i] + high[i]
        half //= 2
    _repeat(total)


@callee
def _paired_rows(words: Words, weights: Values, at: Index, ldw: Index, n_heads: Index) -> None:
    if HAS_ROWS and n_heads == NR:
        for j in range(0, NR, COLUMNS):
            for i in range(0, _HALF, ROWS):
                rows_of_columns(words, np.int64(i * NR + j), np.int64(NR), weights, at + j * ldw + 2 * i, ldw)
        return
    for j in range(n_heads):
        out = pair_window(weights, at + j * ldw, _HALF)
        for i in range(_HALF):
            out[i] = words[i * NR + j]


@callee
def _float_rows(words: Words, weights: Values, at: Index, ldw: Index, n_heads: Index) -> None:
    for j in range(n_heads):
        out = window(weights, at + j * ldw, LANES)
        for i in range(_HALF):
            word = words[i * NR + j]
            out[2 * i] = widen(np.uint16(word >> np.uint32(16)))
            out[2 * i + 1] = widen(np.uint16(word & np.uint32(0xFFFF)))


@by_dtype("weights", {np.uint16: _paired_rows}, otherwise=_float_rows)
def _put_rows(words: Words, weights: Values, at: Index, ldw: Index, n_heads: Index) -> None:
    """Weights of 16 positions to rows of A, a head each; words (8, NR), flat: a pair each, the even position above."""


@callee
def _last_quotients(e: F32, total: F32, words: Words, smallest: Bits) -> None:
    """As `pairs_of_quotients` of one position, beside zeros."""
    for j in range(NR):
        quotient = np.int64(round_bf16(np.float32(e[j] / total[j])))
        words[j] = np.uint32(quotient << 16)
        smallest[2 * j + 1] = min(np.int64(smallest[2 * j + 1]), (quotient - 1) & np.int64(0xFFFF))


@callee
def _pairs(e: F32, total: F32, words: Words, smallest: Bits) -> None:
    """Pairs of at most LANES positions, and zeros behind them."""
    n_whole = len(e) // (2 * NR)
    behind = window(e, 2 * n_whole * NR, len(e) - 2 * n_whole * NR)
    if n_whole > 0:
        pairs_of_quotients(window(e, 0, 2 * n_whole * NR), total, words, smallest)
    if n_whole < _HALF:
        for i in range(n_whole * NR, _HALF * NR):
            words[i] = np.uint32(0)
        if len(behind) > 0:
            _last_quotients(behind, total, window(words, n_whole * NR, NR), smallest)


@callee
def _probabilities(part: Round, at: Index, worker: Index, e: F32, total: F32, column: Index) -> None:
    """The weights of a panel of heads, `at` counted over the tokens of the round, as rows of A from `column` on."""
    scratch = part.scratch
    rows, n_rows = _rows_of(part, at, column), np.int64(NR)
    words, smallest = row_of(scratch.words, worker), window(row_of(scratch.bits, worker), 0, 2 * NR)
    of_head = window(total, 0, NR)
    for i in range(2 * NR):
        smallest[i] = NO_SMALLEST
    for first in range(0, len(e), _STEP):
        if first // NR % _LINE == 0:
            _ask_for_line(rows, first // NR + _LINE)
        _pairs(window(e, first, min(_STEP, len(e) - first)), of_head, words, smallest)
        _put_rows(words, rows.weights, rows.at + first // NR, rows.step, n_rows)
    for j in range(NR):
        size = (np.int64(min(smallest[2 * j], smallest[2 * j + 1])) + 1) & np.int64(0xFFFF)
        least = NONE_NONZERO if size == 0 else np.int32(min(size, np.int64(NONE_NONZERO)))
        so_far = window(scratch.w_min, at * NR + j, 1)
        so_far[0] = least if column == 0 else min(least, so_far[0])


@callee
def _softmax_task(task: Index, n_tasks: Index, worker: Index, part: Round) -> None:
    """A panel of heads of a token."""
    cut, scratch = part.cut, part.scratch
    n = places_of(part, task // cut.h)
    carried = row_of(scratch.carried, task)
    if cut.place0 == 0 and cut.stage != SUM and cut.stage != VALUES_OF and not is_whole(cut):
        _carry_nothing(carried)
    if n == 0:
        return
    scores = window(row_of(scratch.scores, task), 0, n * NR)
    most, total = row_of(scratch.lanes, 2 * worker), row_of(scratch.lanes, 2 * worker + 1)
    rows = _rows_of(part, task, np.int64(0))
    if cut.tile > 0:
        _tiles(part, task, worker, scores, carried)
    elif cut.stage == LARGEST:
        _largest(scores, part.scale, most)
        _raise(window(carried, 0, NR), most)
    elif cut.stage == SUM:
        _spread(window(carried, 0, NR), most)
        nowhere = Rows(rows.weights, rows.at, np.int64(0))
        _exponentials(scores, part.scale, most, window(carried, NR, _STEP), nowhere)
    elif cut.stage == VALUES_OF:
        _spread(window(carried, 0, NR), most)
        _exponentials(scores, part.scale, most, total, rows)
        sums = window(carried, NR, _STEP)
        for i in range(_STEP):
            total[i] = sums[i]
        _add_lanes(total)
        _probabilities(part, task, worker, scores, total, np.int64(0))
    else:
        _largest(scores, part.scale, most)
        _clear(total)
        _exponentials(scores, part.scale, most, total, rows)
        _add_lanes(total)
        _probabilities(part, task, worker, scores, total, np.int64(0))


@callee
def _carry_nothing(carried: F32) -> None:
    for i in range(len(carried)):
        carried[i] = np.float32(0)
    for j in range(NR):
        carried[j] = _MINUS_INF


@callee
def _clear(total: F32) -> None:
    for i in range(_STEP):
        total[i] = np.float32(0)


@callee
def _raise(carried: F32, most: F32) -> None:
    """carried = the larger one of itself and of `most`."""
    for j in range(NR):
        carried[j] = max(carried[j], most[j])


@callee
def _spread(values: F32, lanes: F32) -> None:
    """A head's value in all its lanes."""
    first = window(lanes, 0, NR)
    for j in range(NR):
        first[j] = values[j]
    _repeat(lanes)


@callee
def _tiles(part: Round, task: Index, worker: Index, scores: F32, carried: F32) -> None:
    """The tiles of a round one after the other: their weights are not divided, see `reference.attend_by_tiles`.

    carried: the largest score so far, and then the sum of the weights, which goes on.
    """
    scratch, tile = part.scratch, tile_of(part.cut) * NR
    most, total = row_of(scratch.lanes, 2 * worker), row_of(scratch.lanes, 2 * worker + 1)
    highest, sums = window(carried, 0, NR), window(carried, NR, NR)
    for first in range(0, len(scores), tile):
        part_scores = window(scores, first, np.int64(min(tile, len(scores) - first)))
        factors = window(row_of(scratch.factors, task), first // tile * NR, NR)
        _largest(part_scores, part.scale, most)
        for j in range(NR):
            now = max(most[j], highest[j])
            # Before the first tile there is nothing to multiply; where no score is a number, the sum is NaN.
            factors[j] = _ZERO if highest[j] == _MINUS_INF else exp_negative(np.float32(highest[j] - now))
            highest[j] = now
        _spread(highest, most)
        _clear(total)
        column = first // tile * tile_step(part.cut)
        _exponentials(part_scores, part.scale, most, total, _rows_of(part, task, column))
        _add_lanes(total)
        for j in range(NR):
            sums[j] = np.float32(np.float32(sums[j] * factors[j]) + total[j])
        for i in range(_STEP):
            total[i] = np.float32(1)
        _probabilities(part, task, worker, part_scores, total, column)


@callee
def softmax_tasks(part: Round) -> Tasks:
    """A task is a panel of heads of a token."""
    return Tasks(np.int64(SOFTMAX), np.int64(part.cut.t * part.cut.h), np.int64(1))


@outlined
def softmax(worker: Index, team: Team, tasks: Tasks, part: Round) -> None:
    """Phase SOFTMAX."""
    share(worker, team, tasks, _softmax_task, part)
