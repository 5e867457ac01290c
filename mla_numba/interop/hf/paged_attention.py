"""Attention over the rows of a paged cache where they lie, at the positions that each query sees."""

from __future__ import annotations

import numpy as np
import torch

from ...attention.sparse import sparse_attention
from ...base.checks import Array
from ...call.bind import PrologOutput
from ..torch.prolog import TorchOutput
from ..torch.tensors import to_numpy, to_torch
from .blocks import BlockPool

__all__ = ["paged_attention"]


def paged_attention(
    out: TorchOutput,
    pool: BlockPool,
    layer: int,
    length: int,
    index: Array | None,
    *,
    softmax_scale: float,
    n_threads: int,
) -> torch.Tensor:
    """Attended latents (B * S, N, C) bf16 of the last S tokens of sequences of `length` tokens.

    `out`: what the prolog gave for them, (B * S, ..). `index` (B * S, K) int32: the positions that each attends to, -1
    behind the last; None for all up to its own.
    """
    assert pool.tables is not None
    queries = PrologOutput(to_numpy(out.query_nope), to_numpy(out.query_rope), to_numpy(out.q_norm), None)
    latent = sparse_attention(
        queries, pool.cache(layer), index, pool.tables, np.full(pool.batch, length), softmax_scale=softmax_scale,
        n_threads=min(n_threads, torch.get_num_threads()),
    )  # fmt: skip
    return to_torch(latent)
