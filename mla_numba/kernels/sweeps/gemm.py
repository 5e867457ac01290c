"""The loops around the microkernel, for bf16 and int8 alike, and sweep 1.

    int8: y[t, col] = bf16((float32(sum_k a[t, k] * b[k, col] + offset[col]) * row_scale[t]) * col_scale[col])
    bf16: y[t, col] = bf16(sum_k a[t, k] * b[k, col])

Five loops as in BLIS, from the outside in: token blocks of mc rows and walks of panels are the tasks (loops 5 and 4),
then k in blocks of kc (3), register tiles down the token block (2) and across the walk's panels (1). An output element
is one accumulator in ascending k: a block of k loads what the block before it stored, in this task or in that of the
leg before, see `threads.relays`. Only a product with two `parts` (contract of Matmul_qa: two sums over the halves of k)
has two accumulators, added once at the end.

| array   | shape                          | dtype            | notes                                                |
|---------|--------------------------------|------------------|------------------------------------------------------|
| a.rows  | (t, lda >= kp)                 | see `operands`   | activations, see `operand`                           |
| panels  | [panel][kp / KR][NR][KR]       | uint16 or int8   | packed weights; parts of k padded to KR by zeros     |
| offset  | [panel][NR]                    | int32            | what the u8 form of A adds, negated; of int8 only    |
| sums    | (n_workers, parts * walk * mc * NR) | float32 or int32 | scratch: sums that go on, or that fill no panel |
|         | or (n_relays, ...)             |                  | where a walk has legs, a row for each walk and block |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..jit.callee import by_dtype, callee
from ..kinds import Bits, Index, Values
from ..launch import kernel, outlined
from ..llvm_ir import AHEAD_L2_BYTES, AHEAD_ONCE_BYTES, IN_L1, IN_L2, ONCE
from ..micro.epilogue import store_tile
from ..micro.operands import A, B, C, Second, Y
from ..micro.ukernel import (
    KR_BF16,
    KR_INT8,
    MR,
    NR,
    rows_of_two,
    ukernel,
    ukernel_store,
    ukernel_two,
    ukernel_two_store,
)  # fmt: skip
from ..scalars import min_of, round_bf16, row_of, sums_stay_normal, unowned, window
from ..threads.tasks import block_of, ceil_div
from .arguments import Activations, PairCut, Weight
from .phase import Tasks, Team, share_legs

# Rows of a register tile that leave time to fetch each line of weights into L1 just before it is read.
_FEW_ROWS = MR // 2
_SUM_BYTES = 4


@callee
def _kr_int8(panels: Values) -> int:
    return KR_INT8


@callee
def _kr_bf16(panels: Values) -> int:
    return KR_BF16


@by_dtype("panels", {np.int8: _kr_int8}, otherwise=_kr_bf16)
def step_of(panels: Values) -> Index:
    """KR of a packed weight."""


class Walk(NamedTuple):
    """Some panels of a packed weight, kp long, that a block of A meets one after the other: first..first+n.

    Those from first+following on come next and are prefetched; 0 where none come, and nobody may read what is behind.
    """

    panels: Values
    kp: Index
    first: Index
    n: Index
    following: Index


class Depth(NamedTuple):
    """The k of a product: begin..end in blocks of kc, all multiples of KR."""

    begin: Index
    end: Index
    kc: Index


@callee
def multiply_block(a: A, rows: Index, walk: Walk, depth: Depth, c: C, no_subnormals: bool, y: Y, n_cols: Index) -> None:
    """Y = bf16((A[rows, begin:end] @ B[walk, begin:end] + offset) * scales).

    With n_cols = 0 the sums stay in C, as [walk][rows][NR]; else that many columns are stored.
    """
    # Tiles of few rows take two panels at once: a panel's sums alone would wait for each other.
    n_tiles, few = ceil_div(rows, MR), _rows_of_two_in(walk, rows)
    all_rows, panels, sums, values = unowned(a.rows), unowned(walk.panels), unowned(c.sums), unowned(y.values)
    row_scale, col_scale, offset = unowned(y.row_scale), unowned(y.col_scale), unowned(y.offset)
    # Loop 3: split k in kc (A, B); not parallel: the sums run on in C.
    for ks in range(depth.begin, depth.end, depth.kc):
        k_cur = min(depth.kc, depth.end - ks)
        last = ks + k_cur == depth.end
        # Loop 2: split the token block in register tiles of mr_cur rows (A, C)
        for ib in range(n_tiles):
            first, mr_cur = _tile_of(rows, n_tiles, ib, few)
            ahead, ahead_step, locality = _what_to_prefetch(walk, ks, k_cur, first, rows, mr_cur)
            a_here = A(all_rows, a.at + first * a.step + ks, a.step)
            # Loop 1: the panels of the walk, while this block of A stays in L1 (B, C)
            p = np.int64(0)
            while p < walk.n:
                panel = walk.first + p
                b = B(panels, (panel * walk.kp + ks) * NR, ahead, ahead_step, locality)
                c_here = C(sums, c.at + (p * rows + first) * NR, c.carry or ks > depth.begin)
                y_here = Y(
                    values, y.at + first * y.step + p * NR, y.step, row_scale, y.row_at + first, col_scale, offset,
                    panel * NR,
                )  # fmt: skip
                # Columns that are stored after this block, of this panel and those behind it
                n_left = n_cols - p * NR if last else 0
                if mr_cur <= few and p + 2 <= walk.n and (n_left <= 0 or n_left >= 2 * NR):
                    second = Second(walk.kp * NR, rows * NR)
                    if n_left > 0:
                        ukernel_two_store(mr_cur, k_cur, a_here, b, c_here, no_subnormals, y_here, second)
                    else:
                        ukernel_two(mr_cur, k_cur, a_here, b, c_here, no_subnormals, second)
                    p += 2
                    continue
                if n_left >= NR:
                    ukernel_store(mr_cur, k_cur, a_here, b, c_here, no_subnormals, y_here)
                else:
                    ukernel(mr_cur, k_cur, a_here, b, c_here, no_subnormals)
                    if n_left > 0:
                        store_tile(mr_cur, n_left, c_here, y_here)
                p += 1


@callee
def _are_long(walk: Walk) -> bool:
    """Whether a walk's panels are longer than what is prefetched ahead of few rows."""
    return walk.kp * NR * walk.panels.itemsize > AHEAD_ONCE_BYTES


@callee
def _rows_of_two_in(walk: Walk, rows: Index) -> Index:
    """Up to how many rows of a tile take two panels of a walk at once; 0 where none do.

    A token block of one row takes short panels one by one: a core begins with the next one before the sums of this one
    have waited for each other, and from memory one stream comes faster than two.
    """
    at_once = walk.n > 1 and (rows > 1 or _are_long(walk))
    return np.int64(rows_of_two(walk.panels) if at_once else 0)


@callee
def _tile_of(rows: Index, n_tiles: Index, tile: Index, few: Index) -> tuple[Index, Index]:
    """(first row, rows) of a register tile: they are nearly even.

    But where the smallest would have one row more than `few`, the last one has `few`, and so takes two panels at once.
    """
    if few > 0 and n_tiles > 1 and rows // n_tiles == few + 1 and rows - few <= (n_tiles - 1) * MR:
        return block_of(rows - few, n_tiles - 1, tile) if tile < n_tiles - 1 else (rows - few, few)
    return block_of(rows, n_tiles, tile)


@callee
def _what_to_prefetch(
    walk: Walk, ks: Index, k_cur: Index, first: Index, rows: Index, mr_cur: Index
) -> tuple[Index, Index, Index]:
    """(ahead, ahead_step, locality) of `operands.B`.

    A single register tile reads each weight once, so it asks for what it will read itself a little later; of two short
    panels at once, for the two behind them. Of several tiles, only the first would wait for memory: so each asks for
    its rows' share of the block that comes next in B, which has arrived when this one is done. Which cache they come to
    was measured, see docs/performance.md.
    """
    kr = step_of(walk.panels)
    if rows == mr_cur:
        few = mr_cur <= _FEW_ROWS
        distance = (AHEAD_ONCE_BYTES if few else AHEAD_L2_BYTES) // walk.panels.itemsize
        if mr_cur <= _rows_of_two_in(walk, rows) and not _are_long(walk):
            distance = 2 * walk.kp * NR
        return np.int64(distance), np.int64(NR * kr), np.int64(ONCE if few else IN_L2)
    # Behind this block lies the panel's next one; behind its last come the panels that follow.
    following = (k_cur if ks + k_cur < walk.kp else walk.following * walk.kp - ks) * NR
    locality = np.int64(IN_L2 if rows <= 2 * MR else IN_L1)
    return np.int64(following + k_cur * NR * first // rows), np.int64(NR * kr * mr_cur // rows), locality


@callee
def _store_split(c: C, second_at: Index, rows: Index, walk: Index, n_cols: Index, y: Y) -> None:
    """Two sums, one add, one rounding."""
    for p in range(walk):
        n_cur = min(np.int64(NR), n_cols - p * NR)
        for i in range(rows):
            at = (p * rows + i) * NR
            first, second = window(c.sums, c.at + at, n_cur), window(c.sums, second_at + at, n_cur)
            out = window(y.values, y.at + i * y.step + p * NR, n_cur)
            for j in range(n_cur):
                out[j] = round_bf16(first[j] + second[j])


@callee
def _store_sums(c: C, rows: Index, walk: Index, n_cols: Index, out: Values, y: Y) -> None:
    """The sums as they are, float32, to out, at the places of y."""
    for p in range(walk):
        n_cur = min(np.int64(NR), n_cols - p * NR)
        for i in range(rows):
            sums = window(c.sums, c.at + (p * rows + i) * NR, n_cur)
            here = window(out, y.at + i * y.step + p * NR, n_cur)
            for j in range(n_cur):
                here[j] = sums[j]


@callee
def _bits_themselves(y: Values, panels: Values) -> Bits:
    return y


@callee
def _no_bits(y: Values, panels: Values) -> Bits:
    return window(panels, 0, 0)


@by_dtype("y", {np.float32: _no_bits}, otherwise=_bits_themselves)
def _rounded_to(y: Values, panels: Values) -> Any:
    """Where a product's bf16 bits go: y, or nowhere if y takes the float32 sums; the panels are bits of some kind."""


class Pair(NamedTuple):
    """Two products of the same A: y0 from the first panels of B, y1 from the others.

    y0 (t, n0), y1 (t, n1): uint16 bits of bf16, or float32 sums that are not rounded. If the weight has two parts, y0,
    of bf16, is the sum of two sums, over the halves of k; y1 is always one sum. sums (n_workers, ...): see above.
    """

    a: Activations
    weight: Weight
    y0: Values
    y1: Values
    sums: Values
    cut: PairCut


@callee
def pair_tasks(phase: Index, pair: Pair) -> Tasks:
    """The tasks of two products."""
    n_walks0 = ceil_div(ceil_div(pair.y0.shape[1], NR), pair.cut.walk0)
    n_walks1 = ceil_div(ceil_div(pair.y1.shape[1], NR), pair.cut.walk1)
    n_blocks = ceil_div(pair.y0.shape[0], pair.cut.mc)
    n_tasks = (n_walks0 + n_walks1) * n_blocks * pair.cut.legs
    return Tasks(np.int64(phase), np.int64(n_tasks), np.int64(pair.cut.grain))


@callee
def _leg_of(weight: Weight, n_legs: Index, leg: Index) -> tuple[Index, Index]:
    """(begin, end) of a leg in k, whole steps of KR."""
    kr = step_of(weight.panels)
    begin, n = block_of(weight.kp // kr, n_legs, leg)
    return begin * kr, (begin + n) * kr


@callee
def pair_task(task: Index, n_tasks: Index, worker: Index, pair: Pair) -> None:
    """One task of two products. Walks of B are outside, token blocks of A inside, so that B is read once."""
    a, weight, cut = pair.a, pair.weight, pair.cut
    t, lda = pair.y0.shape[0], a.rows.shape[1]
    n_panels0, n_panels1 = ceil_div(pair.y0.shape[1], NR), ceil_div(pair.y1.shape[1], NR)
    n_walks0, n_walks1 = ceil_div(n_panels0, cut.walk0), ceil_div(n_panels1, cut.walk1)
    n_blocks = ceil_div(t, cut.mc)
    relay, leg = task % (n_tasks // cut.legs), task // (n_tasks // cut.legs)
    walk_index = relay // n_blocks
    row0, rows = block_of(t, n_blocks, relay % n_blocks)
    no_subnormals = sums_stay_normal(min_of(window(a.min_magnitude, row0, rows)), weight.min_magnitude)
    if walk_index < n_walks0:
        out, first_panel, parts = pair.y0, np.int64(0), np.int64(weight.n_parts)
        panel, walk = block_of(n_panels0, n_walks0, walk_index)
    else:
        out, first_panel, parts = pair.y1, np.int64(n_panels0), np.int64(1)
        panel, walk = block_of(n_panels1, n_walks1, walk_index - n_walks0)
    n_cols = min(walk * NR, out.shape[1] - panel * NR)
    rows_of_a = A(a.rows, row0 * lda, lda)
    panels = Walk(weight.panels, weight.kp, first_panel + panel, walk, walk)
    y_at = row0 * out.shape[1] + panel * NR
    bits, keeps = _rounded_to(out, weight.panels), out.itemsize == _SUM_BYTES
    y = Y(bits, y_at, out.shape[1], a.scale, row0, weight.col_scale, weight.offset, np.int64(0))
    part, second = weight.kp // parts, np.int64(walk) * rows * NR
    sums = row_of(pair.sums, relay if cut.legs > 1 else worker)
    begin, end = _leg_of(weight, cut.legs, leg)
    for s in range(parts):
        depth = Depth(max(begin, s * part), min(end, (s + 1) * part), cut.kc)
        if depth.begin < depth.end:
            n_stored = n_cols if parts == 1 and end == weight.kp and not keeps else np.int64(0)
            c = C(sums, s * second, depth.begin > s * part)
            multiply_block(rows_of_a, rows, panels, depth, c, no_subnormals, y, n_stored)
    if keeps and end == weight.kp:
        _store_sums(C(sums, np.int64(0), False), rows, walk, n_cols, out, y)
    elif parts == 2 and end == weight.kp:
        _store_split(C(sums, np.int64(0), False), second, rows, walk, n_cols, y)


@outlined
def down(worker: Index, team: Team, tasks: Tasks, pair: Pair) -> None:
    """Phase DOWN: Matmul_qa, Matmul_kva; two products of any weight."""
    share_legs(worker, team, tasks, pair.cut.legs, pair.cut.groups, pair_task, pair)


@kernel
def matmul_pair(worker: Index, team: Team, tasks: Tasks, pair: Pair) -> None:
    """Two products of the same A in a parallel region of their own."""
    down(worker, team, tasks, pair)
