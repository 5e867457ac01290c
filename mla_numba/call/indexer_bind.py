"""Arguments of a call of the indexer's prolog: checked, and held as the kernels take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..base import checks as check
from ..base.checks import BF16, FP16, FP32, INT8, Array
from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..base.memory import UINT16, aligned_empty, as_bits, writable_alias
from ..base.modes import Numerics, QuantMode
from ..indexer_cache import IndexerCache
from ..kernels.indexer.arguments import IndexCaches, IndexTokens
from ..kernels.sweeps.arguments import Slots
from ..weights.indexer import IndexerWeights
from ..weights.packed_indexer import PackedIndexer
from .bind import BoundCall, BoundIndexer, CallInputs
from .indexer import IndexerOutput

__all__ = [
    "IndexerInputs",
    "allocate_indexer_output",
    "check_beside",
    "check_indexer",
    "check_indexer_cache",
    "check_indexer_inputs",
    "hold_beside",
    "hold_index_caches",
    "hold_index_tokens",
    "writable_indexer_outputs",
]


class IndexerInputs(NamedTuple):
    """What a call reads: the arguments of `IndexerProlog` but for the cache."""

    x: Array
    q_norm: Array
    q_norm_scale: Array
    cos: Array
    sin: Array
    cache_index: Array


def check_indexer_inputs(given: IndexerInputs, dims: IndexerDims) -> None:
    """Raises for an argument that an indexer of these dimensions does not take; the slots are not looked at."""
    check.check_array("x", given.x, (BF16,), (None, dims.hidden_size))
    t = given.x.shape[0]
    check.check_array("q_norm", given.q_norm, (INT8,), (t, dims.q_lora_rank))
    check.check_array("q_norm_scale", given.q_norm_scale, (FP32,), (t, 1))
    check.check_array("cos", given.cos, (BF16,), (t, dims.qk_rope_head_dim))
    check.check_array("sin", given.sin, (BF16,), (t, dims.qk_rope_head_dim))


def check_indexer_cache(name: str, cache: object, dims: IndexerDims) -> IndexerCache:
    """`cache` if it is an indexer's cache, writable, whose keys are as long as a head."""
    if not isinstance(cache, IndexerCache):
        raise TypeError(f"{name}: expected IndexerCache, got {type(cache).__name__}")
    if cache.sizes.width != dims.head_dim:
        raise ValueError(f"k_cache: expected keys of {dims.head_dim} elements, got {cache.sizes.width}")
    for array_name, array in cache.arrays().items():
        check.check_writable(array_name, array)
    return cache


def allocate_indexer_output(dims: IndexerDims, t: int) -> IndexerOutput:
    """Uninitialised outputs of t tokens."""
    return IndexerOutput(
        query=aligned_empty((t, dims.n_heads, dims.head_dim), INT8),
        query_scale=aligned_empty((t, dims.n_heads, 1), FP16),
        weights=aligned_empty((t, dims.n_heads), FP16),
    )


def writable_indexer_outputs(name: str, out: object, t: int, dims: IndexerDims) -> dict[str, Array]:
    """The outputs by name, which `name` begins. Raises for one that does not fit T tokens and the dimensions."""
    if not isinstance(out, IndexerOutput):
        raise TypeError(f"{name}: expected IndexerOutput, got {type(out).__name__}")
    wanted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "query": (INT8, (t, dims.n_heads, dims.head_dim)),
        "query_scale": (FP16, (t, dims.n_heads, 1)),
        "weights": (FP16, (t, dims.n_heads)),
    }
    arrays = {}
    for field, (dtype, shape) in wanted.items():
        array = check.check_array(f"{name}.{field}", getattr(out, field), (dtype,), shape)
        check.check_writable(f"{name}.{field}", array)
        arrays[f"{name}.{field}"] = array
    return arrays


def hold_index_tokens(given: IndexerInputs, slots: Array, out: IndexerOutput) -> IndexTokens:
    """The checked arguments and outputs as views; `slots` in place of cache_index."""
    return IndexTokens(
        x=as_bits(given.x),
        q_norm=writable_alias(given.q_norm.view(INT8)),
        q_norm_scale=writable_alias(given.q_norm_scale.view(FP32)).reshape(-1),
        cos=as_bits(given.cos),
        sin=as_bits(given.sin),
        cache_index=slots,
        **_held_outputs(out),
    )


def _held_outputs(out: IndexerOutput) -> dict[str, Array]:
    return {
        "query": out.query.view(INT8),
        "query_scale": out.query_scale.view(UINT16).reshape(-1),
        "weights": out.weights.view(UINT16),
    }


def hold_index_caches(cache: IndexerCache) -> IndexCaches:
    """A checked cache as the kernels take it."""
    k, k_scale = cache.views["k_cache"], cache.views["k_scale_cache"]
    return IndexCaches(Slots(k.flat, k.layout), Slots(k_scale.flat, k_scale.layout))


def check_beside(given: CallInputs, indexer: IndexerDims | None) -> None:
    """Raises unless a call has a cache for the keys of the prolog's indexer, and for none where it has none.

    The caches have the same slots: the indexer's may have more.
    """
    cache = given.indexer_cache
    if indexer is None:
        if cache is not None:
            kind = type(cache).__name__
            raise ValueError(f"indexer_cache: expected None for a prolog without an indexer, got {kind}")
        return
    capacity = check_indexer_cache("indexer_cache", cache, indexer).sizes.capacity
    if capacity < given.cache.sizes.capacity:
        raise ValueError(
            f"indexer_cache: expected at least {given.cache.sizes.capacity} slots, those of the cache, got {capacity}"
        )


def hold_beside(call: BoundCall, cache: IndexerCache, indexer: IndexerDims) -> BoundCall:
    """A bound call with the part of its indexer, which reads what the prolog reads and writes."""
    out, tokens = call.out, call.tokens
    assert out.indexer is not None
    index_tokens = IndexTokens(
        x=tokens.x,
        q_norm=tokens.q_norm,
        q_norm_scale=tokens.q_norm_scale,
        cos=tokens.cos,
        sin=tokens.sin,
        cache_index=tokens.cache_index,
        **_held_outputs(out.indexer),
    )
    return call._replace(indexer=BoundIndexer(index_tokens, hold_index_caches(cache), indexer))


def check_indexer(indexer: object, dims: MlaDims, quant: QuantMode, numerics: Numerics) -> None:
    """Raises unless it is None, or an indexer that a prolog of these dimensions, mode and numerics can have."""
    if indexer is None:
        return
    if not isinstance(indexer, (IndexerWeights, PackedIndexer)):
        raise TypeError(f"indexer: expected IndexerWeights, PackedIndexer or None, got {type(indexer).__name__}")
    if isinstance(indexer, PackedIndexer):
        indexer.check("indexer")
    for name in ("hidden_size", "q_lora_rank", "qk_rope_head_dim"):
        own, wanted = getattr(indexer.dims, name), getattr(dims, name)
        if own != wanted:
            raise ValueError(f"indexer: expected {name} {wanted}, that of weights, got {own}")
    if "b" not in quant:
        raise ValueError(
            f"indexer: expected None for weights of quant {quant!r}, since it reads an int8 q_norm ('b' or 'ab'), got "
            f"{type(indexer).__name__}"
        )
    if numerics != "pypto":
        raise ValueError(
            f"numerics: expected 'pypto' with an indexer, which is defined in these alone, got {numerics!r}"
        )
