"""Sparse attention put together from PyTorch's operators: keys gathered and dequantised, products, a softmax.

A composition takes a call's tensors and gives latents (T, N, C) bf16. They compute a token at a time: each has a list
of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from mla_numba import PagedCache, PrologOutput
from mla_numba.base.checks import Array
from mla_numba.interop.torch.prolog import to_torch

__all__ = ["COMPOSITIONS", "MOST_OUTSIDE", "AttentionTensors", "share_outside", "tensors_of"]

MOST_OUTSIDE = 0.005


class AttentionTensors(NamedTuple):
    """Queries (T, N, C + R) bf16, an int8 cache's arrays by slot, and the slots of each token's keys (T, K) int64."""

    query: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    rope: torch.Tensor
    slots: torch.Tensor
    softmax_scale: float


def tensors_of(out: PrologOutput, cache: PagedCache, slots: Array, softmax_scale: float) -> AttentionTensors:
    """A call's arrays as tensors; the queries are joined ahead, which is not timed."""
    codes, rope, scales = (to_torch(array.reshape(-1, array.shape[-1])) for array in cache.arrays().values())
    query = torch.cat([to_torch(out.query_nope), to_torch(out.query_rope)], dim=2)
    return AttentionTensors(query, codes, scales, rope, torch.from_numpy(slots.astype(np.int64)), softmax_scale)


def share_outside(got: Array, want: Array) -> float:
    """The share of elements that the reference operator's test would not take; it takes `MOST_OUTSIDE` of them."""
    a, b = got.astype(np.float32), want.astype(np.float32)
    return float(np.mean(~(np.abs(a - b) <= 1e-4 + 0.005 * np.abs(b))))


def _keys(given: AttentionTensors, slots: torch.Tensor) -> torch.Tensor:
    """Keys (K, C + R) bf16: latents first."""
    codes = given.codes.index_select(0, slots)
    k, latent = codes.shape
    groups = codes.view(k, 4, latent // 4).float() * given.scales.index_select(0, slots).unsqueeze(2)
    return torch.cat([groups.view(k, latent).bfloat16(), given.rope.index_select(0, slots)], dim=1)


def _softmax(scores: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.softmax(scores.float() * scale, dim=1)


def _of_fp32(given: AttentionTensors, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Both products in float32, of probabilities that are rounded to bf16."""
    wide = keys.float()
    p = _softmax(query.float() @ wide.T, given.softmax_scale).bfloat16()
    return (p.float() @ wide[:, : given.codes.shape[1]]).bfloat16()


def _of_both(given: AttentionTensors, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Scores in float32, since bf16 ones are too coarse; latents in bf16."""
    p = _softmax(query.float() @ keys.float().T, given.softmax_scale)
    return p.bfloat16() @ keys[:, : given.codes.shape[1]]


def _of_bf16(given: AttentionTensors, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Both products in bf16, whose results PyTorch rounds to bf16."""
    p = _softmax(query @ keys.T, given.softmax_scale)
    return p.bfloat16() @ keys[:, : given.codes.shape[1]]


def _of_sdpa(given: AttentionTensors, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The heads as queries of one head; keys whole as values, since its fast way takes values as wide as keys."""
    attended = functional.scaled_dot_product_attention(
        query[None, None], keys[None, None], keys[None, None], scale=given.softmax_scale
    )
    return attended[0, 0, :, : given.codes.shape[1]]


def _by_token(
    attend: Callable[[AttentionTensors, torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[AttentionTensors], torch.Tensor]:
    def call(given: AttentionTensors) -> torch.Tensor:
        pairs = zip(given.query, given.slots, strict=True)
        return torch.stack([attend(given, query, _keys(given, slots)) for query, slots in pairs])

    return call


COMPOSITIONS: dict[str, Callable[[AttentionTensors], torch.Tensor]] = {
    "fp32 products": _by_token(_of_fp32),
    "fp32 and bf16 products": _by_token(_of_both),
    "bf16 products": _by_token(_of_bf16),
    "scaled_dot_product_attention": _by_token(_of_sdpa),
}
COMPOSITIONS["fp32 and bf16, compiled"] = torch.compile(COMPOSITIONS["fp32 and bf16 products"], dynamic=False)
COMPOSITIONS["scaled_dot..., compiled"] = torch.compile(COMPOSITIONS["scaled_dot_product_attention"], dynamic=False)
