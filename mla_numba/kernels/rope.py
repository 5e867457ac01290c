"""Rotary position embedding, interleaved in and halves out: RotaryPosEmb, Rope_qRope.

    x' = x[0], x[2], ..., x[1], x[3], ...      y = bf16(x' * cos + rotate_half(x') * sin)

Two products and one add in float32, never fused. cos and sin rows are float32 (widened from bf16), both halves read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from .simd import round_bf16


@register_jitable
def rope_value(j: Any, half: Any, even: Any, odd: Any, cos: Any, sin: Any) -> Any:
    """Element j of a rotated row, from the interleaved pair (even, odd) that it depends on."""
    if j < half:
        return round_bf16(even * cos + (odd * np.float32(-1)) * sin)
    return round_bf16(odd * cos + (even + np.float32(0)) * sin)
