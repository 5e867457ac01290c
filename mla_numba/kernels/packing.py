"""Operands in the order in which a microkernel reads them.

| operand     | packed as                                    | by                                           |
|-------------|----------------------------------------------|----------------------------------------------|
| weight      | [batch][panel][part][part_kp / KR][NR][KR]   | `pack_panels`, once                          |
| activations | [mc block][row block][kp / KR][mr][KR]       | `pack_row_bf16`; int8 codes in `rmsnorm_quant` |

A weight keeps its own type. Columns are padded to NR and each part of k to KR by zeros. bf16 pairs are stored odd k
first (see `simd`). bf16 activations are float32 with KR = 1 where the instruction set has no products of bf16 pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ._jit import kernel
from .isa import ISA
from .scalars import least_magnitude, pair_window, row_of, widen, window
from .simd import A_OFFSET, KR_BF16, KR_INT8, MR, NR, ukernel
from .tasks import block_of, block_start, ceil_div

BF16_PAIRS = ISA.bf16_dot
_K_CHUNK = 256  # k steps of a row block that are packed together, so that they are written within L1


@kernel
def pack_panels(
    w: Any, batch: Any, k: Any, columns: Any, batch_stride: Any, row_stride: Any, kr: Any, n_parts: Any, odd_first: Any,
    out: Any,
) -> None:  # fmt: skip
    """Packs `batch` matrices (k, n), element (i, p, j) at w[i*batch_stride + p*row_stride + columns[j]].

    columns (n,) int64; k % n_parts == 0. w and out are flat and of one dtype, uint16 (bf16 bits) or int8; `out` may be
    uninitialised. With `odd_first`, the kr steps of k lie in reverse.
    """
    n = len(columns)
    n_panels = ceil_div(n, NR)
    part_k = k // n_parts
    steps = ceil_div(part_k, kr)
    for task in prange(batch * n_panels):
        panel = task % n_panels
        n_cols = min(np.int64(NR), n - panel * NR)
        source = task // n_panels * batch_stride
        taken = window(columns, panel * NR, n_cols)
        at = np.int64(task) * n_parts * steps * kr * NR
        for part in range(n_parts):
            for step in range(steps):
                packed = window(out, at, NR * kr)
                if n_cols < NR or (step + 1) * kr > part_k:
                    for j in range(NR * kr):
                        packed[j] = 0
                for r in range(min(kr, part_k - step * kr)):
                    place = kr - 1 - r if odd_first else r
                    row = window(w, source + (part * part_k + step * kr + r) * row_stride, n)
                    for j in range(n_cols):
                        packed[j * kr + place] = row[taken[j]]
                at += NR * kr


@kernel
def column_offsets(b: Any, n_panels: Any, kp: Any, out: Any) -> None:
    """out[panel*NR + j] (int32) = -A_OFFSET * the sum of packed int8 column j: takes the surplus of u8 codes off."""
    for panel in prange(n_panels):
        for j in range(NR):
            total = np.int64(0)
            for p in range(kp):
                step = (np.int64(panel) * kp + p - p % KR_INT8) * NR
                total += b[step + j * KR_INT8 + p % KR_INT8]
            out[panel * NR + j] = np.int32(-A_OFFSET * total)


@register_jitable
def packed_row(t: Any, mc: Any, row: Any) -> Any:
    """Where token `row` of t lies among packed activations: (first row of its block, rows of the block, its place)."""
    n_mc = ceil_div(t, mc)
    outer = block_of(t, n_mc, row)
    row0 = block_start(t, n_mc, outer)
    rows = block_start(t, n_mc, outer + 1) - row0
    n_blocks = ceil_div(rows, MR)
    block = block_of(rows, n_blocks, row - row0)
    first = block_start(rows, n_blocks, block)
    return row0 + first, block_start(rows, n_blocks, block + 1) - first, row - row0 - first


@kernel
def least_magnitudes(panels: Any, chunk: Any, out: Any) -> None:
    """out[i] (int32): `least_magnitude` of elements i*chunk.. of packed bf16 panels."""
    for i in prange(len(out)):
        at = np.int64(i) * chunk
        out[i] = least_magnitude(window(panels, at, min(chunk, len(panels) - at)))


@kernel
def multiply_both_ways(a: Any, b: Any, k: Any, by_pairs: Any, by_steps: Any) -> None:
    """One register tile by the instruction for bf16 pairs and by plain multiply-adds, to be compared."""
    for way in prange(2):
        if way == 0:
            ukernel(np.int64(MR), k, a, np.int64(0), b, np.int64(0), by_pairs, np.int64(0), False, True)
        else:
            ukernel(np.int64(MR), k, a, np.int64(0), b, np.int64(0), by_steps, np.int64(0), False, False)


@kernel
def pack_rows_bf16(x: Any, n_parts: Any, mc: Any, out: Any, least: Any) -> None:
    """Packs x (t, k) uint16 for a product with n_parts; least (t,) int32 receives each row's `least_magnitude`."""
    t, k = x.shape
    part_k = k // n_parts
    part_kp = ceil_div(part_k, KR_BF16) * KR_BF16
    n_mc = ceil_div(t, mc)
    blocks_each = ceil_div(mc, MR)
    for task in prange(n_mc * blocks_each):
        row0 = block_start(t, n_mc, task // blocks_each)
        rows = block_start(t, n_mc, task // blocks_each + 1) - row0
        n_blocks = ceil_div(rows, MR)
        block = task % blocks_each
        if block < n_blocks:
            first = row0 + block_start(rows, n_blocks, block)
            mr = row0 + block_start(rows, n_blocks, block + 1) - first
            for part in range(n_parts):
                packed = window(out, (first * n_parts + part * mr) * part_kp, mr * part_kp)
                for k0 in range(0, part_kp, _K_CHUNK):
                    k_cur = min(_K_CHUNK, part_kp - k0)
                    for i in range(mr):
                        values = window(x, (first + i) * k + part * part_k + k0, min(k_cur, part_k - k0))
                        pack_row_bf16(values, i, mr, window(packed, k0 * mr, k_cur * mr))
            for i in range(mr):
                least[first + i] = least_magnitude(row_of(x, first + i))


@register_jitable
def pack_row_bf16(values: Any, place: Any, mr: Any, out: Any) -> None:
    """Writes one of mr rows of a block, given as bf16 bits (uint16), zeros after it.

    out: [k][mr] float32, or [k/2][mr][2] uint16 with the odd k first.
    """
    n = len(values)
    if BF16_PAIRS:
        row = window(pair_window(out, 0, len(out) // 2), place, len(out) // 2 - place)
        pairs = pair_window(values, 0, n // 2)
        for i in range(n // 2):
            row[i * mr] = np.uint32(np.uint32(pairs[i] << np.uint32(16)) | np.uint32(pairs[i] >> np.uint32(16)))
        for i in range(n // 2, len(out) // (2 * mr)):
            row[i * mr] = np.uint32(np.uint32(values[n - 1]) << np.uint32(16)) if 2 * i < n else np.uint32(0)
    else:
        row = window(out, place, len(out) - place)
        for p in range(n):
            row[p * mr] = widen(values[p])
        for p in range(n, len(out) // mr):
            row[p * mr] = np.float32(0)
