"""Rotary position embedding, interleaved in and halves out: RotaryPosEmb, Rope_qRope.

    x' = x[0], x[2], ..., x[1], x[3], ...      y = x' * cos + rotate_half(x') * sin

| array    | shape | dtype   | notes                                      |
|----------|-------|---------|--------------------------------------------|
| x        | (R,)  | float32 | values of bf16, interleaved                |
| cos, sin | (R,)  | uint16  | bf16 bits; both halves are read            |
| y        | (R,)  | float32 | halves; whoever stores it rounds it to bf16 |

Two products and one add, never fused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from .scalars import widen, window


@register_jitable
def rotate_row(x: Any, cos: Any, sin: Any, y: Any) -> None:
    """One row."""
    half = len(x) // 2
    cos_far, sin_far, y_far = window(cos, half, half), window(sin, half, half), window(y, half, half)
    for j in range(half):
        even, odd = x[2 * j], x[2 * j + 1]
        y[j] = even * widen(cos[j]) + (odd * np.float32(-1)) * widen(sin[j])
        y_far[j] = odd * widen(cos_far[j]) + (even + np.float32(0)) * widen(sin_far[j])
