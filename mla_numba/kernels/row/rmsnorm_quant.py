"""RMSNorm and dynamic int8 quantisation of a row, fused: RmsNorm_qa, Quant_qMnRes, RmsNorm_compressedkv, Quant_knope.

    y = bf16(gamma * (x * (1 / sqrt(sum(x * x * (1/n)) + eps)))),  s = 127 / max|y|,  code = rint(y * s),  scale = 1 / s

In the numerics of CANN, `cann`, y is not rounded to bf16 before it is quantised, and scale = max|y| / 127.

| array   | shape   | dtype             | notes                                                                  |
|---------|---------|-------------------|------------------------------------------------------------------------|
| x       | (n,)    | uint16            | bf16 bits of one row                                                   |
| gamma   | (n,)    | float32           | widened once                                                           |
| smooth  | (n,)    | float32           | empty where there is none                                              |
| y       | (n+16,) | float32           | scratch: the normalised row, usually rounded to bf16; then lanes       |
| codes   | (n,)    | int8              |                                                                        |

The sum of squares runs over 16 lanes (lane = index mod 16, ascending) that are then added as a tree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Bits, Codes, Index, Real
from ..scalars import bits_of_f32, f32_of_bits, round_bf16, widen, window

N_LANES = 16
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds a float32 below 2**22 to an integer, half to even
_ABS_MASK = np.int32(0x7FFFFFFF)


@callee
def lane_sum(y: F32, n: Index) -> Real:
    """The sum of y[0:n] in 16 lanes and a tree; y (n+16,), whose last 16 are scratch."""
    lanes = window(y, n, N_LANES)
    for lane in range(N_LANES):
        lanes[lane] = np.float32(0)
    for j0 in range(0, n, N_LANES):
        here = window(y, j0, min(np.int64(N_LANES), n - j0))
        for lane in range(len(here)):
            lanes[lane] += here[lane]
    half = N_LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@callee
def sum_of_squares(x: Bits, y: F32) -> Real:
    """sum((x*x) * (1/n)) in 16 lanes and a tree; y (n+16,) is scratch."""
    n = len(x)
    inv_n = np.float32(1.0 / n)
    for j in range(n):
        value = widen(x[j])
        y[j] = (value * value) * inv_n
    return lane_sum(y, n)


class Norm(NamedTuple):
    """A norm's weight gamma (n,) float32 and epsilon, float32; what follows it, smooth (n,) float32, or empty."""

    gamma: F32
    epsilon: Real
    smooth: F32


@callee
def rmsnorm_row(x: Bits, norm: Norm, in_fp32: bool, y: F32) -> None:
    """y[0:n] = RMSNorm of x, as float32 values of bf16 unless it stays `in_fp32`."""
    gamma = window(norm.gamma, 0, len(x))
    total = sum_of_squares(x, y)
    r = np.float32(np.float32(1) / np.sqrt(np.float32(total + norm.epsilon)))
    if in_fp32:
        for j in range(len(x)):
            y[j] = gamma[j] * (widen(x[j]) * r)
    else:
        for j in range(len(x)):
            y[j] = widen(round_bf16(gamma[j] * (widen(x[j]) * r)))


@callee
def quant_scales(y: F32, cann: bool) -> tuple[Real, Real]:
    """s = 127 / max|y| and the dequantisation scale.

    Both are 0 where s overflows because the row is zero or nearly so, and NaN for a row with a NaN. An Inf makes s 0
    and the scale Inf.
    """
    top = np.int32(0)
    for j in range(len(y)):  # absolute values order as their bits do, and integers vectorise
        top = max(top, np.int32(np.int32(bits_of_f32(y[j])) & _ABS_MASK))
    amax = f32_of_bits(np.uint32(top))
    if amax == np.float32(0):
        return np.float32(0), np.float32(0)
    if amax == np.float32(np.inf):
        return np.float32(0), amax
    s = np.float32(np.float32(127) / amax)
    if s == np.float32(np.inf):
        return np.float32(0), np.float32(0)
    return s, np.float32(amax / np.float32(127)) if cann else np.float32(np.float32(1) / s)


@callee
def quant_code(value: Real, s: Real) -> np.int8:
    """rint(value * s) saturated to int8, half to even; 0 where the product is not a number."""
    code = np.float32(np.float32(value * s) + _ROUND) - _ROUND
    code = min(max(code, np.float32(-128)), np.float32(127)) if code == code else np.float32(0)
    return np.int8(np.int32(code))


@callee
def quant_row(y: F32, s: Real, codes: Codes) -> None:
    """The codes rint(y * s) of a row."""
    for j in range(len(y)):
        codes[j] = quant_code(y[j], s)


@callee
def smooth_row(y: F32, smooth: F32) -> None:
    """y *= smooth, in place; an empty `smooth` is none."""
    for j in range(len(smooth)):
        y[j] = y[j] * smooth[j]
