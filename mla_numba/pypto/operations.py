"""The reference operator's single operations by name, on NumPy arrays.

They are the functions of the oracle, with checks of their arguments in front: exact by definition, and fast enough for
single operations. The fused kernels equal them bit for bit. Floats are bf16, float16 or float32, with any strides. Each
raises `TypeError` or `ValueError` naming the argument that does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import DTypeLike

from tiling import RopeTileShapeConfig

from ..base import checks as check
from ..base.checks import (
    BF16,
    FP16,
    FP32,
    INT8,
    Array,
)
from ..base.short_repr import arrays_text, short_repr
from ..oracle import norm_quant, products, rope
from ..oracle.reference import N_GROUPS

__all__ = [
    "MlaQuantInputs",
    "dequant",
    "dequant_asymmetric",
    "k_nope_quant",
    "quant",
    "rms_norm",
    "rope_3d_v2",
    "rope_v2",
    "rotate_half",
    "scalar_div",
]

FLOATS = (BF16, FP16, FP32)
INT32 = np.dtype(np.int32)

_NEVER_READ = ("dequant_scale_x", "quant_scale_ckv", "quant_scale_ckr")


@dataclass(slots=True, eq=False)
class MlaQuantInputs:
    """The scales of `pre_compute_2d`; which are given decides the mode.

    | field                    | shape                    | switches on                                     |
    |--------------------------|--------------------------|-------------------------------------------------|
    | dequant_scale_w_dq       | (Rq,), (1, Rq), (Rq, 1)  | quant_a, together with dequant_scale_w_dkv_kr   |
    | dequant_scale_w_dkv_kr   | (C+R,), ...              | quant_a, together with dequant_scale_w_dq       |
    | dequant_scale_w_uq_qr    | (N*(D+R),), ...          | quant_b                                         |
    | smooth_scales_cq         | (1, Rq), ...             | smooth quantisation, in quant_b                 |

    All are float32. dequant_scale_x, quant_scale_ckv and quant_scale_ckr exist in the reference operator, which never
    reads them. If one is given, `pre_compute_2d` raises `ValueError` instead of ignoring it. `pre_compute_2d` has an
    example.
    """

    dequant_scale_x: Array | None = None
    dequant_scale_w_dq: Array | None = None
    dequant_scale_w_uq_qr: Array | None = None
    dequant_scale_w_dkv_kr: Array | None = None
    quant_scale_ckv: Array | None = None
    quant_scale_ckr: Array | None = None
    smooth_scales_cq: Array | None = None

    def __repr__(self) -> str:
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return short_repr(self, arrays_text(arrays) or "no scales")

    def reject_unread(self) -> None:
        """Raises if a scale is given that no mode reads.

        Raises:
            ValueError: One is given; the message names it.
        """
        for field in fields(self):
            if field.name in _NEVER_READ and getattr(self, field.name) is not None:
                raise ValueError(f"quant_inputs.{field.name}: expected None (no mode reads it), got an array")


def scalar_div(tensor: Array, other: float, is_reserve: bool = False) -> Array:
    """`tensor / other`, or `other / tensor` with is_reserve: one fp32 division, rounded to the tensor's dtype.

    Args:
        tensor: Floats of any shape.
        other: A number that float64 holds.
        is_reserve: Divide the number by the elements.

    Returns:
        Quotients of the tensor's shape and dtype.

    Raises:
        TypeError: An argument is of another type or dtype.
        ValueError: `other` is too large an int.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> mla.scalar_div(np.array([1, 4], np.float32), 2.0, is_reserve=True).tolist()
        [2.0, 0.5]
    """
    _floats("tensor", tensor)
    if isinstance(other, bool) or not isinstance(other, (int, float, np.integer, np.floating)):
        raise TypeError(f"other: expected a number, got {type(other).__name__}")
    if abs(other) > np.finfo(np.float64).max and isinstance(other, int):
        raise ValueError(f"other: expected a number that a float holds, got {other}")
    check.check_flag("is_reserve", is_reserve)
    return norm_quant.scalar_div(tensor, other, is_reserve)


def rms_norm(input_tensor: Array, gamma: Array, epsilon: float) -> Array:
    """`gamma * (x * (1 / sqrt(mean(x*x) + epsilon)))` over the last axis, in fp32.

    Args:
        input_tensor: Floats (..., n).
        gamma: Floats (n,).
        epsilon: A number of at least 0.

    Returns:
        The norm, of the input's shape and dtype.

    Raises:
        TypeError: An argument is of another type or dtype.
        ValueError: It has another shape, or epsilon is negative.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> mla.rms_norm(np.array([[3, 4, 0, 0]], np.float32), np.ones(4, np.float32), 0.0).round(3).tolist()
        [[1.2000000476837158, 1.600000023841858, 0.0, 0.0]]
    """
    _floats("input_tensor", input_tensor, least_ndim=1)
    check.check_shape("gamma", _floats("gamma", gamma), (input_tensor.shape[-1],))
    check.check_epsilon("epsilon", epsilon)
    return norm_quant.rms_norm(input_tensor, gamma, epsilon)


def quant(
    input_tensor: Array, is_symmetry: bool = True, has_smooth_factor: bool = False, smooth_factor: Array | None = None
) -> tuple[Array, ...]:
    """int8 codes with one scale a row; see `mla_numba.reference.quant` for the arithmetic.

    Args:
        input_tensor: Floats (..., n).
        is_symmetry: Without a zero point.
        has_smooth_factor: Multiply by `smooth_factor` first.
        smooth_factor: n floats as (n,), (1, n) or (n, 1).

    Returns:
        Codes (..., n) int8 and scale (..., 1) float32; where `is_symmetry` is False the zero point (..., 1) float32
        too.

    Raises:
        TypeError: An argument is of another type or dtype, or the factor is missing.
        ValueError: It has another shape.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> codes, scale = mla.quant(np.array([[0.5, -1.0, 0.25]], np.float32))
        >>> codes.tolist(), scale.shape
        ([[64, -127, 32]], (1, 1))
    """
    _floats("input_tensor", input_tensor, least_ndim=1)
    check.check_flag("is_symmetry", is_symmetry)
    if check.check_flag("has_smooth_factor", has_smooth_factor):
        if smooth_factor is None:
            raise TypeError("smooth_factor: expected an array with has_smooth_factor, got None")
        n = input_tensor.shape[-1]
        if _floats("smooth_factor", smooth_factor).shape not in ((n,), (1, n), (n, 1)):
            raise ValueError(f"smooth_factor: expected shape ({n},), (1, {n}) or ({n}, 1), got {smooth_factor.shape}")
    return norm_quant.quant(input_tensor, is_symmetry, has_smooth_factor, smooth_factor)


def k_nope_quant(x: Array) -> tuple[Array, Array]:
    """int8 codes of the normed latent key, with one scale a group.

    Args:
        x: Floats (T, 4, C/4).

    Returns:
        Codes (T, 4, C/4) int8 and scales (T, 4, 1) float32.

    Raises:
        TypeError: `x` is of another type or dtype.
        ValueError: It has another shape.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> codes, scales = mla.k_nope_quant(np.ones((5, 4, 128), np.float32))
        >>> codes.shape, scales.shape, int(codes.max())
        ((5, 4, 128), (5, 4, 1), 127)
    """
    check.check_shape("x", _floats("x", x, least_ndim=1), (None, N_GROUPS, None))
    return norm_quant.k_nope_quant(x)


def dequant(dtype: DTypeLike, input_tensor: Array, scale: Array, w_scale: Array) -> Array:
    """`(fp32(x) * scale) * w_scale`, in this order, rounded to dtype.

    Args:
        dtype: bf16, float16 or float32.
        input_tensor: int32 sums or int8 codes (T, n).
        scale: A scale a token (T, 1) float32.
        w_scale: A scale a column (1, n) float32.

    Returns:
        Numbers (T, n) of that dtype.

    Raises:
        TypeError: An argument is of another type or dtype.
        ValueError: It has another shape.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> scales = np.full((1, 1), 0.5, np.float32), np.array([[1, 2]], np.float32)
        >>> mla.dequant(np.float32, np.array([[10, 20]], np.int32), *scales).tolist()
        [[5.0, 20.0]]
    """
    try:
        wanted = np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(f"dtype: expected a dtype, got {type(dtype).__name__}") from None
    if dtype is None or wanted not in FLOATS:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, FLOATS))}, got {dtype!r}")
    check.expect_array("input_tensor", input_tensor, (INT32, INT8))
    t, n = check.check_shape("input_tensor", input_tensor, (None, None)).shape
    check.check_shape("scale", check.expect_array("scale", scale, (FP32,)), (t, 1))
    check.check_shape("w_scale", check.expect_array("w_scale", w_scale, (FP32,)), (1, n))
    return products.dequant(wanted, input_tensor, scale, w_scale)


def dequant_asymmetric(codes: Array, scale: Array, zero_point: Array) -> Array:
    """Inverts the asymmetric `quant` to half a step: `(fp32(code) - zero_point) * scale`.

    Args:
        codes: Codes (..., n) int8.
        scale: A scale a row (..., 1) float32.
        zero_point: A zero point a row (..., 1) float32.

    Returns:
        Numbers (..., n) float32.

    Raises:
        TypeError: An argument is of another type or dtype.
        ValueError: It has another shape.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> values = np.array([[0.0, 1.0, 2.0]], np.float32)
        >>> got = mla.dequant_asymmetric(*mla.quant(values, is_symmetry=False))
        >>> bool(np.abs(got - values).max() < 0.01)
        True
    """
    check.expect_array("codes", codes, (INT8,))
    if not codes.ndim:
        raise ValueError("codes: expected at least 1 axis, got shape ()")
    for name, value in (("scale", scale), ("zero_point", zero_point)):
        check.check_shape(name, check.expect_array(name, value, (FP32,)), (*codes.shape[:-1], 1))
    return products.dequant_asymmetric(codes, scale, zero_point)


def rotate_half(input_tensor: Array) -> Array:
    """`[x2 * -1, x1 + 0]` for the halves `[x1, x2]` of the last axis.

    Args:
        input_tensor: Floats whose last axis is even.

    Returns:
        The other order, of the same shape and dtype.

    Raises:
        TypeError: `input_tensor` is of another type or dtype.
        ValueError: Its last axis is odd.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> mla.rotate_half(np.array([1, 2, 3, 4], np.float32)).tolist()
        [-3.0, -4.0, 1.0, 2.0]
    """
    _even("input_tensor", input_tensor)
    return rope.rotate_half(input_tensor)


def rope_v2(x: Array, cos: Array, sin: Array, tile_config: RopeTileShapeConfig | None = None) -> Array:
    """Rotary position embedding; pairs come interleaved and leave as halves.

    Args:
        x: Floats (T, R).
        cos: Cosines (T, R), floats.
        sin: Sines (T, R), floats.
        tile_config: About tiles of an NPU only; changes no bit.

    Returns:
        Rotated floats (T, R) of x's dtype.

    Raises:
        TypeError: An argument is of another type or dtype.
        ValueError: It has another shape, or R is odd.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> x, ones = np.array([[1, 2, 3, 4]], np.float32), np.ones((1, 4), np.float32)
        >>> mla.rope_v2(x, ones, 0 * ones).tolist()
        [[1.0, 3.0, 2.0, 4.0]]
    """
    if tile_config is not None and not isinstance(tile_config, RopeTileShapeConfig):
        raise TypeError(f"tile_config: expected RopeTileShapeConfig or None, got {type(tile_config).__name__}")
    check.check_shape("x", _even("x", x), (None, None))
    _tables(cos, sin, x)
    return rope.rope_v2(x, cos, sin)


def rope_3d_v2(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary position embedding as in `rope_v2` of each head. `rope_v2` has an example.

    Args:
        x: Floats (T, N, R).
        cos: Cosines (T, R), floats.
        sin: Sines (T, R), floats.

    Returns:
        Rotated floats (T, N, R) of x's dtype.

    Raises:
        TypeError: An argument is of another type or dtype.
        ValueError: It has another shape, or R is odd.
    """
    check.check_shape("x", _even("x", x), (None, None, None))
    _tables(cos, sin, x)
    return rope.rope_3d_v2(x, cos, sin)


def _floats(name: str, value: Array, least_ndim: int = 0) -> Array:
    check.expect_array(name, value, FLOATS)
    if value.ndim < least_ndim or (least_ndim and not value.shape[-1]):
        raise ValueError(f"{name}: expected a last axis of at least 1 element, got shape {value.shape}")
    return value


def _even(name: str, value: Array) -> Array:
    if _floats(name, value, least_ndim=1).shape[-1] % 2:
        raise ValueError(f"{name}: expected an even last axis, got shape {value.shape}")
    return value


def _tables(cos: Array, sin: Array, x: Array) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        check.check_shape(name, _floats(name, table), (x.shape[0], x.shape[-1]))
