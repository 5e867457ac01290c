"""The product with a Hadamard matrix: Hadamard_indexQ, Hadamard_indexK.

    bits[i] = bf16(rows[i] @ hadamard)

| array    | shape                  | dtype        | notes                                            |
|----------|------------------------|--------------|--------------------------------------------------|
| rows     | (n, step)              | A_BF16_DTYPE | activations of the matrix's kp, see `operand`    |
| hadamard | [panel][kp/KR][NR][KR] | uint16       | any matrix (Di, Di)                              |
| c        | (walk * mc * NR,)      | float32      | scratch                                          |
| bits     | (n, Di)                | uint16       | bf16 bits                                        |

The matrix is small and stays in cache, so rows are outside and its panels inside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Bits, Index, Values
from ..micro.operands import A, C, Y
from ..micro.ukernel import NR
from ..scalars import NONE_NONZERO, min_magnitude, sums_stay_normal, widen, window
from ..sweeps.arguments import HeadsCut, Weight
from ..sweeps.gemm import Depth, Walk, multiply_block
from ..threads.tasks import block_of, ceil_div


class HadamardRows(NamedTuple):
    """n rows as activations, row i at rows[i * step], and their products (n, Di), flat."""

    rows: Values
    step: Index
    n: Index
    bits: Bits


@callee
def _min_row_magnitude(work: HadamardRows, first: Index, rows: Index, kp: Index) -> Index:
    least = NONE_NONZERO
    for i in range(first, first + rows):
        least = min(least, min_magnitude(window(work.rows, i * work.step, kp)))
    return np.int32(least)


@callee
def multiply_rows(work: HadamardRows, hadamard: Weight, cut: HeadsCut, head_dim: Index, sums: F32) -> None:
    """Hadamard_indexQ or Hadamard_indexK of some rows."""
    n_panels = ceil_div(head_dim, NR)
    n_blocks, n_walks = ceil_div(work.n, cut.mc_uk), ceil_div(n_panels, cut.walk_uk)
    depth, c = Depth(np.int64(0), hadamard.kp, cut.kc_uk), C(sums, np.int64(0), False)
    for ib in range(n_blocks):
        first, rows = block_of(work.n, n_blocks, ib)
        magnitude = _min_row_magnitude(work, first, rows, hadamard.kp)
        no_subnormals = sums_stay_normal(magnitude, hadamard.min_magnitude)
        a = A(work.rows, first * work.step, work.step)
        # Loop 4: the matrix's panels
        for iw in range(n_walks):
            panel, n = block_of(n_panels, n_walks, iw)
            walk = Walk(hadamard.panels, hadamard.kp, panel, n, n)
            y = Y(
                work.bits, first * head_dim + panel * NR, head_dim, hadamard.col_scale, np.int64(0),
                hadamard.col_scale, hadamard.offset, np.int64(0),
            )  # fmt: skip
            multiply_block(a, rows, walk, depth, c, no_subnormals, y, min(n * NR, head_dim - panel * NR))


@callee
def widen_row(bits: Bits, y: F32) -> None:
    """y[j] = the float32 of bf16 bits."""
    for j in range(len(bits)):
        y[j] = widen(bits[j])
