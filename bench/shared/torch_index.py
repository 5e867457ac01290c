"""The lightning index put together from PyTorch's operators: scores of the keys of a sequence, and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

__all__ = ["BLOCK", "KeyTensors", "QueryTensors", "chosen", "fp32_scores", "int8_scores"]

BLOCK = 128


class QueryTensors(NamedTuple):
    """The tensors of an `IndexerOutput`: query (T, Ni, Di) int8, scale (T, Ni, 1) and weights (T, Ni) fp16."""

    query: torch.Tensor
    scale: torch.Tensor
    weights: torch.Tensor


class KeyTensors(NamedTuple):
    """The tensors of an `IndexerCache`, and the blocks of one sequence of `n_keys` keys: table (blocks,) int32."""

    codes: torch.Tensor
    scales: torch.Tensor
    table: torch.Tensor
    n_keys: int


def fp32_scores(query: torch.Tensor, factors: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scores (T, n) of queries (T, Ni, Di) and keys (n, Di), by products of fp32, which are exact."""
    dots = query.flatten(0, 1).float() @ keys.float().T
    return _summed(dots, query.shape, factors, scale)


def int8_scores(query: torch.Tensor, factors: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The same by products of int8."""
    dots = torch._int_mm(query.flatten(0, 1), keys.T).float()
    return _summed(dots, query.shape, factors, scale)


def _summed(dots: torch.Tensor, shape: torch.Size, factors: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    halves = (dots.relu_() * 2.0**-11).half().float()
    return torch.bmm(factors[:, None], halves.view(shape[0], shape[1], -1))[:, 0] * scale


def chosen(
    scores_of: Callable[..., torch.Tensor], queries: QueryTensors, keys: KeyTensors, k: int, chunk: int
) -> torch.Tensor:
    """The positions (T, k) int32 of the k best keys of each token; `chunk` keys are scored at a time."""
    query, (codes, scales, table, n_keys) = queries.query, keys
    t, n_blocks = len(query), chunk // BLOCK
    factors = (queries.scale[..., 0] * queries.weights).float()
    scores = torch.empty(t, len(table) * BLOCK)
    for first in range(0, len(table), n_blocks):
        blocks = table[first : first + n_blocks]
        of_chunk = codes[blocks].view(-1, codes.shape[-1])
        scale = scales[blocks].view(-1).float()
        at = first * BLOCK
        scores[:, at : at + len(of_chunk)] = scores_of(query, factors, of_chunk, scale)
    seen = n_keys - t + 1 + torch.arange(t)
    scores.masked_fill_(torch.arange(scores.shape[1]) >= seen[:, None], -torch.inf)
    return scores.topk(k, dim=1).indices.int()
