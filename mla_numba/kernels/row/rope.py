"""Rotary position embedding: RotaryPosEmb, Rope_qRope.

    y = x * cos + rotate_half(x) * sin

| array    | shape | dtype   | notes                                                               |
|----------|-------|---------|---------------------------------------------------------------------|
| x        | (R,)  | uint16  | bf16 bits, or float32, as halves: the weights' columns are packed so |
| cos, sin | (R,)  | uint16  | bf16 bits; both halves are read                                     |
| y        | (R,)  | float32 | whoever stores it rounds it to bf16                                 |

Two products and one add, never fused. Interleaved pairs, which the operator is fed with, are put apart when the weights
are packed: that costs nothing in a call.
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Bits, Values
from ..scalars import as_f32, widen, window


@callee
def rotate_row(x: Values, cos: Bits, sin: Bits, y: F32) -> None:
    """One row."""
    half = len(x) // 2
    x_far, y_far = window(x, half, half), window(y, half, half)
    cos_far, sin_far = window(cos, half, half), window(sin, half, half)
    for j in range(half):
        y[j] = as_f32(x[j]) * widen(cos[j]) + (as_f32(x_far[j]) * np.float32(-1)) * widen(sin[j])
    for j in range(half):
        y_far[j] = as_f32(x_far[j]) * widen(cos_far[j]) + (as_f32(x[j]) + np.float32(0)) * widen(sin_far[j])
