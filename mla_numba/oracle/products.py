"""Products of matrices in plain NumPy, and what makes reals of integer sums."""

from math import prod

import numpy as np
from numpy.typing import DTypeLike

from .arrays import BF16, F32, I8, I32, Array
from .norm_quant import factor_row

COLUMN_BLOCK = 512  # output columns at a time, so that accumulators stay in cache; bits don't depend on it


@np.errstate(all="ignore")
def sum_of_products(a: Array, b: Array) -> F32:
    """Matrix product ``a @ b`` of floats, each output one fp32 accumulator over ascending k.

    Args:
        a: Floats (..., K) of any dtype, widened to fp32.
        b: Floats (K, N). For heads, call it per head.

    Returns:
        Sums (..., N) fp32.

    Raises:
        TypeError: One of them holds integers.
        ValueError: Their K differ.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import sum_of_products
        >>> sum_of_products(np.ones((1, 3), np.float32), np.full((3, 2), 2, np.float32)).tolist()
        [[6.0, 6.0]]
    """
    expect_inner("b", a, b)
    if a.dtype.kind in "iu" or b.dtype.kind in "iu":
        raise TypeError(
            f"a, b: expected floats (integer weights need their dequant scale), got {a.dtype} and {b.dtype}"
        )
    n_k, n_columns = b.shape
    a_fp32 = a.astype(np.float32).reshape(prod(a.shape[:-1]), n_k)
    result = np.zeros((a_fp32.shape[0], n_columns), np.float32)
    for start in range(0, n_columns, COLUMN_BLOCK):
        b_fp32 = b[:, start : start + COLUMN_BLOCK].astype(np.float32, order="C")
        acc = np.zeros((a_fp32.shape[0], b_fp32.shape[1]), np.float32)
        product = np.empty_like(acc)
        for k in range(n_k):
            np.multiply(a_fp32[:, k, None], b_fp32[k], out=product)
            np.add(acc, product, out=acc)
        result[:, start : start + COLUMN_BLOCK] = acc
    return result.reshape(*a.shape[:-1], n_columns)


def matmul_int8(a: I8, b: I8) -> I32:
    """Exact integer product ``a @ b``.

    It goes through fp64, which is exact here in any order: all partial sums are integers below 2^31, far below 2^53.

    Args:
        a: Codes (..., K) int8 in [-127, 127].
        b: Codes (K, N) int8.

    Returns:
        Sums (..., N) int32.

    Raises:
        TypeError: One of them is not int8.
        ValueError: Their K differ, or K is so long that a sum may leave int32.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import matmul_int8
        >>> matmul_int8(np.full((1, 4), 127, np.int8), np.full((4, 1), -128, np.int8)).tolist()
        [[-65024]]
    """
    expect_inner("b", a, b)
    if a.dtype != np.int8 or b.dtype != np.int8:
        raise TypeError(f"a, b: expected int8, got {a.dtype} and {b.dtype}")
    n_k, n_columns = b.shape
    if n_k * 127 * 128 >= 2**31:
        raise ValueError(f"b: expected K*127*128 < 2**31 for an int32 sum, got K = {n_k}")
    a_fp64 = a.astype(np.float64)
    result = np.empty((*a.shape[:-1], n_columns), np.int32)
    for start in range(0, n_columns, COLUMN_BLOCK):
        result[..., start : start + COLUMN_BLOCK] = a_fp64 @ b[:, start : start + COLUMN_BLOCK].astype(np.float64)
    return result


@np.errstate(all="ignore")
def dequant(dtype: DTypeLike, input_tensor: Array, scale: Array, w_scale: Array) -> Array:
    """Turn int32 sums (or codes) back into reals: ``(fp32(x) * scale) * w_scale``, in this order.

    `mla_numba.dequant`, which checks its arguments, has an example.

    Args:
        dtype: Of the result.
        input_tensor: Sums or codes (T, n).
        scale: A scale a token (T, 1).
        w_scale: A scale a column (1, n).

    Returns:
        Reals (T, n).
    """
    result: F32 = input_tensor.astype(np.float32) * scale.astype(np.float32) * w_scale.astype(np.float32)
    return result.astype(dtype)


@np.errstate(all="ignore")
def dequant_asymmetric(codes: I8, scale: F32, zero_point: F32) -> F32:
    """Invert the asymmetric quant to half a step: ``(fp32(code) - zero_point) * scale``.

    `mla_numba.dequant_asymmetric` has an example.

    Args:
        codes: Codes (..., n) int8.
        scale: Scales (..., 1) fp32.
        zero_point: Zero points (..., 1) fp32.

    Returns:
        Reals (..., n) fp32.
    """
    return (codes.astype(np.float32) - zero_point) * scale


@np.errstate(all="ignore")
def bf16_product(a: Array, b: Array) -> Array:
    """One sum over all k, rounded to bf16."""
    return sum_of_products(a, b).astype(BF16)


def dequantised_product(codes: I8, token_scale: F32, weight: Array, name: str, w_scale: Array) -> Array:
    """Integer product of codes (T, K) and an int8 weight (K, n), brought back to bf16."""
    return dequant(BF16, matmul_int8(codes, weight), token_scale, factor_row(name, w_scale, weight.shape[1]))


def expect_inner(name: str, a: Array, b: Array) -> None:
    """Raise ``ValueError`` naming b unless ``a @ b`` is a product of matrices."""
    if b.ndim != 2 or a.shape[-1] != b.shape[0]:
        raise ValueError(f"{name}: expected ({a.shape[-1]}, n), got {b.shape}")
