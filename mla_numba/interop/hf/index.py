"""The lightning index in a patched model: weights of an indexer's module, and what it chooses under a mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...attention.lightning import MAX_K, lightning_index
from ...base.checks import Array
from ...base.indexer_dims import IndexerDims
from ...base.modes import RopeStyle
from ...call.indexer import IndexerOutput
from ...indexer_cache import IndexerCache
from ...weights.indexer import IndexerWeights
from ..torch.tensors import to_numpy, to_torch
from .blocks import BlockPool
from .fresh import uncalled

__all__ = ["INDEXER_MODULES", "check_indexer_module", "choose", "indexer_weights"]

_LINEARS = ("wq_b", "wk", "weights_proj")
_PARTS = (*_LINEARS, "k_norm")
# The modules of an attention that a patched model with an int8 index does not call.
INDEXER_MODULES = ("indexer", *(f"indexer.{part}" for part in _PARTS))


def check_indexer_module(name: str, indexer: Any) -> IndexerDims:
    """The dimensions of an indexer of transformers.

    Raises `TypeError` or `ValueError` naming what the lightning index cannot take over.
    """
    more = uncalled(name, indexer)
    for module in _PARTS:
        more = more or uncalled(f"{name}.{module}", getattr(indexer, module))
    if more is not None:
        raise ValueError(more)
    for module in _PARTS:
        found = getattr(indexer, module)
        kind = nn.Linear if module in _LINEARS else nn.LayerNorm
        if type(found).forward is not kind.forward:
            raise TypeError(f"{name}.{module}: expected a torch.nn.{kind.__name__}, got {type(found).__name__}")
        if found.weight.device.type != "cpu" or not torch.isfinite(found.weight.detach()).all():
            raise ValueError(f"{name}.{module}.weight: expected finite values on the CPU, got others")
        if module in _LINEARS and found.bias is not None:
            raise ValueError(f"{name}.{module}.bias: expected None, got one")
        if module not in _LINEARS and (found.bias is None or not torch.isfinite(found.bias.detach()).all()):
            raise ValueError(
                f"{name}.{module}.bias: expected finite values, got {'None' if found.bias is None else 'others'}"
            )
    if indexer.index_topk > MAX_K:
        raise ValueError(f"{name}.index_topk: expected at most {MAX_K}, got {indexer.index_topk}")
    return IndexerDims(
        indexer.hidden_size, indexer.q_lora_rank, indexer.n_heads, indexer.head_dim, indexer.qk_rope_head_dim
    )


def indexer_weights(indexer: Any, rope: RopeStyle) -> IndexerWeights:
    """The weights of a checked indexer, wq_b quantised to int8, the others rounded to bf16."""

    def array(tensor: torch.Tensor) -> Array:
        return to_numpy(tensor.detach().to(torch.bfloat16).clone(memory_format=torch.contiguous_format))

    norm = indexer.k_norm
    weights = IndexerWeights.from_bf16(
        array(indexer.wq_b.weight.t()), array(indexer.wk.weight.t()), array(indexer.weights_proj.weight.t()),
        array(norm.weight), array(norm.bias), rope=rope, qk_rope_head_dim=indexer.qk_rope_head_dim,
    )  # fmt: skip
    report = weights.quantization
    weights = replace(weights, epsilon=norm.eps)
    object.__setattr__(weights, "quantization", report)  # which no constructor takes
    return weights


def choose(
    output: IndexerOutput, pool: BlockPool, layer: int, length: int, index: Array | None, k: int, n_threads: int
) -> torch.Tensor:
    """The k best keys (B, S, K) int32 of each of the last S tokens of sequences of `length` tokens, then -1.

    `index` (B * S, n) int32: the positions that each sees, as `listed` gives them; None for all up to its own.
    """
    assert pool.tables is not None
    cache, n_threads, k = pool.index_cache(layer), min(n_threads, torch.get_num_threads()), min(k, length)
    t, batch = len(output.query), pool.batch
    if index is None:
        found = lightning_index(output, cache, pool.tables, np.full(batch, length), k, n_threads=n_threads)
    elif not index.shape[1]:
        found = np.full((t, k), -1, np.int32)
    else:  # each token is a sequence of its own, whose blocks are the slots that it sees
        block, row = np.divmod(np.maximum(index, 0), pool.block_size)
        slots = pool.tables[np.arange(t)[:, None] // (t // batch), block] * pool.block_size + row
        rows = IndexerCache(cache.k.reshape(-1, 1, 1, cache.k.shape[-1]), cache.k_scale.reshape(-1, 1, 1, 1))
        places = lightning_index(output, rows, slots, (index >= 0).sum(1), k, n_threads=n_threads)
        found = np.where(places < 0, -1, np.take_along_axis(index, np.maximum(places, 0), 1)).astype(np.int32)
    return to_torch(found).view(batch, t // batch, k)
