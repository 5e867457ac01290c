"""A call of both prologs in one operator: `mla_indexer_prolog_quant`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from ..base.checks import Array, check_choice
from ..base.indexer_dims import IndexerDims
from ..base.modes import DumpOperator, QuantMode
from ..indexer_cache import IndexerCache
from ..oracle.indexer import IndexerReferenceOutput, indexer_prolog_reference
from ..oracle.indexer_tolerance import FUSED_TOLERANCES
from ..oracle.reference import ReferenceOutput
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
from .kinds import Kind
from .prolog_call import PrologCall
from .reader import InputReader
from .settings import DumpSettings

__all__ = ["BothPrologsCall", "BothReferences"]


class BothReferences(NamedTuple):
    """What the oracle makes of both prologs."""

    prolog: ReferenceOutput
    indexer: IndexerReferenceOutput


@dataclass(frozen=True, slots=True, eq=False)
class BothPrologsCall(CallOfArrays):
    """The arguments of a call of `MlaProlog(prolog.weights, indexer=indexer)`; `keys` is the indexer's cache."""

    operator: ClassVar[DumpOperator] = "mla_indexer_prolog_quant"
    settings_read: ClassVar = (
        "dims", "block_size", "cache_mode", "nz", "epsilon_cq", "epsilon_ckv", *INDEXER_SETTINGS,
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
        indexer, settings = random_indexer(prolog.weights.dims, prolog.settings, choices.seed)
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
        sizes = IndexerDims(dims.hidden_size, dims.q_lora_rank, *shown_sizes(reader), dims.qk_rope_head_dim)
        indexer = read_indexer(reader, sizes)
        keys = read_keys(reader, sizes.head_dim)
        if keys.capacity < prolog.cache.capacity:
            least, name = prolog.cache.capacity, reader.label("index_k")
            raise ValueError(f"{name}: expected at least the {least} slots of the prolog's cache, got {keys.capacity}")
        return cls(with_sizes(prolog.settings, sizes), prolog, indexer, keys)

    def inputs(self) -> dict[str, Array | None]:
        """The arguments, those of other modes last."""
        weights, last = indexer_inputs(self.indexer), [a.key for a in self.arguments().unnumbered_inputs]
        of_prolog = self.prolog.inputs()
        return {
            **{key: array for key, array in of_prolog.items() if key not in last},
            **{key: weights[key] for key in (*INDEXER_WEIGHTS, *INDEXER_MATRICES)},
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
        found |= indexer_wanted(references.indexer, self.keys, index, fused=True)
        return {key: found[key] for key in self.expected()}

    def expected(self) -> dict[str, list[Kind]]:
        """What each output may be."""
        kinds = self.prolog.expected() | indexer_outputs(len(self.prolog.x), self.indexer.dims, self.keys)
        return {argument.key: kinds[argument.key] for argument in self.arguments().all_outputs}

    def facts(self) -> dict[str, Any]:
        """Tokens and mode."""
        return self.prolog.facts()

    @property
    def title(self) -> str:
        """That of the prolog, and the indexer's dimensions."""
        return f"{self.prolog.title}, indexer {sizes_text(self.indexer)}"


def _check_settings(settings: DumpSettings) -> None:
    """Raises `ValueError` for what the operator of both prologs does not have."""
    paged_mode(settings)
    check_choice("numerics", settings.numerics, ("pypto",))
