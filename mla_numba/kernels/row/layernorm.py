"""LayerNorm of a float32 row: LayerNorm_indexK.

    m = sum(x * (1/n)),  d = x - m,  v = sum((d * d) * (1/n)),  y = (d / sqrt(v + eps)) * gamma + beta

| array       | shape   | dtype   | notes                                    |
|-------------|---------|---------|------------------------------------------|
| x           | (n,)    | float32 | sums of a product, not rounded to bf16   |
| gamma, beta | (n,)    | float32 | widened once                             |
| y           | (n+16,) | float32 | the result, not rounded; behind it lanes |

Both sums run over 16 lanes, see `rmsnorm_quant.lane_sum`. The division is one, not a product with 1 / sqrt.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Real
from .rmsnorm_quant import lane_sum


class LayerNorm(NamedTuple):
    """A norm's gamma and beta (n,) float32, and its epsilon, float32."""

    gamma: F32
    beta: F32
    epsilon: Real


@callee
def layernorm_row(x: F32, norm: LayerNorm, y: F32) -> None:
    """y[0:n] = LayerNorm of x, in float32; y (n+16,)."""
    n = len(x)
    inv_n = np.float32(1.0 / n)
    for j in range(n):
        y[j] = x[j] * inv_n
    mean = lane_sum(y, n)
    for j in range(n):
        d = x[j] - mean
        y[j] = (d * d) * inv_n
    std = np.sqrt(np.float32(lane_sum(y, n) + norm.epsilon))
    for j in range(n):
        y[j] = np.float32(np.float32((x[j] - mean) / std) * norm.gamma[j]) + norm.beta[j]
