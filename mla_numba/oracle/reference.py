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

from typing import NamedTuple

import numpy as np

from ..base.modes import NUMERICS, CacheMode, Numerics
from ..base.short_repr import arrays_text, short_repr
from .arrays import BF16, F32, Array
from .norm_quant import k_nope_quant, quant, quant_cann, rms_norm
from .products import bf16_product, dequantised_product, expect_inner, sum_of_products
from .rope import rope_3d_v2, rope_v2
from .scatter import scatter

N_GROUPS = 4  # quantisation groups of the latent key


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
        q_a_proj = dequantised_product(codes, token_scale, w_dq, "dequant_scale_w_dq", dequant_scale_w_dq)
        compressed_kv = dequantised_product(
            codes, token_scale, w_dkv_kr, "dequant_scale_w_dkv_kr", dequant_scale_w_dkv_kr
        )
    else:
        expect_inner("w_dq", token_x, w_dq)
        half = token_x.shape[1] // 2
        if token_x.shape[1] % 2:
            raise ValueError(f"token_x: expected an even H, got shape {token_x.shape}")
        first = sum_of_products(token_x[:, :half], w_dq[:half])
        second = sum_of_products(token_x[:, half:], w_dq[half:])
        q_a_proj = (first + second).astype(BF16)
        compressed_kv = bf16_product(token_x, w_dkv_kr)
    norm_res = rms_norm(q_a_proj, gamma_cq, epsilon_cq)
    if dequant_scale_w_uq_qr is None:
        return bf16_product(norm_res, w_uq_qr), compressed_kv, norm_res, None
    if is_cann:
        norm_fp32 = rms_norm(q_a_proj.astype(np.float32), gamma_cq, epsilon_cq)
        q_norm, q_norm_scale = quant_cann(norm_fp32, smooth_scales_cq)
    else:
        q_norm, q_norm_scale = quant(norm_res, True, smooth_scales_cq is not None, smooth_scales_cq)
    q_b_proj = dequantised_product(q_norm, q_norm_scale, w_uq_qr, "dequant_scale_w_uq_qr", dequant_scale_w_uq_qr)
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
        query_nope[:, head] = bf16_product(query[:, head, :nope_dim], w_uk[head])
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


def _is_cann(numerics: Numerics) -> bool:
    if numerics not in NUMERICS:
        raise ValueError(f"numerics: expected one of {', '.join(NUMERICS)}, got {numerics!r}")
    return numerics == "cann"
