"""Weights in the order in which a microkernel reads them: [batch][panel][part][part_kp / KR][NR][KR], packed once.

A weight keeps its own type. Columns are padded to NR and each part of k to KR by zeros. bf16 pairs are stored odd k
first (see `ukernel`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .launch import kernel
from .llvm_ir import IN_L1
from .micro.ukernel import A_OFFSET, KR_INT8, MR, NR, ukernel
from .scalars import least_magnitude, window
from .threads.tasks import ceil_div


@kernel
def pack_panels(
    w: Any, batch: Any, k: Any, columns: Any, batch_stride: Any, row_stride: Any, kr: Any, n_parts: Any, odd_first: Any,
    out: Any,
) -> None:  # fmt: skip
    """Packs `batch` matrices (k, n), element (i, p, j) at w[i*batch_stride + p*row_stride + columns[j]].

    columns (n,) int64, -1 for one of zeros; k % n_parts == 0. w and out are flat and of one dtype, uint16 (bf16 bits)
    or int8; `out` may be uninitialised. With `odd_first`, the kr steps of k lie in reverse.
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
                    row = source + (part * part_k + step * kr + r) * row_stride
                    for j in range(n_cols):
                        packed[j * kr + place] = w[row + taken[j]] if taken[j] >= 0 else 0
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
            ukernel(MR, k, a, 0, k, b, 0, 0, 0, IN_L1, by_pairs, 0, False, True)
        else:
            ukernel(MR, k, a, 0, k, b, 0, 0, 0, IN_L1, by_steps, 0, False, False)
