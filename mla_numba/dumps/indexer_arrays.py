"""What the two operators with an indexer's prolog have in common: its weights, its outputs, its sizes."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ..base.checks import BF16, FP16, INT8, Array, renamed
from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..indexer_cache import IndexerCache
from ..oracle.indexer import IndexerReferenceOutput
from ..oracle.indexer_tolerance import INDEXER_TOLERANCES
from ..weights.indexer import IndexerWeights
from .caches import key_outputs
from .call import Wanted
from .kinds import Kind, exactly, heads, rows, vector
from .reader import InputReader
from .settings import DumpSettings

__all__ = [
    "INDEXER_MATRICES", "INDEXER_SETTINGS", "INDEXER_WEIGHTS", "indexer_inputs", "indexer_outputs", "indexer_wanted",
    "random_indexer", "read_indexer", "shown_sizes", "sizes_text", "with_sizes",
]  # fmt: skip

INDEXER_SETTINGS = ("indexer_heads", "indexer_head_dim", "epsilon_k", "rope")
INDEXER_WEIGHTS = ("w_qb", "w_qb_scale", "wk", "w_proj", "ln_gamma_k", "ln_beta_k")
INDEXER_MATRICES = ("hadamard_q", "hadamard_k")


def random_indexer(dims: MlaDims, settings: DumpSettings, seed: int) -> tuple[IndexerWeights, DumpSettings]:
    """Weights of a seed, and the settings with their sizes. Raises `ValueError` for sizes that do not go together."""
    usual = IndexerDims.deepseek_v32()
    n_heads, head_dim = settings.indexer_heads or usual.n_heads, settings.indexer_head_dim or usual.head_dim
    with renamed({"n_heads": "indexer_heads", "head_dim": "indexer_head_dim"}):
        weights = IndexerWeights.random(dims, seed, n_heads, head_dim, settings.rope)
    return replace(weights, epsilon=settings.epsilon_k), with_sizes(settings, weights.dims)


def with_sizes(settings: DumpSettings, dims: IndexerDims) -> DumpSettings:
    """The settings with the sizes of an indexer."""
    return replace(settings, indexer_heads=dims.n_heads, indexer_head_dim=dims.head_dim)


def shown_sizes(reader: InputReader) -> tuple[int, int]:
    """Heads of the indexer and their width: as the settings say, else as arrays show, else DeepSeek-V3.2's."""
    matrix, scale, usual = reader.shape("hadamard_q"), reader.shape("w_qb_scale"), IndexerDims.deepseek_v32()
    head_dim = reader.settings.indexer_head_dim or (matrix[-1] if matrix else usual.head_dim)
    shown = prod(scale) // max(head_dim, 1) if scale else usual.n_heads
    return reader.settings.indexer_heads or shown, head_dim


def read_indexer(reader: InputReader, dims: IndexerDims) -> IndexerWeights:
    """The indexer's weights of a folder."""
    width = dims.head_dim
    scale = reader.scales("w_qb_scale", dims.query_dim)
    if scale is None:
        raise ValueError(f"{reader.label('w_qb_scale')}: expected {dims.query_dim} scales, got an empty file")
    arrays = {
        "w_qb": reader.weight("w_qb", dims.q_lora_rank, dims.query_dim, INT8),
        "w_qb_scale": scale,
        "wk": reader.weight("wk", dims.hidden_size, width, BF16),
        "w_proj": reader.weight("w_proj", dims.hidden_size, dims.n_heads, BF16),
        **{key: reader.read(key, *vector(width, BF16)) for key in ("ln_gamma_k", "ln_beta_k")},
        **{key: reader.read(key, exactly((width, width), BF16)) for key in INDEXER_MATRICES},
    }
    with renamed({key: reader.label(key) for key in arrays}):
        return IndexerWeights(
            **arrays,
            epsilon=reader.settings.epsilon_k,
            rope=reader.settings.rope,
            qk_rope_head_dim=dims.qk_rope_head_dim,
        )


def indexer_inputs(weights: IndexerWeights) -> dict[str, Array]:
    """The weights by key, with scales (n, 1) as the operator takes them."""
    arrays = {key: getattr(weights, key) for key in (*INDEXER_WEIGHTS, *INDEXER_MATRICES)}
    return arrays | {"w_qb_scale": weights.w_qb_scale[:, None]}


def indexer_outputs(t: int, dims: IndexerDims, cache: IndexerCache) -> dict[str, list[Kind]]:
    """What each output for t tokens may be."""
    return {
        "index_query_out": [heads(t, dims.n_heads, dims.head_dim, INT8)],
        "index_query_scale_out": [rows(t, dims.n_heads, 1, dtype=FP16), _scales_of_heads(t, dims.n_heads)],
        **key_outputs(cache),
        "index_weights_out": [rows(t, dims.n_heads, dtype=FP16)],
    }


def _scales_of_heads(t: int, n: int) -> Kind:
    """(T, n) for (T, n, 1)."""
    flat = rows(t, n, dtype=FP16)
    return Kind((t, n, 1), FP16, lambda got: (t, n, 1) if flat.fit(got) is not None else None)


def indexer_wanted(
    reference: IndexerReferenceOutput, cache: IndexerCache, cache_index: Array, *, fused: bool
) -> dict[str, Wanted]:
    """The outputs of `reference` with their tolerances; `fused` where the operator computes the prolog, too."""
    unnamed = np.setdiff1d(np.arange(cache.capacity), cache_index)
    is_nz = cache.cache_mode == "PA_NZ"
    tolerances = {name: INDEXER_TOLERANCES[name, fused] for name in reference._fields}
    return {
        "index_query_out": Wanted(reference.query, tolerances["query"]),
        "index_query_scale_out": Wanted(reference.query_scale, tolerances["query_scale"]),
        "index_k_out": Wanted(reference.k_cache, tolerances["k_cache"], cache.k, unnamed, is_nz),
        "index_k_scale_out": Wanted(reference.k_scale_cache, tolerances["k_scale_cache"], cache.k_scale, unnamed),
        "index_weights_out": Wanted(reference.weights, tolerances["weights"]),
    }


def sizes_text(weights: IndexerWeights) -> str:
    """Heads, their width and how rope columns come."""
    return f"{weights.dims.n_heads} x {weights.dims.head_dim}, rope {weights.rope}"
