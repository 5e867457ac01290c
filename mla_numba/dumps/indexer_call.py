"""A call of the indexer's prolog: `lightning_indexer_prolog_quant`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from tiling import ceil_div

from ..base.checks import BF16, FP16, FP32, INT8, Array, check_int
from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..base.modes import DumpOperator
from ..indexer_cache import IndexerCache
from ..oracle.indexer import IndexerReferenceOutput, indexer_prolog_reference
from ..oracle.inputs import random_inputs
from ..weights.indexer import IndexerWeights
from .caches import paged_mode, random_keys, read_keys
from .call import CallOfArrays, Choices, Wanted
from .indexer_arrays import (
    INDEXER_MATRICES,
    INDEXER_SETTINGS,
    INDEXER_WEIGHTS,
    indexer_inputs,
    indexer_outputs,
    indexer_wanted,
    random_indexer,
    read_indexer,
    shown_sizes,
    sizes_text,
    with_sizes,
)
from .kinds import Kind, rows
from .reader import InputReader
from .settings import DumpSettings

__all__ = ["IndexerPrologCall"]


@dataclass(frozen=True, slots=True, eq=False)
class IndexerPrologCall(CallOfArrays):
    """The arguments of a call of `IndexerProlog(weights)`."""

    operator: ClassVar[DumpOperator] = "lightning_indexer_prolog_quant"
    settings_read: ClassVar = ("dims", "block_size", "cache_mode", "nz", *INDEXER_SETTINGS)
    choices_read: ClassVar = ("n_blocks",)

    settings: DumpSettings
    weights: IndexerWeights
    x: Array
    q_norm: Array
    q_norm_scale: Array
    cos: Array
    sin: Array
    cache_index: Array
    cache: IndexerCache

    @classmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> Self:
        """Weights, inputs, a normalised query and earlier keys of a seed."""
        settings = replace(settings, dims=settings.dims or MlaDims.deepseek_v32())
        dims, t = settings.dims, choices.t
        assert dims is not None
        weights, settings = random_indexer(dims, settings, choices.seed)
        least = ceil_div(t, settings.block_size)
        n_blocks = least + 1 if choices.n_blocks is None else check_int("n_blocks", choices.n_blocks, least)
        cache = random_keys(weights.dims, n_blocks, settings, choices.seed)
        x, cos, sin, index = random_inputs(dims, t, choices.seed, cache.capacity)
        rng = np.random.default_rng((choices.seed, 4))
        q_norm = rng.integers(-127, 128, (t, dims.q_lora_rank), np.int8)
        scale = rng.uniform(0.01, 0.04, (t, 1)).astype(FP32)
        return cls(settings, weights, x, q_norm, scale, cos, sin, index, cache)

    @classmethod
    def read(cls, reader: InputReader) -> Self:
        """The call of a folder."""
        paged_mode(reader.settings)
        reader.expect_all()
        dims = cls._dims(reader)
        weights = read_indexer(reader, dims)
        x = reader.read("x", rows(None, dims.hidden_size, dtype=BF16))
        t = len(x)
        q_norm = reader.read("q_norm", rows(t, dims.q_lora_rank, dtype=INT8))
        scale = reader.read("q_norm_scale", *(rows(t, 1, dtype=dtype) for dtype in (FP32, FP16))).astype(FP32)
        cos, sin = (reader.read(key, rows(t, dims.qk_rope_head_dim, dtype=BF16)) for key in ("cos", "sin"))
        cache = read_keys(reader, dims.head_dim)
        index = reader.slots(t, cache.capacity)
        return cls(with_sizes(reader.settings, dims), weights, x, q_norm, scale, cos, sin, index, cache)

    @classmethod
    def _dims(cls, reader: InputReader) -> IndexerDims:
        """Those of the settings, else what arrays show, else DeepSeek-V3.2's."""
        n_heads, head_dim = shown_sizes(reader)
        given, usual = reader.settings.dims, IndexerDims.deepseek_v32()
        if given is not None:
            return IndexerDims(given.hidden_size, given.q_lora_rank, n_heads, head_dim, given.qk_rope_head_dim)
        widths = []
        for key, width in (("x", usual.hidden_size), ("q_norm", usual.q_lora_rank), ("cos", usual.qk_rope_head_dim)):
            shape = reader.shape(key)
            widths.append(shape[-1] if shape else width)
        hidden, q_rank, rope = widths
        return IndexerDims(hidden, q_rank, n_heads, head_dim, rope)

    def inputs(self) -> dict[str, Array | None]:
        """The arguments, all of them."""
        weights = indexer_inputs(self.weights)
        return {
            "x": self.x,
            "q_norm": self.q_norm,
            "q_norm_scale": self.q_norm_scale,
            **{key: weights[key] for key in INDEXER_WEIGHTS},
            "cos": self.cos,
            "sin": self.sin,
            **{key: weights[key] for key in INDEXER_MATRICES},
            "index_k": self.cache.k,
            "index_k_scale": self.cache.k_scale,
            "cache_index": self.cache_index,
        }

    def reference(self) -> IndexerReferenceOutput:
        """The oracle's outputs."""
        return indexer_prolog_reference(
            self.weights, self.x, self.q_norm, self.q_norm_scale, self.cos, self.sin, self.cache_index, self.cache
        )

    def wanted(self) -> dict[str, Wanted]:
        """The oracle's outputs."""
        return indexer_wanted(self.reference(), self.cache, self.cache_index, fused=False)

    def expected(self) -> dict[str, list[Kind]]:
        """What each output may be."""
        return indexer_outputs(len(self.x), self.weights.dims, self.cache)

    def facts(self) -> dict[str, Any]:
        """Tokens."""
        return {"tokens": len(self.x)}

    @property
    def title(self) -> str:
        """Tokens, cache and dimensions."""
        return f"{len(self.x)} tokens, {self.cache.cache_mode}, {sizes_text(self.weights)}"
