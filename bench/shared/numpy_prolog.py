"""The prolog of quant mode "b" in plain NumPy: fp32 copies of all weights, products by BLAS.

NumPy multiplies integers without BLAS, so the int8 product goes through fp32 too. Its sums may pass 2^24 and lose their
last bit, which the tolerances of `mla_numba.tolerance` forgive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mla_numba import MlaWeights, PagedCache, PrologOutput
from mla_numba.oracle.inputs import Inputs

__all__ = ["prepare"]

Array = np.ndarray[Any, Any]
N_GROUPS = 4  # quantisation groups of the latent key


def prepare(weights: MlaWeights) -> Callable[[Inputs, PagedCache], PrologOutput]:
    """Copy the weights of a layer; the result computes the layer's prolog and writes its rows into the cache.

    Slots have to be distinct and 0 or more. query_nope is a transposed view.
    """
    if weights.quant != "b" or weights.smooth_scales_cq is not None:
        raise ValueError(f"weights: expected quant 'b' without smooth scales, got quant {weights.quant!r}")
    dims, bf16 = weights.dims, weights.w_uk.dtype
    w_down = np.concatenate([weights.w_dq, weights.w_dkv_kr], axis=1).astype(np.float32)
    w_up = weights.w_uq_qr.astype(np.float32)
    up_scale = np.asarray(weights.dequant_scale_w_uq_qr).reshape(1, -1)
    w_uk = weights.w_uk.astype(np.float32)
    gamma_cq, gamma_ckv = (gamma.astype(np.float32) for gamma in (weights.gamma_cq, weights.gamma_ckv))

    def rounded(x: Array) -> Array:
        return x.astype(bf16).astype(np.float32)

    def rms_norm(x: Array, gamma: Array, eps: float) -> Array:
        r = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps))
        return rounded(gamma * (x * r))

    def quant(y: Array) -> tuple[Array, Array]:
        scale_quant = np.float32(127) / np.abs(y).max(-1, keepdims=True)
        return np.rint(y * scale_quant), 1 / scale_quant

    def rope(x: Array, cos: Array, sin: Array) -> Array:
        half = x.shape[-1] // 2
        x1, x2 = x[..., 0::2], x[..., 1::2]
        first = x1 * cos[..., :half] - x2 * sin[..., :half]
        return np.concatenate([first, x2 * cos[..., half:] + x1 * sin[..., half:]], axis=-1).astype(bf16)

    def call(inputs: Inputs, cache: PagedCache) -> PrologOutput:
        t, slots = len(inputs.x), inputs.cache_index
        cos, sin = inputs.cos.astype(np.float32), inputs.sin.astype(np.float32)
        down = rounded(inputs.x.astype(np.float32) @ w_down)
        q_a, latent, key = np.split(down, [dims.q_lora_rank, dims.q_lora_rank + dims.kv_lora_rank], axis=1)
        codes, q_norm_scale = quant(rms_norm(q_a, gamma_cq, weights.epsilon_cq))
        query = rounded(codes @ w_up * q_norm_scale * up_scale).reshape(t, dims.num_attention_heads, -1)
        nope = query[..., : dims.qk_nope_head_dim].transpose(1, 0, 2)
        query_nope = (nope @ w_uk).astype(bf16).transpose(1, 0, 2)
        query_rope = rope(query[..., dims.qk_nope_head_dim :], cos[:, None], sin[:, None])

        groups, scale = quant(rms_norm(latent, gamma_ckv, weights.epsilon_ckv).reshape(t, N_GROUPS, -1))
        cache.kv.reshape(-1, dims.kv_lora_rank)[slots] = groups.reshape(t, -1).astype(np.int8)
        cache.kr.reshape(-1, dims.qk_rope_head_dim)[slots] = rope(key, cos, sin)
        cache.k_scale.reshape(-1, N_GROUPS)[slots] = scale.reshape(t, -1)
        return PrologOutput(query_nope, query_rope, codes.astype(np.int8), q_norm_scale)

    return call
