"""Operands in the order in which a microkernel reads them.

| operand     | packed as                                    | by                                           |
|-------------|----------------------------------------------|----------------------------------------------|
| weight      | [batch][panel][part][part_kp / KR][NR][KR]   | `pack_panels`, once                          |
| activations | [mc block][row block][kp / KR][mr][KR]       | `pack_rows_bf16` here; int8 codes where they arise |

A weight keeps its own type. Columns are padded to NR and each part of k to KR by zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ._jit import kernel
from .scalars import widen, window
from .simd import A_OFFSET, KR_BF16, KR_INT8, MR, NR
from .tasks import block_of, block_start, ceil_div

_K_CHUNK = 256  # k steps of a row block that are packed together, so that they are written within L1


@kernel
def pack_panels(
    w: Any, batch: Any, k: Any, columns: Any, batch_stride: Any, row_stride: Any, kr: Any, n_parts: Any, out: Any
) -> None:
    """Packs `batch` matrices (k, n), element (i, p, j) at w[i*batch_stride + p*row_stride + columns[j]].

    columns (n,) int64; k % n_parts == 0. w and out are flat and of one dtype, uint16 (bf16 bits) or int8; `out` may be
    uninitialised.
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
                    row = window(w, source + (part * part_k + step * kr + r) * row_stride, n)
                    for j in range(n_cols):
                        packed[j * kr + r] = row[taken[j]]
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
def pack_rows_bf16(x: Any, n_parts: Any, mc: Any, out: Any) -> None:
    """Packs x (t, k) uint16 as float32 [mc block][row block][kp][mr], each part of k padded to KR by zeros."""
    t = x.shape[0]
    part_k = x.shape[1] // n_parts
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
                base = (first * n_parts + part * mr) * part_kp
                for k0 in range(0, part_kp, _K_CHUNK):
                    for i in range(mr):
                        _pack_row(x, first + i, part * part_k, part_k, k0, part_kp, base + i, mr, out)


@register_jitable
def _pack_row(x: Any, row: Any, col0: Any, part_k: Any, k0: Any, part_kp: Any, base: Any, mr: Any, out: Any) -> None:
    """One chunk of one row of one part: element k goes to out[base + k * mr]."""
    n = min(part_k, k0 + _K_CHUNK) - k0
    if n > 0:
        values = window(x, row * x.shape[1] + col0 + k0, n)
        column = window(out, base + k0 * mr, (n - 1) * mr + 1)
        for k in range(n):
            column[k * mr] = widen(values[k])
    for k in range(max(part_k, k0), min(part_kp, k0 + _K_CHUNK)):
        out[base + k * mr] = np.float32(0)
