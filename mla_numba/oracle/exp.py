"""The exponential function as sparse attention computes it, in plain fp32."""

from __future__ import annotations

import numpy as np

from .arrays import F32

LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2
COEFFICIENTS = tuple(
    map(
        np.float32,
        (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )
)
LEAST = np.float32(-87)  # below it the result is 0: no result is subnormal


@np.errstate(all="ignore")
def exp_reference(x: F32) -> F32:
    """exp(x) of x <= 0, each operation rounded once to fp32 and nothing contracted; within 1 ulp on [-87, 0].

    With ``n = rint(x * log2(e))`` and ``r = (x - n * high) - n * low``, high + low being ln 2, it is
    ``((p * (r * r)) + r) + 1`` times 2^n, where p is a polynomial of degree 5 in r by Horner's rule. Below -87 it is 0,
    and NaN stays NaN.

    Args:
        x: Values of any shape, fp32, at most 0.

    Returns:
        Powers of the same shape, fp32.

    Raises:
        TypeError: `x` is not fp32.
        ValueError: A value is above 0.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import exp_reference
        >>> exp_reference(np.array([0, -1, -88], np.float32)).tolist()
        [1.0, 0.3678794503211975, 0.0]
    """
    if x.dtype != np.float32:
        raise TypeError(f"x: expected float32, got {x.dtype}")
    if (x > 0).any():
        raise ValueError(f"x: expected values of at most 0, got {x.max()}")
    used = np.where(x >= LEAST, x, np.float32(0))  # NaN and what is below are filled in at the end
    n = np.rint(used * LOG2_E)
    r = (used - n * LN2_HIGH) - n * LN2_LOW
    p = np.full_like(r, COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        p = p * r + coefficient
    power: F32 = np.ldexp(((p * (r * r)) + r) + np.float32(1), n.astype(np.int32))
    return np.where(np.isnan(x), x, np.where(x < LEAST, np.float32(0), power))
