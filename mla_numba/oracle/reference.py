"""The MLA prolog in plain NumPy: slow, obvious, and the bits that every kernel has to reproduce.

MLA is the multi-head latent attention of DeepSeek-V2 (2024); the prolog is all that comes before the attention itself.
Dimension letters: T tokens, H hidden size, Rq q_lora_rank, N heads, D qk_nope_head_dim, R qk_rope_head_dim,
C kv_lora_rank, BS tokens in a cache block. bf16 arrays are NumPy arrays of ``ml_dtypes.bfloat16``.

Arithmetic: every fp32 operation is one IEEE rounding and nothing is reassociated. An output element of a product of
matrices is one fp32 accumulator, from +0, taken in ascending k. A product of two bf16 values is exact in fp32 when it
is zero or its magnitude lies in [2^-134, 2^128), so there a fused multiply-add gives the same bits. Casts to bf16
round to nearest even, and NaN stays NaN.

Numerics decides how the norms are quantised: "pypto", the default, by ``quant`` of the bf16 norm; "cann" by
``quant_cann`` of the fp32 norm. Everything else is the same in both.

Codes and scales: ``real = code * scale``. NaN and Inf are computed with, silently, and stay in their own token.
"""

from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..base.modes import NUMERICS, CacheMode, Numerics
from ..base.short_repr import arrays_text, short_repr

Array = NDArray[Any]
F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

BF16 = np.dtype(ml_dtypes.bfloat16)
N_LANES = 16  # accumulators of the sum of squares in rms_norm
N_GROUPS = 4  # quantisation groups of the latent key
NZ_C0_BYTES = 32  # the contiguous run of a PA_NZ cache
COLUMN_BLOCK = 512  # output columns at a time, so that accumulators stay in cache; bits don't depend on it


class ReferenceOutput(NamedTuple):
    """What the prolog gives back; the caches are new arrays. `mla_prolog` has an example.

    | field         | shape              | dtype                                         |
    |---------------|--------------------|-----------------------------------------------|
    | query_nope    | (T, N, C)          | bf16                                          |
    | query_rope    | (T, N, R)          | bf16                                          |
    | q_norm        | (T, Rq)            | int8, or bf16 when w_uq_qr is not quantised   |
    | q_norm_scale  | (T, 1)             | fp32, or None when w_uq_qr is not quantised   |
    | kv_cache      | (blocks, BS, 1, C) | int8, or bf16 when w_uq_qr is not quantised   |
    | kr_cache      | (blocks, BS, 1, R) | bf16                                          |
    | k_scale_cache | (blocks, BS, 1, 4) | fp32 or fp16 as it came, or None if none came |
    """

    query_nope: Array
    query_rope: Array
    q_norm: Array
    q_norm_scale: F32 | None
    kv_cache: Array
    kr_cache: Array
    k_scale_cache: Array | None

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


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
    _expect_inner("b", a, b)
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
    _expect_inner("b", a, b)
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
        y = y * _row("smooth_factor", smooth_factor, y.shape[-1])
    if is_symmetry:
        scale_quant = np.float32(127.0) / np.max(np.abs(y), axis=-1, keepdims=True)
        # Where scale_quant is Inf every product is Inf or NaN, which makes code 0, and 1 / Inf makes scale 0.
        return _saturate(np.rint(y * scale_quant)), np.float32(1.0) / scale_quant
    max_value = np.max(y, axis=-1, keepdims=True)
    min_value = np.min(y, axis=-1, keepdims=True)
    scale = np.maximum((max_value - min_value) / np.float32(255.0), np.float32(1e-12))
    zero_point = np.rint(np.float32(-128.0) - min_value / scale)
    return _saturate(np.rint(y / scale) + zero_point), scale, zero_point


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
        y = y * _row("smooth_factor", smooth_factor, y.shape[-1])
    amax = np.max(np.abs(y), axis=-1, keepdims=True)
    scale_quant = np.float32(127.0) / amax
    scale = np.where(np.isinf(scale_quant), np.float32(0.0), amax / np.float32(127.0))
    return _saturate(np.rint(y * scale_quant)), scale


def k_nope_quant(x: Array) -> tuple[I8, F32]:
    """Quantise the normed latent key, with one scale a group. `mla_numba.k_nope_quant` has an example.

    Args:
        x: The norm (T, 4, C/4) bf16.

    Returns:
        Codes (T, 4, C/4) int8 and scales (T, 4, 1) fp32.
    """
    codes, scale = quant(x)
    return codes, scale


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
def rotate_half(input_tensor: Array) -> Array:
    """Give ``[x2 * -1, x1 + 0]`` for the halves ``[x1, x2]`` of the last axis; the ``+ 0`` turns -0 into +0.

    `mla_numba.rotate_half` has an example.

    Args:
        input_tensor: Floats whose last axis is even.

    Returns:
        The other order, of the same shape and dtype.

    Raises:
        ValueError: The last axis is odd.
    """
    n = input_tensor.shape[-1]
    if n % 2:
        raise ValueError(f"input_tensor: expected an even last axis, got shape {input_tensor.shape}")
    x1, x2 = input_tensor[..., : n // 2], input_tensor[..., n // 2 :]
    number = input_tensor.dtype.type
    return np.concatenate([x2 * number(-1), x1 + number(0)], axis=-1)


def rope_v2(x: Array, cos: Array, sin: Array, tile_config: object = None) -> Array:
    """Rotary position embedding (Su et al., 2021); pairs come interleaved and leave as halves.

    With ``y = x[0], x[2], ..., x[1], x[3], ...`` in fp32: ``y*cos + rotate_half(y)*sin``, two products and one add,
    then x's dtype. Both halves of cos and sin are read as given. `mla_numba.rope_v2` has an example.

    Args:
        x: Floats (T, R).
        cos: Cosines (T, R).
        sin: Sines (T, R).
        tile_config: About tiles only; changes no bit.

    Returns:
        Rotated floats (T, R) of x's dtype.

    Raises:
        ValueError: cos or sin has another shape.
    """
    return _rope(x, cos, sin)


def rope_3d_v2(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary position embedding as in rope_v2 of each head. `mla_numba.rope_v2` has an example.

    Args:
        x: Floats (T, N, R).
        cos: Cosines (T, R).
        sin: Sines (T, R).

    Returns:
        Rotated floats (T, N, R) of x's dtype.

    Raises:
        ValueError: cos or sin has another shape.
    """
    return _rope(x, cos[:, None, :], sin[:, None, :])


@np.errstate(all="ignore")
def pre_compute_2d(
    token_x: Array,
    w_dq: Array,
    w_uq_qr: Array,
    w_dkv_kr: Array,
    gamma_cq: Array,
    epsilon_cq: float,
    *,
    dequant_scale_w_dq: Array | None = None,
    dequant_scale_w_dkv_kr: Array | None = None,
    dequant_scale_w_uq_qr: Array | None = None,
    smooth_scales_cq: Array | None = None,
    numerics: Numerics = "pypto",
) -> tuple[Array, Array, Array, F32 | None]:
    """Project tokens down, norm, quantise and project up: all that the query and key paths share, without heads.

    Unquantised, the product with w_dq is two sums, one over each half of H, and one fp32 add. One scale of the two down
    projections alone switches nothing. `mla_numba.pre_compute_2d`, which runs the kernels, has an example.

    Args:
        token_x: Hidden states (T, H) bf16.
        w_dq: Weight (H, Rq) bf16, or int8 with both scales of the down projections.
        w_uq_qr: Weight (Rq, N*(D+R)) bf16, or int8 with its scale.
        w_dkv_kr: Weight (H, C+R), bf16 or int8 as w_dq.
        gamma_cq: Factors of the norm (Rq,) bf16.
        epsilon_cq: Of the norm.
        dequant_scale_w_dq: Scale (Rq,) fp32.
        dequant_scale_w_dkv_kr: Scale (C+R,) fp32.
        dequant_scale_w_uq_qr: Scale (N*(D+R),) fp32.
        smooth_scales_cq: Factors (1, Rq) fp32, read only with dequant_scale_w_uq_qr.
        numerics: "pypto"; or "cann", where each quant is ``quant_cann`` and that of the norm reads it in fp32.

    Returns:
        q_b_proj (T, N*(D+R)) bf16, compressed_kv (T, C+R) bf16, q_norm (T, Rq) int8 and q_norm_scale (T, 1) fp32; when
        w_uq_qr is not quantised, the last two are the bf16 norm and None.

    Raises:
        TypeError: An array is of another dtype.
        ValueError: It has another shape.
    """
    is_cann = _is_cann(numerics)
    if token_x.dtype != BF16:
        raise TypeError(f"token_x: expected bfloat16, got {token_x.dtype}")
    if dequant_scale_w_dq is not None and dequant_scale_w_dkv_kr is not None:
        codes, token_scale = quant_cann(token_x) if is_cann else quant(token_x)
        q_a_proj = _dequantised_product(codes, token_scale, w_dq, "dequant_scale_w_dq", dequant_scale_w_dq)
        compressed_kv = _dequantised_product(
            codes, token_scale, w_dkv_kr, "dequant_scale_w_dkv_kr", dequant_scale_w_dkv_kr
        )
    else:
        _expect_inner("w_dq", token_x, w_dq)
        half = token_x.shape[1] // 2
        if token_x.shape[1] % 2:
            raise ValueError(f"token_x: expected an even H, got shape {token_x.shape}")
        first = sum_of_products(token_x[:, :half], w_dq[:half])
        second = sum_of_products(token_x[:, half:], w_dq[half:])
        q_a_proj = (first + second).astype(BF16)
        compressed_kv = _bf16_product(token_x, w_dkv_kr)
    norm_res = rms_norm(q_a_proj, gamma_cq, epsilon_cq)
    if dequant_scale_w_uq_qr is None:
        return _bf16_product(norm_res, w_uq_qr), compressed_kv, norm_res, None
    if is_cann:
        norm_fp32 = rms_norm(q_a_proj.astype(np.float32), gamma_cq, epsilon_cq)
        q_norm, q_norm_scale = quant_cann(norm_fp32, smooth_scales_cq)
    else:
        q_norm, q_norm_scale = quant(norm_res, True, smooth_scales_cq is not None, smooth_scales_cq)
    q_b_proj = _dequantised_product(q_norm, q_norm_scale, w_uq_qr, "dequant_scale_w_uq_qr", dequant_scale_w_uq_qr)
    return q_b_proj, compressed_kv, q_norm, q_norm_scale


def mla_prolog(
    x: Array,
    cos: Array,
    sin: Array,
    cache_index: Array | None,
    kv_cache: Array,
    kr_cache: Array,
    k_scale_cache: Array | None,
    *,
    w_dq: Array,
    w_uq_qr: Array,
    w_uk: Array,
    w_dkv_kr: Array,
    gamma_cq: Array,
    gamma_ckv: Array,
    dequant_scale_w_uq_qr: Array | None = None,
    dequant_scale_w_dq: Array | None = None,
    dequant_scale_w_dkv_kr: Array | None = None,
    smooth_scales_cq: Array | None = None,
    epsilon_cq: float = 1e-5,
    epsilon_ckv: float = 1e-5,
    cache_mode: CacheMode = "PA_BSND",
    numerics: Numerics = "pypto",
) -> ReferenceOutput:
    """Compute the whole prolog of T tokens; no argument is written to.

    Columns [n*(D+R), n*(D+R)+D) of w_uq_qr are head n's nope part, the R behind them its rope part; columns [0, C) of
    w_dkv_kr are the latent, [C, C+R) the rope key. Each scale may be (n,), (1, n) or (n, 1).

    Args:
        x: Hidden states (T, H) bf16.
        cos: Cosines (T, R) bf16.
        sin: Sines (T, R) bf16.
        cache_index: Flat slots (T,) of integers; None where cache_mode is BSND or TND.
        kv_cache: As in ReferenceOutput, or as ``scatter`` has it where cache_mode is BSND or TND.
        kr_cache: The same.
        k_scale_cache: The same; comes back as it was when w_uq_qr is not quantised.
        w_dq: As in ``pre_compute_2d``.
        w_uq_qr: As in ``pre_compute_2d``.
        w_uk: Weight (N, D, C) bf16.
        w_dkv_kr: As in ``pre_compute_2d``.
        gamma_cq: As in ``pre_compute_2d``.
        gamma_ckv: Factors of the key's norm (C,) bf16.
        dequant_scale_w_uq_qr: As in ``pre_compute_2d``. It also decides that the KV cache is int8, with four scales a
            token; without it the cache holds the bf16 norm.
        dequant_scale_w_dq: As in ``pre_compute_2d``.
        dequant_scale_w_dkv_kr: As in ``pre_compute_2d``.
        smooth_scales_cq: As in ``pre_compute_2d``.
        epsilon_cq: Of the query's norm.
        epsilon_ckv: Of the key's norm.
        cache_mode: "PA_BSND", "PA_NZ", "BSND" or "TND".
        numerics: As in ``pre_compute_2d``.

    Returns:
        Outputs, and the caches with the new rows.

    Raises:
        TypeError: An array is of another dtype.
        ValueError: It has another shape, or a slot is outside the cache.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> from mla_numba.reference import mla_prolog
        >>> dims = mla.MlaDims(16, 2, 8, 8, 4, 4)
        >>> w = mla.MlaWeights.random(dims, quant="none")
        >>> weights = {"w_dq": w.w_dq, "w_uq_qr": w.w_uq_qr, "w_uk": w.w_uk, "w_dkv_kr": w.w_dkv_kr}
        >>> weights |= {"gamma_cq": w.gamma_cq, "gamma_ckv": w.gamma_ckv}
        >>> cache = mla.PagedCache.allocate(dims, n_blocks=1, block_size=4, quantized=False)
        >>> inputs = random_inputs(dims, t=3, seed=0, capacity=4)
        >>> mla_prolog(*inputs, cache.kv, cache.kr, None, **weights).query_nope.shape
        (3, 2, 8)
    """
    n_heads, nope_dim, kv_lora_rank = w_uk.shape
    rope_dim = sin.shape[1]
    is_quant = dequant_scale_w_uq_qr is not None
    if kv_cache.dtype != (np.int8 if is_quant else BF16):
        raise TypeError(f"kv_cache: expected {'int8' if is_quant else 'bfloat16'} in this mode, got {kv_cache.dtype}")
    if is_quant and k_scale_cache is None:
        raise TypeError("k_scale_cache: expected an array in the quantised mode, got None")
    if is_quant and kv_lora_rank % N_GROUPS:
        raise ValueError(f"w_uk: expected kv_lora_rank to be a multiple of {N_GROUPS}, got {kv_lora_rank}")

    q_b_proj, compressed_kv, q_norm, q_norm_scale = pre_compute_2d(
        x,
        w_dq,
        w_uq_qr,
        w_dkv_kr,
        gamma_cq,
        epsilon_cq,
        dequant_scale_w_dq=dequant_scale_w_dq,
        dequant_scale_w_dkv_kr=dequant_scale_w_dkv_kr,
        dequant_scale_w_uq_qr=dequant_scale_w_uq_qr,
        smooth_scales_cq=smooth_scales_cq,
        numerics=numerics,
    )
    query = q_b_proj.reshape(x.shape[0], n_heads, nope_dim + rope_dim)
    query_nope = np.empty((x.shape[0], n_heads, kv_lora_rank), BF16)
    for head in range(n_heads):
        query_nope[:, head] = _bf16_product(query[:, head, :nope_dim], w_uk[head])
    query_rope = rope_3d_v2(query[:, :, nope_dim:], cos, sin)

    k_rope = rope_v2(compressed_kv[:, kv_lora_rank:], cos, sin)
    latent = compressed_kv[:, :kv_lora_rank]
    k_nope: Array = rms_norm(latent, gamma_ckv, epsilon_ckv)
    new_k_scale_cache = None if k_scale_cache is None else k_scale_cache.copy()
    if is_quant and k_scale_cache is not None:
        groups = (x.shape[0], N_GROUPS, kv_lora_rank // N_GROUPS)
        if _is_cann(numerics):
            norm_fp32 = rms_norm(latent.astype(np.float32), gamma_ckv, epsilon_ckv)
            codes, k_scale = quant_cann(norm_fp32.reshape(groups))
        else:
            codes, k_scale = k_nope_quant(k_nope.reshape(groups))
        k_nope = codes.reshape(x.shape[0], kv_lora_rank)
        # Four scales fill no NZ run: they lie in token order there too.
        scale_mode = "PA_BSND" if cache_mode == "PA_NZ" else cache_mode
        new_k_scale_cache = scatter(k_scale_cache, cache_index, k_scale.reshape(x.shape[0], N_GROUPS), scale_mode)
    return ReferenceOutput(
        query_nope=query_nope,
        query_rope=query_rope,
        q_norm=q_norm,
        q_norm_scale=q_norm_scale,
        kv_cache=scatter(kv_cache, cache_index, k_nope, cache_mode),
        kr_cache=scatter(kr_cache, cache_index, k_rope, cache_mode),
        k_scale_cache=new_k_scale_cache,
    )


def nz_addresses(slot: int, block_size: int, d: int, c0: int) -> I64:
    """Where the d elements of a slot's row lie in a flat PA_NZ cache, whose order is [blocks, d/c0, BS, c0].

    Args:
        slot: The flat slot.
        block_size: BS.
        d: Elements of a row.
        c0: Elements of the innermost run.

    Returns:
        Their places (d,) int64.

    Examples:
        >>> from mla_numba.reference import nz_addresses
        >>> nz_addresses(1, 4, 4, 2).tolist()
        [2, 3, 10, 11]
    """
    c = np.arange(d, dtype=np.int64)
    return (slot // block_size) * block_size * d + (c // c0) * block_size * c0 + (slot % block_size) * c0 + c % c0


@np.errstate(all="ignore")
def scatter(cache: Array, cache_index: Array | None, rows: Array, cache_mode: CacheMode) -> Array:
    """Copy the cache with row t of rows at flat slot cache_index[t]; a later token wins, and slot -1 is padding.

    Args:
        cache: An array (blocks, BS, 1, d); with BSND (B, S, 1, d), with TND (n, 1, d).
        cache_index: Slots (T,) of integers; None with BSND and TND, where row t goes to slot t.
        rows: Rows (T, d), cast to the cache's dtype.
        cache_mode: "PA_BSND", "PA_NZ", "BSND" or "TND".

    Returns:
        A new cache.

    Raises:
        TypeError: There is no index, or one that holds no integers.
        ValueError: A shape does not fit, a slot is outside the cache, or the mode is none of the four.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.reference import scatter
        >>> cache, rows = np.zeros((1, 4, 1, 1), np.float32), np.array([[1], [2], [3]], np.float32)
        >>> scatter(cache, np.array([2, -1, 0]), rows, "PA_BSND").reshape(-1).tolist()
        [3.0, 0.0, 1.0, 0.0]
    """
    if cache_mode in ("BSND", "TND"):
        if cache_index is not None:
            raise ValueError(f"cache_index: expected None for {cache_mode}, got an array")
        capacity, d = prod(cache.shape[:-2]), cache.shape[-1]
        if rows.shape[1:] != (d,) or len(rows) > capacity:
            raise ValueError(f"rows: expected (T, {d}) of at most {capacity} tokens, got {rows.shape}")
        flat = cache.flatten()
        flat[: rows.size] = rows.astype(cache.dtype).reshape(-1)
        return flat.reshape(cache.shape)
    n_blocks, block_size, _, d = cache.shape
    capacity = n_blocks * block_size
    c0 = NZ_C0_BYTES // cache.itemsize
    if cache_mode not in ("PA_BSND", "PA_NZ"):
        raise ValueError(f"cache_mode: expected PA_BSND, PA_NZ, BSND or TND, got {cache_mode}")
    if cache_index is None:
        raise TypeError(f"cache_index: expected integers for {cache_mode}, got None")
    if cache_mode == "PA_NZ" and d % c0:
        raise ValueError(f"cache: expected rows of a multiple of {c0} elements for PA_NZ, got shape {cache.shape}")
    if rows.shape[1:] != (d,) or cache_index.shape != rows.shape[:1]:
        raise ValueError(f"rows, cache_index: expected (T, {d}) and (T,), got {rows.shape} and {cache_index.shape}")
    if cache_index.dtype.kind not in "iu":
        raise TypeError(f"cache_index: expected integers, got {cache_index.dtype}")
    for token, slot in enumerate(cache_index.tolist()):
        if not -1 <= slot < capacity:
            raise ValueError(
                f"cache_index: expected -1 or a slot below capacity {capacity}, got {slot} at token {token}"
            )
    flat = cache.flatten()
    for row, slot in zip(rows.astype(cache.dtype), cache_index.tolist(), strict=True):
        if slot == -1:
            continue
        if cache_mode == "PA_NZ":
            flat[nz_addresses(slot, block_size, d, c0)] = row
        else:
            flat[slot * d : (slot + 1) * d] = row
    return flat.reshape(cache.shape)


@np.errstate(all="ignore")
def _rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate x (..., R) with cos and sin that broadcast to it."""
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape[0] != x.shape[0] or table.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"{name}: expected ({x.shape[0]}, {x.shape[-1]}), got ({table.shape[0]}, {table.shape[-1]})"
            )
    x_fp32 = x.astype(np.float32)
    x_fp32 = np.concatenate([x_fp32[..., 0::2], x_fp32[..., 1::2]], axis=-1)
    x_embed: F32 = x_fp32 * cos.astype(np.float32) + rotate_half(x_fp32) * sin.astype(np.float32)
    return x_embed.astype(x.dtype)


@np.errstate(all="ignore")
def _bf16_product(a: Array, b: Array) -> Array:
    """One sum over all k, rounded to bf16."""
    return sum_of_products(a, b).astype(BF16)


def _dequantised_product(codes: I8, token_scale: F32, weight: Array, name: str, w_scale: Array) -> Array:
    """Integer product of codes (T, K) and an int8 weight (K, n), brought back to bf16."""
    return dequant(BF16, matmul_int8(codes, weight), token_scale, _row(name, w_scale, weight.shape[1]))


def _is_cann(numerics: Numerics) -> bool:
    if numerics not in NUMERICS:
        raise ValueError(f"numerics: expected one of {', '.join(NUMERICS)}, got {numerics!r}")
    return numerics == "cann"


def _saturate(rounded: F32) -> I8:
    """Integral floats to int8 codes; NaN and Inf give 0."""
    finite = np.where(np.isfinite(rounded), rounded, np.float32(0.0))
    return np.clip(finite, np.float32(-128.0), np.float32(127.0)).astype(np.int8)


def _row(name: str, values: Array, n: int) -> F32:
    """Per-channel values of shape (n,), (1, n) or (n, 1) as a row (1, n) fp32."""
    if values.shape not in ((n,), (1, n), (n, 1)):
        raise ValueError(f"{name}: expected shape ({n},), (1, {n}) or ({n}, 1), got {values.shape}")
    return values.astype(np.float32).reshape(1, n)


def _expect_inner(name: str, a: Array, b: Array) -> None:
    if b.ndim != 2 or a.shape[-1] != b.shape[0]:
        raise ValueError(f"{name}: expected ({a.shape[-1]}, n), got {b.shape}")
