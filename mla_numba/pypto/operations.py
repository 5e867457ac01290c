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
from ..oracle import reference

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
    reads them. If one is given, `pre_compute_2d` raises `ValueError` instead of ignoring it.
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
        """Raises `ValueError` if a scale is given that no mode reads."""
        for field in fields(self):
            if field.name in _NEVER_READ and getattr(self, field.name) is not None:
                raise ValueError(f"quant_inputs.{field.name}: expected None (no mode reads it), got an array")


def scalar_div(tensor: Array, other: float, is_reserve: bool = False) -> Array:
    """`tensor / other`, or `other / tensor` with is_reserve: one fp32 division, rounded to the tensor's dtype."""
    _floats("tensor", tensor)
    if isinstance(other, bool) or not isinstance(other, (int, float, np.integer, np.floating)):
        raise TypeError(f"other: expected a number, got {type(other).__name__}")
    if abs(other) > np.finfo(np.float64).max and isinstance(other, int):
        raise ValueError(f"other: expected a number that a float holds, got {other}")
    check.check_flag("is_reserve", is_reserve)
    return reference.scalar_div(tensor, other, is_reserve)


def rms_norm(input_tensor: Array, gamma: Array, epsilon: float) -> Array:
    """`gamma * (x * (1 / sqrt(mean(x*x) + epsilon)))` over the last axis, in fp32, of the input's shape and dtype.

    input_tensor (..., n) and gamma (n,): floats.
    """
    _floats("input_tensor", input_tensor, least_ndim=1)
    check.check_shape("gamma", _floats("gamma", gamma), (input_tensor.shape[-1],))
    check.check_epsilon("epsilon", epsilon)
    return reference.rms_norm(input_tensor, gamma, epsilon)


def quant(
    input_tensor: Array, is_symmetry: bool = True, has_smooth_factor: bool = False, smooth_factor: Array | None = None
) -> tuple[Array, ...]:
    """int8 codes of input_tensor (..., n) floats, with one scale a row; see `reference.quant` for the arithmetic.

    smooth_factor: n floats as (n,), (1, n) or (n, 1), multiplied in first where has_smooth_factor says so. Returns
    codes and scale (..., 1) float32, where is_symmetry is False the zero point (..., 1) float32 too.
    """
    _floats("input_tensor", input_tensor, least_ndim=1)
    check.check_flag("is_symmetry", is_symmetry)
    if check.check_flag("has_smooth_factor", has_smooth_factor):
        if smooth_factor is None:
            raise TypeError("smooth_factor: expected an array with has_smooth_factor, got None")
        n = input_tensor.shape[-1]
        if _floats("smooth_factor", smooth_factor).shape not in ((n,), (1, n), (n, 1)):
            raise ValueError(f"smooth_factor: expected shape ({n},), (1, {n}) or ({n}, 1), got {smooth_factor.shape}")
    return reference.quant(input_tensor, is_symmetry, has_smooth_factor, smooth_factor)


def k_nope_quant(x: Array) -> tuple[Array, Array]:
    """int8 codes and float32 scales (T, 4, 1) of the normed latent key, x (T, 4, C/4) floats: one scale a group."""
    check.check_shape("x", _floats("x", x, least_ndim=1), (None, reference.N_GROUPS, None))
    return reference.k_nope_quant(x)


def dequant(dtype: DTypeLike, input_tensor: Array, scale: Array, w_scale: Array) -> Array:
    """`(fp32(x) * scale) * w_scale`, in this order, rounded to dtype (one of the floats).

    input_tensor (T, n) int32 sums or int8 codes; scale (T, 1) a token and w_scale (1, n) a channel, float32.
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
    return reference.dequant(wanted, input_tensor, scale, w_scale)


def dequant_asymmetric(codes: Array, scale: Array, zero_point: Array) -> Array:
    """Inverts the asymmetric `quant` to half a step: `(fp32(code) - zero_point) * scale`, (..., n) float32.

    codes (..., n) int8; scale and zero_point (..., 1) float32.
    """
    check.expect_array("codes", codes, (INT8,))
    if not codes.ndim:
        raise ValueError("codes: expected at least 1 axis, got shape ()")
    for name, value in (("scale", scale), ("zero_point", zero_point)):
        check.check_shape(name, check.expect_array(name, value, (FP32,)), (*codes.shape[:-1], 1))
    return reference.dequant_asymmetric(codes, scale, zero_point)


def rotate_half(input_tensor: Array) -> Array:
    """`[x2 * -1, x1 + 0]` for the halves `[x1, x2]` of the last axis of floats."""
    _even("input_tensor", input_tensor)
    return reference.rotate_half(input_tensor)


def rope_v2(x: Array, cos: Array, sin: Array, tile_config: RopeTileShapeConfig | None = None) -> Array:
    """Rotary position embedding of x (T, R) with cos and sin (T, R), floats; pairs come interleaved, leave as halves.

    tile_config is about tiles only and changes no bit.
    """
    if tile_config is not None and not isinstance(tile_config, RopeTileShapeConfig):
        raise TypeError(f"tile_config: expected RopeTileShapeConfig or None, got {type(tile_config).__name__}")
    check.check_shape("x", _even("x", x), (None, None))
    _tables(cos, sin, x)
    return reference.rope_v2(x, cos, sin)


def rope_3d_v2(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary position embedding as in `rope_v2` of each head: x (T, N, R), cos and sin (T, R)."""
    check.check_shape("x", _even("x", x), (None, None, None))
    _tables(cos, sin, x)
    return reference.rope_3d_v2(x, cos, sin)


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
