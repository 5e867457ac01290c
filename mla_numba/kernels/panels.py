"""Weights in the order in which a microkernel reads them, packed once.

The order is [batch][panel][part][part_kp / KR], then a block of KR steps of k of NR columns.
A weight keeps its own type. Columns are padded to NR and each part of k to KR by zeros. `isa.BlockOrder` says where an
element lies in its block.

Memory is placed near whoever writes it first. So a worker packs the panels that the worker of its number reads: its
even share of them, as `threads.tasks` cuts it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit.callee import callee
from .kinds import F32, Bits, Codes, Index, Int32, Int64, Values
from .launch import kernel
from .llvm_ir import IN_L1
from .micro.operands import A, B, C
from .micro.ukernel import A_SURPLUS, KR_INT8, MR, NR, ukernel
from .scalars import min_magnitude, window
from .threads.tasks import block_start, ceil_div


class Matrices(NamedTuple):
    """Matrices (k, n), flat: element (p, j) of matrix i at values[i*batch_stride + p*row_stride + columns[j]].

    columns (n,) int64, -1 for one of zeros.
    """

    values: Values
    k: Index
    columns: Int64
    batch_stride: Index
    row_stride: Index


class Order(NamedTuple):
    """How k is packed: each of n_parts equal parts in blocks of kr steps.

    places (kr, NR) and flips (kr,), int64, are those of the `Isa`.
    """

    kr: Index
    n_parts: Index
    places: Int64
    flips: Int64


class Share(NamedTuple):
    """Whose panels are whose: each of n_workers has an even run of n_units units, of `unit` panels that stay together.

    Of all these panels, `out` has some that follow each other, from number `first` on.
    """

    n_workers: Index
    n_units: Index
    unit: Index
    first: Index


@callee
def panels_of(share: Share, worker: Index, n_panels: Index) -> tuple[Index, Index]:
    """(begin, end) of the panels that a worker has of the n_panels in `out`; begin >= end where it has none."""
    begin = block_start(share.n_units, share.n_workers, worker) * share.unit - share.first
    end = block_start(share.n_units, share.n_workers, worker + 1) * share.unit - share.first
    return max(np.int64(begin), np.int64(0)), min(np.int64(end), np.int64(n_panels))


@callee
def _pack_step(source: Matrices, order: Order, taken: Int64, first: Index, n_steps: Index, packed: Values) -> None:
    """n_steps <= kr steps of k of the columns `taken`, the first row at values[first], to packed (NR * kr,)."""
    kr, n_cols = order.kr, len(taken)
    if n_cols < NR or n_steps < kr:
        for r in range(kr):
            for j in range(NR):
                packed[order.places[r, j]] = order.flips[r]
    for r in range(n_steps):
        row, flip = first + r * source.row_stride, order.flips[r]
        for j in range(n_cols):
            packed[order.places[r, j]] = (source.values[row + taken[j]] if taken[j] >= 0 else 0) ^ flip


@callee
def _pack_panel(index: Index, source: Matrices, order: Order, out: Values) -> None:
    """Packs a panel, counted over all matrices."""
    n, kr = len(source.columns), order.kr
    n_panels = ceil_div(n, NR)
    part_k = source.k // order.n_parts
    steps = ceil_div(part_k, kr)
    panel = index % n_panels
    taken = window(source.columns, panel * NR, min(np.int64(NR), n - panel * NR))
    at = index * order.n_parts * steps * kr * NR
    for part in range(order.n_parts):
        for step in range(steps):
            first = index // n_panels * source.batch_stride + (part * part_k + step * kr) * source.row_stride
            _pack_step(source, order, taken, first, min(kr, part_k - step * kr), window(out, at, NR * kr))
            at += NR * kr


@kernel
def pack_panels(worker: Index, share: Share, source: Matrices, order: Order, out: Values) -> None:
    """Packs a worker's share of the panels of all matrices.

    k % n_parts == 0. values and out are flat and of one dtype, uint16 (bf16 bits) or int8; `out` may be uninitialised.
    """
    panel_size = order.n_parts * ceil_div(source.k // order.n_parts, order.kr) * order.kr * NR
    begin, end = panels_of(share, worker, len(out) // panel_size)
    for panel in range(begin, end):
        _pack_panel(panel, source, order, out)


@kernel
def column_offsets(panel: Index, panels: Codes, kp: Index, places: Int64, out: Int32) -> None:
    """out[panel*NR + j] (int32) = -the sum of A_SURPLUS * packed int8 column j: takes off what the surplus of A adds.

    Where codes are flipped (`BlockOrder`) there is no surplus. places (KR, NR) int64, as of the `Isa`.
    """
    for j in range(NR):
        total = np.int64(0)
        for p in range(kp):
            r = p % KR_INT8
            step = (panel * kp + p - r) * NR
            total += A_SURPLUS[r] * np.int64(panels[step + places[r, j]])
        out[panel * NR + j] = np.int32(-total)


@kernel
def min_magnitudes(i: Index, panels: Bits, chunk: Index, out: Int32) -> None:
    """out[i] (int32): `min_magnitude` of elements i*chunk.. of packed bf16 panels."""
    at = i * chunk
    out[i] = min_magnitude(window(panels, at, min(chunk, len(panels) - at)))


@kernel
def multiply_both_ways(way: Index, rows: Values, panel: Bits, k: Index, by_pairs: F32, by_steps: F32) -> None:
    """One register tile by the instruction for bf16 pairs (way 0) and by plain multiply-adds (1), to be compared."""
    zero = np.int64(0)
    a, b = A(rows, zero, k), B(panel, zero, zero, zero, np.int64(IN_L1))
    if way == 0:
        ukernel(MR, k, a, b, C(by_pairs, zero, False), True)
    else:
        ukernel(MR, k, a, b, C(by_steps, zero, False), False)
