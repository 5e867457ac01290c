"""A call of the lightning index: `lightning_indexer_quant`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from ..base.checks import FP16, INT8, Array
from ..base.indexer_dims import IndexerDims
from ..base.modes import DumpOperator
from ..call.indexer import IndexerOutput
from ..indexer_cache import IndexerCache
from ..oracle.bits import compare_bits
from ..oracle.index_agreement import compare_index
from ..oracle.lightning_index import lightning_index_reference
from .caches import paged_mode, random_keys, read_keys
from .call import Call, Choices, DumpedOutput, ListsAgreement
from .kinds import Kind, heads, lists, rows
from .reader import INT32, INT64, InputReader
from .sequences import Sequences
from .settings import DumpSettings

__all__ = ["IndexCall"]

_USUAL_K = 2048


@dataclass(frozen=True, slots=True, eq=False)
class IndexCall(Call):
    """The arguments of a call of `lightning_index`; `out` is what the indexer's prolog returned."""

    operator: ClassVar[DumpOperator] = "lightning_indexer_quant"
    settings_read: ClassVar = ("block_size", "cache_mode", "indexer_heads", "indexer_head_dim", "k")
    choices_read: ClassVar = ("n_blocks", "sequences", "context")

    settings: DumpSettings
    out: IndexerOutput
    cache: IndexerCache
    sequences: Sequences

    @classmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> Self:
        """Queries, keys and sequences of a seed."""
        usual = IndexerDims.deepseek_v32()
        n, width = settings.indexer_heads or usual.n_heads, settings.indexer_head_dim or usual.head_dim
        settings = replace(settings, indexer_heads=n, indexer_head_dim=width, k=settings.k or _USUAL_K)
        sequences, n_blocks = Sequences.random(settings, choices)
        dims = IndexerDims(usual.hidden_size, usual.q_lora_rank, n, width, 2)
        rng = np.random.default_rng((choices.seed, 6))
        query = rng.integers(-127, 128, (choices.t, n, width), np.int8)
        scale = rng.uniform(0.01, 0.04, (choices.t, n, 1)).astype(FP16)
        weights = rng.standard_normal((choices.t, n)).astype(FP16)
        cache = random_keys(dims, n_blocks, settings, choices.seed)
        return cls(settings, IndexerOutput(query, scale, weights), cache, sequences)

    @classmethod
    def read(cls, reader: InputReader) -> Self:
        """The call of a folder."""
        paged_mode(reader.settings)
        reader.expect_all()
        shape, usual = reader.shape("query"), IndexerDims.deepseek_v32()
        shown = (usual.n_heads, usual.head_dim) if shape is None or len(shape) < 3 else shape[-2:]
        n = reader.settings.indexer_heads or shown[0] or usual.n_heads
        width = reader.settings.indexer_head_dim or shown[1] or usual.head_dim
        query = reader.read("query", heads(None, n, width, INT8))
        t = len(query)
        sequences = Sequences.read(reader, t)
        scale = reader.read("query_scale", rows(t, n, dtype=FP16), rows(t, n, 1, dtype=FP16)).reshape(t, n, 1)
        weights = reader.read("weights", rows(t, n, dtype=FP16))
        cache = read_keys(reader, width)
        sequences.check_mapped(reader, cache.block_size, cache.k.shape[0])
        settings = replace(reader.settings, indexer_heads=n, indexer_head_dim=width)
        return cls(settings, IndexerOutput(query, scale, weights), cache, sequences)

    def inputs(self) -> dict[str, Array | None]:
        """The arguments, with scales as the operator takes them: (T, Ni) and (blocks, BS, 1)."""
        return {
            "query": self.out.query,
            "query_scale": self.out.query_scale[:, :, 0],
            "index_k": self.cache.k,
            "index_k_scale": self.cache.k_scale[..., 0],
            "weights": self.out.weights,
            **self.sequences.inputs(),
        }

    def reference(self) -> Array:
        """The oracle's list of `settings.k` positions for each token."""
        return self._lists(self.settings.k or _USUAL_K)

    def goldens(self) -> dict[str, Array]:
        """The oracle's lists (T, 1, k)."""
        return {"index_out": self.reference()[:, None]}

    def expected(self) -> dict[str, list[Kind]]:
        """Lists of k positions, or of any length where k is not known."""
        return {"index_out": [lists(len(self.out.query), self.settings.k, dtype) for dtype in (INT32, INT64)]}

    def compare(self, outputs: Iterable[DumpedOutput], exact: bool) -> list[ListsAgreement]:
        """How lists agree with the oracle's: by the scores of other keys, or position by position."""
        return [self._compare(output, exact) for output in outputs]

    def facts(self) -> dict[str, Any]:
        """Tokens, and the keys of each sequence."""
        return {"tokens": len(self.out.query), "act_seq": self.sequences.act_seq.tolist()}

    @property
    def title(self) -> str:
        """Tokens, sequences, heads and cache."""
        t, n, width = self.out.query.shape
        return f"{t} tokens of {self.sequences.text}, {n} x {width}, {self.cache.cache_mode}"

    def _compare(self, output: DumpedOutput, exact: bool) -> ListsAgreement:
        got, (table, act_seq, starts) = output.array, self.sequences
        lists = compare_index(got, self.out, self.cache, table, act_seq, query_start_loc=starts)
        mismatch = None
        if not lists.exact:
            mismatch = compare_bits(output.name, got, self._lists(got.shape[1]).astype(got.dtype))
        passed = lists.exact if exact else lists.passed
        return ListsAgreement(output.name, output.file, got.size, mismatch, lists, passed)

    def _lists(self, k: int) -> Array:
        table, act_seq, starts = self.sequences
        return lightning_index_reference(self.out, self.cache, table, act_seq, k, query_start_loc=starts)
