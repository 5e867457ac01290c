"""The operators `mla_numba::lightning_index`, `sparse_attention` and `indexer_prolog`, opaque to torch's compiler.

Their arguments are the tensors of the functions in `attention` and of `TorchIndexer`, one by one. A handle is that of
`operator.make_handle`. `indexer_prolog` mutates the two tensors of its cache; nothing else is written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...attention.lightning import lightning_index as lightning_index_of
from ...attention.sparse import sparse_attention as sparse_attention_of
from ...base.modes import CacheMode, PagedMode
from ...call.bind import PrologOutput
from ...call.indexer import IndexerOutput
from ...indexer import IndexerProlog
from ...indexer_cache import IndexerCache
from ...kernels import max_threads
from .cache import TorchCache
from .operator import contiguous_array, found_by, register
from .tensors import to_numpy, to_torch

__all__ = ["fake_indexer_outputs", "index_cache_of", "indexer_prolog", "lightning_index", "sparse_attention"]

_library = torch.library.Library("mla_numba", "FRAGMENT")
_library.define(
    "lightning_index(Tensor query, Tensor query_scale, Tensor weights, Tensor k_cache, Tensor k_scale_cache, "
    "str cache_mode, Tensor block_table, Tensor act_seq, SymInt k, Tensor? query_start_loc) -> Tensor"
)
_library.define(
    "sparse_attention(Tensor query_nope, Tensor query_rope, Tensor kv_cache, Tensor kr_cache, Tensor? k_scale_cache, "
    "str cache_mode, Tensor? index, Tensor block_table, Tensor act_seq, float softmax_scale, Tensor? query_start_loc, "
    "SymInt? flash_tile=None) -> Tensor"
)
_library.define(
    "indexer_prolog(Tensor handle, Tensor x, Tensor q_norm, Tensor q_norm_scale, Tensor cos, Tensor sin, "
    "Tensor cache_index, Tensor(a!) k_cache, Tensor(b!) k_scale_cache, str cache_mode, SymInt n_heads) "
    "-> (Tensor, Tensor, Tensor)"
)
lightning_index = torch.ops.mla_numba.lightning_index.default
sparse_attention = torch.ops.mla_numba.sparse_attention.default
indexer_prolog = torch.ops.mla_numba.indexer_prolog.default


def index_cache_of(k_cache: Tensor, k_scale_cache: Tensor, cache_mode: PagedMode) -> IndexerCache:
    """The cache over the tensors' memory."""
    return IndexerCache(to_numpy(k_cache, "k_cache"), to_numpy(k_scale_cache, "k_scale_cache"), cache_mode)


def _optional(name: str, tensor: Tensor | None) -> Any:
    return None if tensor is None else contiguous_array(name, tensor)


def _lightning_index(
    query: Tensor, query_scale: Tensor, weights: Tensor, k_cache: Tensor, k_scale_cache: Tensor, cache_mode: PagedMode,
    block_table: Tensor, act_seq: Tensor, k: int, query_start_loc: Tensor | None,
) -> Tensor:  # fmt: skip
    named = {"query": query, "query_scale": query_scale, "weights": weights}
    out = IndexerOutput(**{name: contiguous_array(name, tensor) for name, tensor in named.items()})
    cache = index_cache_of(k_cache, k_scale_cache, cache_mode)
    table, lengths = contiguous_array("block_table", block_table), contiguous_array("act_seq", act_seq)
    starts = _optional("query_start_loc", query_start_loc)
    return to_torch(lightning_index_of(out, cache, table, lengths, k, query_start_loc=starts, n_threads=_threads()))


def _sparse_attention(
    query_nope: Tensor, query_rope: Tensor, kv_cache: Tensor, kr_cache: Tensor, k_scale_cache: Tensor | None,
    cache_mode: CacheMode, index: Tensor | None, block_table: Tensor, act_seq: Tensor, softmax_scale: float,
    query_start_loc: Tensor | None, flash_tile: int | None = None,
) -> Tensor:  # fmt: skip
    nope = contiguous_array("out.query_nope", query_nope)
    out = PrologOutput(nope, contiguous_array("out.query_rope", query_rope), nope, None)
    cache = TorchCache(kv_cache, kr_cache, k_scale_cache, cache_mode).numpy()
    table, lengths = contiguous_array("block_table", block_table), contiguous_array("act_seq", act_seq)
    latent = sparse_attention_of(
        out, cache, _optional("index", index), table, lengths, softmax_scale=softmax_scale,
        query_start_loc=_optional("query_start_loc", query_start_loc), flash_tile=flash_tile, n_threads=_threads(),
    )  # fmt: skip
    return to_torch(latent)


def _indexer_prolog(
    handle: Tensor, x: Tensor, q_norm: Tensor, q_norm_scale: Tensor, cos: Tensor, sin: Tensor, cache_index: Tensor,
    k_cache: Tensor, k_scale_cache: Tensor, cache_mode: PagedMode, n_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    prolog = found_by(handle)
    if not isinstance(prolog, IndexerProlog):
        raise ValueError(f"handle: expected that of an IndexerProlog, got that of {type(prolog).__name__}")
    if n_heads != prolog.dims.n_heads:
        raise ValueError(f"n_heads: expected that of the handle's prolog, {prolog.dims.n_heads}, got {n_heads}")
    cache = index_cache_of(k_cache, k_scale_cache, cache_mode)
    out = prolog(
        contiguous_array("x", x), contiguous_array("q_norm", q_norm), contiguous_array("q_norm_scale", q_norm_scale),
        contiguous_array("cos", cos), contiguous_array("sin", sin), contiguous_array("cache_index", cache_index), cache,
    )  # fmt: skip
    torch.autograd.graph.increment_version([k_cache, k_scale_cache])  # not where the call was refused
    return to_torch(out.query), to_torch(out.query_scale), to_torch(out.weights)


def _threads() -> int:
    return min(torch.get_num_threads(), max_threads())


def _fake_index(query: Tensor, *others: Any) -> Tensor:
    return query.new_empty((query.shape[0], others[7]), dtype=torch.int32)


def _fake_attention(query_nope: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(query_nope, memory_format=torch.contiguous_format)


def fake_indexer_outputs(x: Tensor, n_heads: int, k_cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of an indexer's prolog without values."""
    t = x.shape[0]
    return (
        x.new_empty((t, n_heads, k_cache.shape[-1]), dtype=torch.int8),
        x.new_empty((t, n_heads, 1), dtype=torch.float16),
        x.new_empty((t, n_heads), dtype=torch.float16),
    )


def _fake_prolog(handle: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_indexer_outputs(x, others[-1], others[5])


register(_library, "lightning_index", _lightning_index, _fake_index)
register(_library, "sparse_attention", _sparse_attention, _fake_attention)
register(_library, "indexer_prolog", _indexer_prolog, _fake_prolog)
