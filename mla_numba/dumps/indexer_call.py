"""Calls with the indexer's prolog: `lightning_indexer_prolog_quant`, and both prologs in `mla_indexer_prolog_quant`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from tiling import ceil_div

from ..base.checks import BF16, FP16, FP32, INT8, Array, check_choice, check_int, renamed
from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..base.modes import DumpOperator, QuantMode
from ..indexer_cache import IndexerCache
from ..oracle.indexer import IndexerReferenceOutput, indexer_prolog_reference
from ..oracle.indexer_tolerance import FUSED_TOLERANCES, INDEXER_TOLERANCES
from ..oracle.inputs import random_inputs
from ..oracle.reference import ReferenceOutput
from ..weights.indexer import IndexerWeights
from .caches import key_outputs, paged_mode, random_keys, read_keys
from .call import CallOfArrays, Choices, Wanted
from .kinds import Kind, exactly, heads, rows, vector
from .prolog_call import PrologCall
from .reader import InputReader
from .settings import DumpSettings

__all__ = ["BothPrologsCall", "BothReferences", "IndexerPrologCall"]

_OF_INDEXER = ("indexer_heads", "indexer_head_dim", "epsilon_k", "rope")


@dataclass(frozen=True, slots=True, eq=False)
class IndexerPrologCall(CallOfArrays):
    """The arguments of a call of `IndexerProlog(weights)`."""

    operator: ClassVar[DumpOperator] = "lightning_indexer_prolog_quant"
    settings_read: ClassVar = ("dims", "block_size", "cache_mode", "nz", *_OF_INDEXER)
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
        weights, settings = _random_weights(dims, settings, choices.seed)
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
        weights = _read_weights(reader, dims)
        x = reader.read("x", rows(None, dims.hidden_size, dtype=BF16))
        t = len(x)
        q_norm = reader.read("q_norm", rows(t, dims.q_lora_rank, dtype=INT8))
        scale = reader.read("q_norm_scale", *(rows(t, 1, dtype=dtype) for dtype in (FP32, FP16))).astype(FP32)
        cos, sin = (reader.read(key, rows(t, dims.qk_rope_head_dim, dtype=BF16)) for key in ("cos", "sin"))
        cache = read_keys(reader, dims.head_dim)
        index = reader.slots(t, cache.capacity)
        return cls(_with_sizes(reader.settings, dims), weights, x, q_norm, scale, cos, sin, index, cache)

    @classmethod
    def _dims(cls, reader: InputReader) -> IndexerDims:
        """Those of the settings, else what arrays show, else DeepSeek-V3.2's."""
        n_heads, head_dim = _shown_sizes(reader)
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
        weights = _inputs_of(self.weights)
        return {
            "x": self.x,
            "q_norm": self.q_norm,
            "q_norm_scale": self.q_norm_scale,
            **{key: weights[key] for key in _WEIGHTS},
            "cos": self.cos,
            "sin": self.sin,
            **{key: weights[key] for key in _MATRICES},
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
        return _wanted(self.reference(), self.cache, self.cache_index, fused=False)

    def expected(self) -> dict[str, list[Kind]]:
        """What each output may be."""
        return _expected(len(self.x), self.weights.dims, self.cache)

    def facts(self) -> dict[str, Any]:
        """Tokens."""
        return {"tokens": len(self.x)}

    @property
    def title(self) -> str:
        """Tokens, cache and dimensions."""
        return f"{len(self.x)} tokens, {self.cache.cache_mode}, {_sizes_text(self.weights)}"


class BothReferences(NamedTuple):
    """What the oracle makes of both prologs."""

    prolog: ReferenceOutput
    indexer: IndexerReferenceOutput


@dataclass(frozen=True, slots=True, eq=False)
class BothPrologsCall(CallOfArrays):
    """The arguments of a call of `MlaProlog(prolog.weights, indexer=indexer)`; `keys` is the indexer's cache."""

    operator: ClassVar[DumpOperator] = "mla_indexer_prolog_quant"
    settings_read: ClassVar = (
        "dims", "block_size", "cache_mode", "nz", "epsilon_cq", "epsilon_ckv", *_OF_INDEXER,
    )  # fmt: skip
    choices_read: ClassVar = ("smooth", "n_blocks", "scale_dtype")
    modes: ClassVar[tuple[QuantMode, ...]] = ("b", "ab")

    settings: DumpSettings
    prolog: PrologCall
    indexer: IndexerWeights
    keys: IndexerCache

    @classmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> Self:
        """Weights of both, inputs and earlier tokens of a seed."""
        _check_settings(settings)
        prolog = PrologCall.random(settings, choices)
        indexer, settings = _random_weights(prolog.weights.dims, prolog.settings, choices.seed)
        n_blocks = prolog.cache.capacity // settings.block_size
        return cls(settings, prolog, indexer, random_keys(indexer.dims, n_blocks, settings, choices.seed))

    @classmethod
    def read(cls, reader: InputReader) -> Self:
        """The call of a folder."""
        _check_settings(reader.settings)
        reader.expect_all()
        prolog = PrologCall.read(reader)
        if not prolog.cache.quantized:
            raise ValueError(f"{reader.label('dequant_scale')}: expected a scale of each column, got an empty file")
        dims = prolog.weights.dims
        sizes = IndexerDims(dims.hidden_size, dims.q_lora_rank, *_shown_sizes(reader), dims.qk_rope_head_dim)
        indexer = _read_weights(reader, sizes)
        keys = read_keys(reader, sizes.head_dim)
        if keys.capacity < prolog.cache.capacity:
            least, name = prolog.cache.capacity, reader.label("index_k")
            raise ValueError(f"{name}: expected at least the {least} slots of the prolog's cache, got {keys.capacity}")
        return cls(_with_sizes(prolog.settings, sizes), prolog, indexer, keys)

    def inputs(self) -> dict[str, Array | None]:
        """The arguments, those of other modes last."""
        weights, last = _inputs_of(self.indexer), [a.key for a in self.arguments().unnumbered_inputs]
        of_prolog = self.prolog.inputs()
        return {
            **{key: array for key, array in of_prolog.items() if key not in last},
            **{key: weights[key] for key in (*_WEIGHTS, *_MATRICES)},
            "index_k": self.keys.k,
            "index_k_scale": self.keys.k_scale,
            **{key: of_prolog[key] for key in last},
        }

    def reference(self) -> BothReferences:
        """The oracle's outputs: those of the prolog, whose normalised query the indexer reads."""
        call, of_prolog = self.prolog, self.prolog.reference()
        assert of_prolog.q_norm_scale is not None
        assert call.cache_index is not None
        of_indexer = indexer_prolog_reference(
            self.indexer, call.x, of_prolog.q_norm, of_prolog.q_norm_scale, call.cos, call.sin, call.cache_index,
            self.keys,
        )  # fmt: skip
        return BothReferences(of_prolog, of_indexer)

    def wanted(self) -> dict[str, Wanted]:
        """The oracle's outputs, with the tolerances of the test of both prologs in one operator."""
        references, index = self.reference(), self.prolog.cache_index
        assert index is not None
        found = self.prolog.wanted_of(references.prolog, FUSED_TOLERANCES)
        found |= _wanted(references.indexer, self.keys, index, fused=True)
        return {key: found[key] for key in self.expected()}

    def expected(self) -> dict[str, list[Kind]]:
        """What each output may be."""
        kinds = self.prolog.expected() | _expected(len(self.prolog.x), self.indexer.dims, self.keys)
        return {argument.key: kinds[argument.key] for argument in self.arguments().all_outputs}

    def facts(self) -> dict[str, Any]:
        """Tokens and mode."""
        return self.prolog.facts()

    @property
    def title(self) -> str:
        """That of the prolog, and the indexer's dimensions."""
        return f"{self.prolog.title}, indexer {_sizes_text(self.indexer)}"


_WEIGHTS = ("w_qb", "w_qb_scale", "wk", "w_proj", "ln_gamma_k", "ln_beta_k")
_MATRICES = ("hadamard_q", "hadamard_k")


def _check_settings(settings: DumpSettings) -> None:
    """Raises `ValueError` for what the operator of both prologs does not have."""
    paged_mode(settings)
    check_choice("numerics", settings.numerics, ("pypto",))


def _random_weights(dims: MlaDims, settings: DumpSettings, seed: int) -> tuple[IndexerWeights, DumpSettings]:
    usual = IndexerDims.deepseek_v32()
    n_heads, head_dim = settings.indexer_heads or usual.n_heads, settings.indexer_head_dim or usual.head_dim
    with renamed({"n_heads": "indexer_heads", "head_dim": "indexer_head_dim"}):
        weights = IndexerWeights.random(dims, seed, n_heads, head_dim, settings.rope)
    return replace(weights, epsilon=settings.epsilon_k), _with_sizes(settings, weights.dims)


def _with_sizes(settings: DumpSettings, dims: IndexerDims) -> DumpSettings:
    return replace(settings, indexer_heads=dims.n_heads, indexer_head_dim=dims.head_dim)


def _shown_sizes(reader: InputReader) -> tuple[int, int]:
    """Heads of the indexer and their width: as the settings say, else as arrays show, else DeepSeek-V3.2's."""
    matrix, scale, usual = reader.shape("hadamard_q"), reader.shape("w_qb_scale"), IndexerDims.deepseek_v32()
    head_dim = reader.settings.indexer_head_dim or (matrix[-1] if matrix else usual.head_dim)
    shown = prod(scale) // max(head_dim, 1) if scale else usual.n_heads
    return reader.settings.indexer_heads or shown, head_dim


def _read_weights(reader: InputReader, dims: IndexerDims) -> IndexerWeights:
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
        **{key: reader.read(key, exactly((width, width), BF16)) for key in _MATRICES},
    }
    with renamed({key: reader.label(key) for key in arrays}):
        return IndexerWeights(
            **arrays,
            epsilon=reader.settings.epsilon_k,
            rope=reader.settings.rope,
            qk_rope_head_dim=dims.qk_rope_head_dim,
        )


def _inputs_of(weights: IndexerWeights) -> dict[str, Array]:
    arrays = {key: getattr(weights, key) for key in (*_WEIGHTS, *_MATRICES)}
    return arrays | {"w_qb_scale": weights.w_qb_scale[:, None]}


def _expected(t: int, dims: IndexerDims, cache: IndexerCache) -> dict[str, list[Kind]]:
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


def _wanted(
    reference: IndexerReferenceOutput, cache: IndexerCache, cache_index: Array, *, fused: bool
) -> dict[str, Wanted]:
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


def _sizes_text(weights: IndexerWeights) -> str:
    return f"{weights.dims.n_heads} x {weights.dims.head_dim}, rope {weights.rope}"
