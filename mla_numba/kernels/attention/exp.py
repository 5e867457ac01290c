"""The exponential of the softmax, in float32 operations that are each rounded once."""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import Real
from ..scalars import bits_of_f32, f32_of_bits

__all__ = ["BIAS", "LEAST", "LN2_HIGH", "LN2_LOW", "LOG2_E", "POLYNOMIAL", "ROUND", "TO_EXPONENT", "exp_negative"]

LEAST = np.float32(-87.0)
LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
POLYNOMIAL = (_P0, _P1, _P2, _P3, _P4, _P5)
_ONE, _ZERO = np.float32(1), np.float32(0)
ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds a float32 below 2**22 to an integer, half to even
TO_EXPONENT, BIAS = np.uint32(23), np.uint32(127)


@callee
def exp_negative(x: Real) -> Real:
    """exp(x) for x <= 0, within a unit in the last place; 0 below -87; NaN for NaN.

    With n = rint(x / ln 2) it is 2**n times a polynomial of x - n ln 2.
    """
    shifted = np.float32(x * LOG2_E) + ROUND
    n = np.float32(shifted - ROUND)
    r = np.float32(np.float32(x - np.float32(n * LN2_HIGH)) - np.float32(n * LN2_LOW))
    p = np.float32(np.float32(_P0 * r) + _P1)
    p = np.float32(np.float32(p * r) + _P2)
    p = np.float32(np.float32(p * r) + _P3)
    p = np.float32(np.float32(p * r) + _P4)
    p = np.float32(np.float32(p * r) + _P5)
    e = np.float32(np.float32(np.float32(p * np.float32(r * r)) + r) + _ONE)
    # The last bits of `shifted` are those of n.
    power = f32_of_bits(np.uint32(np.uint32(bits_of_f32(shifted) + BIAS) << TO_EXPONENT))
    return _ZERO if x < LEAST else np.float32(e * power)
