"""RMSNorm and dynamic int8 quantisation of a row, fused: RmsNorm_qa, Quant_qMnRes, RmsNorm_compressedkv, Quant_knope.

    y = bf16(gamma * (x * (1 / sqrt(sum(x * x * (1/n)) + eps)))),  s = 127 / max|y|,  code = rint(y * s),  scale = 1 / s

| array   | shape   | dtype             | notes                                                                  |
|---------|---------|-------------------|------------------------------------------------------------------------|
| x       | (t, .)  | uint16            | bf16 bits                                                              |
| gamma   | (n,)    | float32           | widened once                                                           |
| smooth  | (n,)    | float32           | empty where there is none                                              |
| y       | flat    | float32           | scratch: the normalised row, rounded to bf16 and widened again         |
| codes   | (t, n)  | int8              |                                                                        |

The sum of squares runs over 16 lanes (lane = index mod 16, ascending) that are then added as a tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ._jit import kernel
from .packing import packed_row
from .simd import A_OFFSET, KR_INT8, bits_of_f32, f32_of_bits, round_bf16, widen

N_LANES = 16
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds a float32 below 2**22 to an integer, half to even
_INF_BITS = np.int32(0x7F800000)
_ABS_MASK = np.int32(0x7FFFFFFF)


@register_jitable
def sum_of_squares(x: Any, row: Any, col0: Any, n: Any, lanes: Any, lanes_off: Any) -> Any:
    """sum((x*x) * (1/n)) over x[row, col0:col0+n] in 16 lanes and a tree; lanes[lanes_off:+16] is scratch."""
    inv_n = np.float32(1.0 / n)
    for lane in range(N_LANES):
        lanes[lanes_off + lane] = np.float32(0)
    for j0 in range(0, n, N_LANES):
        for lane in range(min(np.int64(N_LANES), n - j0)):
            value = widen(x[row, col0 + j0 + lane])
            lanes[lanes_off + lane] += (value * value) * inv_n
    half = N_LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lanes_off + lane] += lanes[lanes_off + lane + half]
        half //= 2
    return lanes[lanes_off]


@register_jitable
def rmsnorm_row(x: Any, row: Any, col0: Any, gamma: Any, epsilon: Any, y: Any, y_off: Any) -> None:
    """y[y_off:y_off+n] = RMSNorm of x[row, col0:col0+n], n = len(gamma), as float32 values of bf16.

    y[y_off+n : y_off+n+16] is scratch too.
    """
    n = len(gamma)
    total = sum_of_squares(x, row, col0, n, y, y_off + n)
    r = np.float32(np.float32(1) / np.sqrt(np.float32(total + epsilon)))
    for j in range(n):
        y[y_off + j] = widen(round_bf16(gamma[j] * (widen(x[row, col0 + j]) * r)))


@register_jitable
def quant_scale(y: Any, y_off: Any, n: Any) -> Any:
    """127 / max|y|, or 0 where that is not finite because the row is zero or nearly so; NaN for a row with a NaN."""
    top = np.int32(0)
    for j in range(n):  # absolute values order as their bits do, and integers vectorise
        top = max(top, np.int32(np.int32(bits_of_f32(y[y_off + j])) & _ABS_MASK))
    amax = f32_of_bits(np.uint32(top))
    if amax == np.float32(0):
        return np.float32(0)
    s = np.float32(np.float32(127) / amax)
    return np.float32(0) if s == np.float32(np.inf) else s


@register_jitable
def quant_code(value: Any, s: Any) -> Any:
    """rint(value * s) saturated to int8, half to even; 0 where the product is not a number."""
    code = np.float32(np.float32(value * s) + _ROUND) - _ROUND
    code = min(max(code, np.float32(-128)), np.float32(127)) if code == code else np.float32(0)
    return np.int8(np.int32(code))


@register_jitable
def dequant_scale(s: Any) -> Any:
    """1 / s, and 0 for the zero row's 0."""
    return np.float32(0) if s == np.float32(0) else np.float32(np.float32(1) / s)


@register_jitable
def smooth_row(y: Any, y_off: Any, smooth: Any) -> None:
    """y *= smooth, in place; an empty `smooth` is none."""
    for j in range(len(smooth)):
        y[y_off + j] = y[y_off + j] * smooth[j]


@register_jitable
def pack_codes(codes: Any, row: Any, kp: Any, t: Any, mc: Any, out: Any) -> None:
    """Writes codes[row] (n,) to its place among the packed activations of an int8 product, zeros up to kp."""
    n = codes.shape[1]
    first, mr, place = packed_row(t, mc, row)
    base = first * kp + place * KR_INT8
    zero = np.int32(A_OFFSET)
    whole = n // KR_INT8
    for step in range(whole):
        at = base + step * mr * KR_INT8
        for r in range(KR_INT8):
            out[at + r] = np.int32(codes[row, step * KR_INT8 + r]) + zero
    for p in range(whole * KR_INT8, kp):
        code = np.int32(codes[row, p]) if p < n else np.int32(0)
        out[base + p // KR_INT8 * mr * KR_INT8 + p % KR_INT8] = code + zero


@kernel
def quant_x(x: Any, mc: Any, kp: Any, y: Any, codes: Any, scale: Any, packed: Any, n_workers: Any) -> None:
    """Quant_x: rows of x (t, k) uint16 to int8 codes (t, k), scale (t,) and packed activations. y: (n_workers, k)."""
    t, k = x.shape
    for worker in prange(n_workers):
        for row in range(t * worker // n_workers, t * (worker + 1) // n_workers):
            for j in range(k):
                y[worker, j] = widen(x[row, j])
            s = quant_scale(y[worker], 0, k)
            scale[row] = dequant_scale(s)
            for j in range(k):
                codes[row, j] = quant_code(y[worker, j], s)
            pack_codes(codes, row, kp, t, mc, packed)
