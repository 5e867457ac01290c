"""The norm of a row and its dynamic quantisation, in plain NumPy."""

import numpy as np

from .arrays import F32, I8, Array

N_LANES = 16  # accumulators of the sum of squares in rms_norm


@np.errstate(all="ignore")
def scalar_div(tensor: Array, other: float, is_reserve: bool = False) -> Array:
    """``tensor / other``, or ``other / tensor``: one fp32 division, rounded to the tensor's dtype.

    `mla_numba.scalar_div`, which checks its arguments, has an example.

    Args:
        tensor: Floats of any shape.
        other: A number.
        is_reserve: Divide the number by the elements.

    Returns:
        Quotients of the tensor's shape and dtype.
    """
    divisor = np.asarray(other, tensor.dtype).astype(np.float32)
    tensor_fp32 = tensor.astype(np.float32)
    return (divisor / tensor_fp32 if is_reserve else tensor_fp32 / divisor).astype(tensor.dtype)


@np.errstate(all="ignore")
def lane_sum(values: F32) -> F32:
    """Sum of fp32 values over the last axis, in 16 lanes and then a tree.

    Element i goes to lane i % 16, each lane ascending; then lane i and lane i + half are added for half = 8, 4, 2, 1. A
    short last step is padded with zeros.

    Args:
        values: Values (..., n) fp32.

    Returns:
        Sums (..., 1) fp32.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import lane_sum
        >>> lane_sum(np.arange(20, dtype=np.float32)).tolist()
        [190.0]
    """
    padding = np.zeros((*values.shape[:-1], -values.shape[-1] % N_LANES), np.float32)
    padded = np.concatenate([values, padding], axis=-1)
    lanes = np.zeros((*values.shape[:-1], N_LANES), np.float32)
    for start in range(0, padded.shape[-1], N_LANES):
        lanes = lanes + padded[..., start : start + N_LANES]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes


@np.errstate(all="ignore")
def rms_norm(input_tensor: Array, gamma: Array, epsilon: float) -> Array:
    """Norm over the last axis (RMSNorm, Zhang and Sennrich, 2019): ``gamma * (x * (1 / sqrt(mean(x*x) + epsilon)))``.

    The squares are scaled by fp32(1/n) before they are summed by ``lane_sum``.
    `mla_numba.rms_norm`, which checks its arguments, has an example.

    Args:
        input_tensor: Rows (..., n) bf16, fp16 or fp32.
        gamma: Factors (n,).
        epsilon: Added to the mean.

    Returns:
        The norm, computed in fp32, of the input's shape and dtype.

    Raises:
        ValueError: gamma has another length.
    """
    n = input_tensor.shape[-1]
    if gamma.shape != (n,):
        raise ValueError(f"gamma: expected shape ({n},), got {gamma.shape}")
    x = input_tensor.astype(np.float32)
    y = x * x
    y = y * np.float32(1.0 / n)
    r = np.float32(1.0) / np.sqrt(lane_sum(y) + np.float32(epsilon))
    norm: F32 = gamma.astype(np.float32) * (x * r)
    return norm.astype(input_tensor.dtype)


@np.errstate(all="ignore")
def quant(
    input_tensor: Array, is_symmetry: bool = True, has_smooth_factor: bool = False, smooth_factor: Array | None = None
) -> tuple[Array, ...]:
    """Quantise dynamically over the last axis, in fp32: floats to int8 codes with one scale a row.

    Symmetric: ``s = 127 / amax``, codes ``rint(y*s)`` with half to even, scale ``1/s``, which is not ``amax/127``.
    Where s overflows, as in an all-zero row, codes and scale are 0.

    Asymmetric: scale ``(max - min) / 255`` of at least 1e-12, zero point ``rint(-128 - min/scale)``, codes
    ``rint(y/scale) + zero_point``. A row far from zero has a zero point that no int8 holds.

    Codes saturate to [-128, 127]; where the value to be rounded is NaN or Inf, the code is 0. `mla_numba.quant`, which
    checks its arguments, has an example.

    Args:
        input_tensor: Floats (..., n).
        is_symmetry: Without a zero point.
        has_smooth_factor: Multiply by smooth_factor first (SmoothQuant, Xiao et al., 2022).
        smooth_factor: Factors (n,), (1, n) or (n, 1).

    Returns:
        Codes (..., n) int8 and scale (..., 1) fp32, asymmetric the zero point (..., 1) fp32 too.

    Raises:
        TypeError: The factor is missing.
        ValueError: It has another shape.
    """
    y = input_tensor.astype(np.float32)
    if has_smooth_factor:
        if smooth_factor is None:
            raise TypeError("smooth_factor: expected an array with has_smooth_factor, got None")
        y = y * factor_row("smooth_factor", smooth_factor, y.shape[-1])
    if is_symmetry:
        scale_quant = np.float32(127.0) / np.max(np.abs(y), axis=-1, keepdims=True)
        # Where scale_quant is Inf every product is Inf or NaN, which makes code 0, and 1 / Inf makes scale 0.
        return saturate(np.rint(y * scale_quant)), np.float32(1.0) / scale_quant
    max_value = np.max(y, axis=-1, keepdims=True)
    min_value = np.min(y, axis=-1, keepdims=True)
    scale = np.maximum((max_value - min_value) / np.float32(255.0), np.float32(1e-12))
    zero_point = np.rint(np.float32(-128.0) - min_value / scale)
    return saturate(np.rint(y / scale) + zero_point), scale, zero_point


@np.errstate(all="ignore")
def quant_cann(input_tensor: Array, smooth_factor: Array | None = None) -> tuple[I8, F32]:
    """Quantise as ``quant`` does symmetrically, but with the scale ``amax / 127``.

    Codes are ``rint(y * (127 / amax))``. Where that quotient overflows, codes and scale are 0, as in ``quant``.

    Args:
        input_tensor: Floats (..., n).
        smooth_factor: Factors (n,), (1, n) or (n, 1), or None.

    Returns:
        Codes (..., n) int8 and scales (..., 1) fp32.

    Raises:
        ValueError: The factor has another shape.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import quant_cann
        >>> codes, scale = quant_cann(np.array([[127, -64, 0]], np.float32))
        >>> codes.tolist(), scale.tolist()
        ([[127, -64, 0]], [[1.0]])
    """
    y = input_tensor.astype(np.float32)
    if smooth_factor is not None:
        y = y * factor_row("smooth_factor", smooth_factor, y.shape[-1])
    amax = np.max(np.abs(y), axis=-1, keepdims=True)
    scale_quant = np.float32(127.0) / amax
    scale = np.where(np.isinf(scale_quant), np.float32(0.0), amax / np.float32(127.0))
    return saturate(np.rint(y * scale_quant)), scale


def k_nope_quant(x: Array) -> tuple[I8, F32]:
    """Quantise the normed latent key, with one scale a group. `mla_numba.k_nope_quant` has an example.

    Args:
        x: The norm (T, 4, C/4) bf16.

    Returns:
        Codes (T, 4, C/4) int8 and scales (T, 4, 1) fp32.
    """
    codes, scale = quant(x)
    return codes, scale


def saturate(rounded: F32) -> I8:
    """Integral floats to int8 codes; NaN and Inf give 0."""
    finite = np.where(np.isfinite(rounded), rounded, np.float32(0.0))
    return np.clip(finite, np.float32(-128.0), np.float32(127.0)).astype(np.int8)


def factor_row(name: str, values: Array, n: int) -> F32:
    """Per-channel values of shape (n,), (1, n) or (n, 1) as a row (1, n) fp32."""
    if values.shape not in ((n,), (1, n), (n, 1)):
        raise ValueError(f"{name}: expected shape ({n},), (1, {n}) or ({n}, 1), got {values.shape}")
    return values.astype(np.float32).reshape(1, n)
