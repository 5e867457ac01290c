"""What a microkernel is handed: arrays taken as flat, and where in each it begins.

| operand | array                | shape              | dtype                      | notes                           |
|---------|----------------------|--------------------|----------------------------|---------------------------------|
| A       | rows                 | [mr] by step, [k]  | A_BF16_DTYPE, A_INT8_DTYPE | by the weight's, see `operand`  |
| B       | panels               | [k/KR], KR * NR    | uint16 (bf16 bits), int8   | see `isa.BlockOrder`            |
| C       | sums                 | [mr][NR]           | float32, int32             | may be uninitialised            |
| Y       | values               | [mr] by step, [NR] | uint16, or float32 of bf16 | float32 where it is to be an A  |
| Y       | offset               | [NR]               | int32                      | read for int8 weights only      |
| Y       | row_scale, col_scale | [mr], [NR]         | float32                    | likewise; else sums are rounded |

Positions, steps and distances count elements.
"""

from __future__ import annotations

from typing import NamedTuple

from ..kinds import F32, Index, Int32, Values

__all__ = ["A", "B", "C", "Second", "Y"]


class A(NamedTuple):
    """Rows of activations from rows[at] on, `step` apart."""

    rows: Values
    at: Index
    step: Index


class B(NamedTuple):
    """A panel of a packed weight from panels[at] on.

    Meanwhile panels are prefetched from at + ahead on, ahead_step elements a step of KR: what is read next, at the pace
    at which it is needed, to where `locality` says (ONCE, IN_L2 or IN_L1 of `llvm_ir`).
    """

    panels: Values
    at: Index
    ahead: Index
    ahead_step: Index
    locality: Index


class C(NamedTuple):
    """Sums from sums[at] on, a row of NR after the other; with `carry` they go on from what is there."""

    sums: Values
    at: Index
    carry: bool


class Second(NamedTuple):
    """Another register tile of the same rows: its panel is `panel` behind that of B, its sums `sums` behind those of C.

    It stores the NR columns of Y behind those of the first.
    """

    panel: Index
    sums: Index


class Y(NamedTuple):
    """Where bf16 results go, from values[at] on, `step` apart, and what int8 sums are scaled with on the way.

    Row i takes row_scale[row_at + i]; column j takes offset[col_at + j] and col_scale[col_at + j].
    """

    values: Values
    at: Index
    step: Index
    row_scale: F32
    row_at: Index
    col_scale: F32
    offset: Int32
    col_at: Index
