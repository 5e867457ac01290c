"""The lightning index and sparse attention on CPU tensors, as operators that `torch.compile` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tiling.check import short_int

from ...attention.lightning import MAX_K
from ...base.checks import check_number, expect_type
from . import index_operators
from .cache import TorchCache
from .indexer import TorchIndexerCache, TorchIndexerOutput
from .tensors import check_tensors

if TYPE_CHECKING:
    from .prolog import TorchIndexedOutput, TorchOutput

__all__ = ["lightning_index", "sparse_attention"]


def lightning_index(
    out: TorchIndexerOutput,
    cache: TorchIndexerCache,
    block_table: Tensor,
    act_seq: Tensor,
    k: int = 2048,
    *,
    query_start_loc: Tensor | None = None,
) -> Tensor:
    """The k best keys of each token, as `mla_numba.lightning_index` chooses them: the same bits.

    `TorchIndexer` has an example.

    Args:
        out: Queries, scales and weights of T tokens.
        cache: The keys, with those of these tokens.
        block_table: Blocks of each sequence (B, blocks) int32 or int64.
        act_seq: Keys of each sequence (B,) int32 or int64, those of this call's tokens included.
        k: Positions a token, from 1 to 4096.
        query_start_loc: First token of each sequence, and T: (B + 1,) int32 or int64.

    Returns:
        Positions (T, k) int32, the best first, then -1.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype.
        ValueError: An argument has another shape, layout or value, or is not on the CPU.
    """
    expect_type("out", out, TorchIndexerOutput)
    expect_type("cache", cache, TorchIndexerCache)
    check_tensors(out._asdict())
    cache.check_types()
    _check_pages(block_table, act_seq, query_start_loc)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer, torch.SymInt)):
        raise TypeError(f"k: expected int, got {type(k).__name__}")
    if isinstance(k, int) and k > MAX_K:  # what torch's operators take is a smaller one
        raise ValueError(f"k: expected at most {MAX_K}, got {short_int(k)}")
    index: Tensor = index_operators.lightning_index(*out, *cache, block_table, act_seq, k, query_start_loc)
    return index


def sparse_attention(
    out: TorchOutput | TorchIndexedOutput,
    cache: TorchCache,
    index: Tensor | None,
    block_table: Tensor,
    act_seq: Tensor,
    *,
    softmax_scale: float,
    query_start_loc: Tensor | None = None,
    flash_tile: int | None = None,
) -> Tensor:
    """Attention over the positions of an index, as `mla_numba.sparse_attention` computes it: the same bits.

    `TorchIndexer` has an example.

    Args:
        out: What a `TorchProlog` returned for T tokens, with an indexer or without.
        cache: The keys, those of these tokens too.
        index: Positions (T, K) int32 or int64, as `lightning_index` gives them; None for all that a token sees.
        block_table: Blocks of each sequence (B, blocks) int32 or int64.
        act_seq: Keys of each sequence (B,) int32 or int64, those of this call's tokens included.
        softmax_scale: What scores are multiplied with.
        query_start_loc: First token of each sequence, and T: (B + 1,) int32 or int64.
        flash_tile: Positions a tile, where tiles are merged as flash operators do; None: none are.

    Returns:
        Attended latents (T, N, C) bf16.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype.
        ValueError: An argument has another shape, layout or value, or is not on the CPU.
    """
    for field in ("query_nope", "query_rope"):
        if not isinstance(getattr(out, field, None), Tensor):
            raise TypeError(f"out: expected TorchOutput, got {type(out).__name__}")
    expect_type("cache", cache, TorchCache)
    cache.check_types()
    check_tensors({"index": index}, or_none=("index",))
    _check_pages(block_table, act_seq, query_start_loc)
    if not isinstance(softmax_scale, torch.SymFloat):
        softmax_scale = check_number("softmax_scale", softmax_scale)
    latent: Tensor = index_operators.sparse_attention(
        out.query_nope, out.query_rope, *cache, index, block_table, act_seq, softmax_scale, query_start_loc,
        flash_tile,
    )  # fmt: skip
    return latent


def _check_pages(block_table: object, act_seq: object, query_start_loc: object) -> None:
    named = {"block_table": block_table, "act_seq": act_seq, "query_start_loc": query_start_loc}
    check_tensors(named, or_none=("query_start_loc",))
