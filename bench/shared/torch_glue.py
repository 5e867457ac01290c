"""What lies between the prolog's products in PyTorch: the same text for all peers, run eagerly or compiled.

Letters: T tokens, H hidden, Rq q_lora_rank, N heads, D nope, R rope, C kv_lora_rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .torch_operators import Product, TorchWeights

__all__ = ["Caches", "Glue", "PeerOutput", "dequant", "prolog"]

Caches = tuple[Tensor, Tensor, Tensor]
N_GROUPS = 4  # quantisation groups of the latent key


class PeerOutput(NamedTuple):
    """query_nope (T, N, C) and query_rope (T, N, R) bf16, q_norm (T, Rq) int8, q_norm_scale (T, 1) fp32."""

    query_nope: Tensor
    query_rope: Tensor
    q_norm: Tensor
    q_norm_scale: Tensor


def rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """RMSNorm in fp32 of x (T, n) bf16, rounded to bf16."""
    x_fp32 = x.float()
    r = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    return (gamma.float() * (x_fp32 * r)).bfloat16()


def quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 and scale fp32 (..., 1) of x (..., n) bf16, one scale a row."""
    y = x.float()
    scale_quant = 127.0 / y.abs().amax(-1, keepdim=True)
    return torch.round(y * scale_quant).to(torch.int8), 1.0 / scale_quant


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (..., R) bf16 in fp32: pairs come interleaved and leave as halves."""
    x1, x2 = x[..., 0::2].float(), x[..., 1::2].float()
    half = x.shape[-1] // 2
    cos, sin = cos.float(), sin.float()
    first = x1 * cos[..., :half] - x2 * sin[..., :half]
    second = x2 * cos[..., half:] + x1 * sin[..., half:]
    return torch.cat([first.bfloat16(), second.bfloat16()], dim=-1)


def prolog(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache_index: Tensor,
    caches: Caches,
    weights: Glue,
    down: Callable[[Tensor], tuple[Tensor, Tensor]],
    up: Callable[[Tensor, Tensor], Tensor],
    heads: Product,
) -> PeerOutput:
    """The whole prolog over three products.

    down: x (T, H) to q_a (T, Rq) and kv_a (T, C+R). up: codes (T, Rq) and scale (T, 1) to (T, N*(D+R)).
    heads: (T, N, D) to (T, N, C). All bf16 but the codes and the scale.
    """
    t = x.shape[0]
    kv, kr, k_scale = caches
    latent = kv.shape[-1]
    q_a, kv_a = down(x)
    q_norm, q_norm_scale = quant(rms_norm(q_a, weights.gamma_cq, weights.eps_cq))
    query = up(q_norm, q_norm_scale).view(t, weights.n_heads, -1)
    query_nope = heads(query[..., : weights.nope_dim])
    query_rope = rope(query[..., weights.nope_dim :], cos[:, None], sin[:, None])

    k_nope = rms_norm(kv_a[:, :latent], weights.gamma_ckv, weights.eps_ckv)
    codes, scale = quant(k_nope.view(t, N_GROUPS, -1))
    kv.view(-1, latent).index_copy_(0, cache_index, codes.view(t, latent))
    kr.view(-1, kr.shape[-1]).index_copy_(0, cache_index, rope(kv_a[:, latent:], cos, sin))
    k_scale.view(-1, N_GROUPS).index_copy_(0, cache_index, scale.view(t, N_GROUPS))
    return PeerOutput(query_nope, query_rope, q_norm, q_norm_scale)


class Glue(NamedTuple):
    """What the operations between the products read."""

    gamma_cq: Tensor
    gamma_ckv: Tensor
    eps_cq: float
    eps_ckv: float
    n_heads: int
    nope_dim: int

    @classmethod
    def of(cls, w: TorchWeights) -> Glue:
        n_heads, nope_dim, _ = w.w_uk.shape
        return cls(w.gamma_cq, w.gamma_ckv, w.eps_cq, w.eps_ckv, n_heads, nope_dim)


def dequant(acc: Tensor, scale: Tensor, up_scale: Tensor | None) -> Tensor:
    """(fp32(acc) * scale) * up_scale, in bf16; up_scale None where the product has multiplied it in."""
    result = acc * scale
    return (result if up_scale is None else result * up_scale).bfloat16()
