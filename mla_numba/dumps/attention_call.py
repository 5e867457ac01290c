"""Calls of sparse attention: `sparse_flash_attention_quant`, and `sparse_attention_antiquant` over records."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from ..base.checks import BF16, INT8, Array, renamed
from ..base.dims import MlaDims
from ..base.modes import DumpOperator, QuantMode
from ..cache import PagedCache
from ..call.bind import PrologOutput
from ..layouts import RECORD_BYTES, to_records
from ..oracle.indexer_tolerance import ATTENTION_TOLERANCE
from ..oracle.pages import keys_seen, slots_of
from ..oracle.sparse_attention import listed_positions, sparse_attention_reference
from .caches import paged_mode, random_latents, read_latents
from .call import CallOfArrays, Choices, Wanted
from .kinds import Kind, first_cache, heads, lists
from .reader import INT32, INT64, InputReader
from .sequences import Sequences
from .settings import DumpSettings

__all__ = ["AttentionCall", "RecordsCall"]

_USUAL_K = 2048
_UINT8 = np.dtype(np.uint8)


class _Queries(NamedTuple):
    """What attention has beside the cache."""

    out: PrologOutput
    positions: Array | None
    sequences: Sequences


@dataclass(frozen=True, slots=True, eq=False)
class _AnyAttention(CallOfArrays):
    """The arguments of a call of `sparse_attention`, where `out` has queries only; `index` None is all keys."""

    settings: DumpSettings
    out: PrologOutput
    index: Array | None
    sequences: Sequences

    @abstractmethod
    def _cache(self) -> PagedCache | Array:
        """The cache as the oracle takes it."""

    @abstractmethod
    def _keys(self) -> dict[str, Array | None]:
        """The cache's arrays by key, with a row for each slot."""

    def inputs(self) -> dict[str, Array | None]:
        """The arguments: queries (T * N, d), caches with a row for each slot."""
        t, n, _ = self.out.query_nope.shape
        of_sequences = self.sequences.inputs()
        return {
            "query_nope": self.out.query_nope.reshape(t * n, -1),
            "query_rope": self.out.query_rope.reshape(t * n, -1),
            **self._keys(),
            "index": self.index,
            **{key: of_sequences[key] for key in ("block_table", "act_seq", "query_start_loc")},
        }

    def reference(self) -> Array:
        """The oracle's latents (T, N, C)."""
        settings, (table, act_seq, starts) = self.settings, self.sequences
        scale, cache = settings.softmax_scale, self._cache()
        assert scale is not None
        return sparse_attention_reference(
            self.out, cache, self.index, table, act_seq, scale, query_start_loc=starts,
            record_order=None if isinstance(cache, PagedCache) else settings.record_order,
            flash_tile=settings.flash_tile,
        )  # fmt: skip

    def wanted(self) -> dict[str, Wanted]:
        """The latents."""
        return {"latent_out": Wanted(self.reference(), ATTENTION_TOLERANCE)}

    def goldens(self) -> dict[str, Array]:
        """The latents (B, T / B, N, C), or (T, N, C) where sequences have different numbers of tokens."""
        latent, n = self.reference(), len(self.sequences.act_seq)
        is_even = self.sequences.query_start_loc is None
        return {"latent_out": latent.reshape(n, -1, *latent.shape[1:]) if is_even else latent}

    def expected(self) -> dict[str, list[Kind]]:
        """The latents."""
        t, n, latent = self.out.query_nope.shape
        return {"latent_out": [heads(t, n, latent, BF16)]}

    def facts(self) -> dict[str, Any]:
        """Tokens, and the keys of each sequence."""
        return {"tokens": len(self.out.query_nope), "act_seq": self.sequences.act_seq.tolist()}

    @property
    def title(self) -> str:
        """Tokens, sequences, lists, heads, cache and scale."""
        t, n, latent = self.out.query_nope.shape
        which = "all keys" if self.index is None else f"lists of {self.index.shape[1]}"
        flash = "" if self.settings.flash_tile is None else f", tiles of {self.settings.flash_tile}"
        return (
            f"{t} tokens of {self.sequences.text}, {which}, {n} heads of {latent} + {self.out.query_rope.shape[2]}, "
            f"{self._cache_text()}, softmax_scale {self.settings.softmax_scale:.6g}{flash}"
        )

    @abstractmethod
    def _cache_text(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall(_AnyAttention):
    """The same over a cache of int8 codes with scales, or of bf16."""

    operator: ClassVar[DumpOperator] = "sparse_flash_attention_quant"
    settings_read: ClassVar = ("dims", "block_size", "cache_mode", "k", "softmax_scale", "dense", "flash_tile")
    choices_read: ClassVar = ("n_blocks", "scale_dtype", "sequences", "context")
    modes: ClassVar[tuple[QuantMode, ...]] = ("b", "none")

    cache: PagedCache

    @classmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> Self:
        """Queries, keys, sequences and lists of a seed."""
        paged_mode(settings)
        settings, dims = _whole(settings)
        queries, n_blocks = _random_queries(settings, dims, choices)
        quantized = choices.quant == "b"
        cache = random_latents(dims, n_blocks, settings, quantized, choices.scale_dtype, choices.seed)
        return cls(settings, *queries, cache)

    @classmethod
    def read(cls, reader: InputReader) -> Self:
        """The call of a folder. Its cache is int8 where there are scales, and where a `.npy` or `.pt` says so."""
        paged_mode(reader.settings)
        queries = _read_queries(reader)
        latent, rope = queries.out.query_nope.shape[2], queries.out.query_rope.shape[2]
        dtypes = [INT8, BF16]
        if reader.shape("kv_cache") is None:
            dtypes = [INT8] if reader.has("k_scale_cache") else [BF16]
        cache = read_latents(reader, latent, rope, *dtypes)
        _check_keys(reader, queries, cache.block_size, cache.kv.shape[0])
        return cls(reader.settings, *queries, cache)

    def _cache(self) -> PagedCache:
        return self.cache

    def _keys(self) -> dict[str, Array | None]:
        return {key: array.reshape(-1, array.shape[-1]) for key, array in self.cache.arrays().items()}

    def _cache_text(self) -> str:
        return f"{self.cache.cache_mode} of {'int8' if self.cache.quantized else 'bf16'}"


@dataclass(frozen=True, slots=True, eq=False)
class RecordsCall(_AnyAttention):
    """The same over records of 656 bytes (blocks, BS, 1, 656) uint8."""

    operator: ClassVar[DumpOperator] = "sparse_attention_antiquant"
    settings_read: ClassVar = ("dims", "block_size", "k", "softmax_scale", "dense", "flash_tile", "record_order")
    choices_read: ClassVar = ("n_blocks", "sequences", "context")

    records: Array

    @classmethod
    def random(cls, settings: DumpSettings, choices: Choices) -> Self:
        """Queries, records, sequences and lists of a seed."""
        settings, dims = _whole(settings)
        if (dims.kv_lora_rank, dims.qk_rope_head_dim) != (_LATENT, _ROPE):
            raise ValueError(
                f"dims: expected kv_lora_rank {_LATENT} and qk_rope_head_dim {_ROPE}, those of records, got "
                f"{dims.kv_lora_rank} and {dims.qk_rope_head_dim}"
            )
        queries, n_blocks = _random_queries(settings, dims, choices)
        plain = replace(settings, cache_mode="PA_BSND")
        cache = random_latents(dims, n_blocks, plain, True, "float32", choices.seed)
        assert cache.k_scale is not None
        return cls(settings, *queries, to_records(cache.kv, cache.k_scale, cache.kr, order=settings.record_order))

    @classmethod
    def read(cls, reader: InputReader) -> Self:
        """The call of a folder; the bytes of records are int8 or uint8."""
        queries = _read_queries(reader, (_LATENT, _ROPE))
        size = reader.settings.block_size
        records = reader.read("records", *(first_cache(RECORD_BYTES, d, "PA_BSND", size) for d in (INT8, _UINT8)))
        _check_keys(reader, queries, records.shape[1], records.shape[0])
        return cls(reader.settings, *queries, records.view(np.uint8))

    def _cache(self) -> Array:
        return self.records

    def _keys(self) -> dict[str, Array | None]:
        return {"records": self.records.view(np.int8).reshape(-1, RECORD_BYTES)}

    def _cache_text(self) -> str:
        return f"records in the order of {self.settings.record_order}"


_LATENT, _ROPE = 512, 64  # of a record


def _whole(settings: DumpSettings) -> tuple[DumpSettings, MlaDims]:
    """Settings of a random call: with DeepSeek-V3.2's values where none are given."""
    dims = settings.dims or MlaDims.deepseek_v32()
    scale = settings.softmax_scale
    scale = (dims.qk_nope_head_dim + dims.qk_rope_head_dim) ** -0.5 if scale is None else scale
    return replace(settings, dims=dims, softmax_scale=scale, k=None if settings.dense else settings.k or _USUAL_K), dims


def _random_queries(settings: DumpSettings, dims: MlaDims, choices: Choices) -> tuple[_Queries, int]:
    """Queries, lists and sequences, and how many blocks their cache has."""
    t, n = choices.t, dims.num_attention_heads
    rng = np.random.default_rng((choices.seed, 7))
    arrays = [
        rng.standard_normal((t, n, d), np.float32).astype(BF16) for d in (dims.kv_lora_rank, dims.qk_rope_head_dim)
    ]
    sequences, n_blocks = Sequences.random(settings, choices)
    index = None
    if settings.k is not None:
        index = np.full((t, settings.k), -1, np.int32)
        for row, limit in zip(index, sequences.limits(t), strict=True):
            chosen = rng.permutation(limit)[: settings.k]
            row[: len(chosen)] = chosen
    return _Queries(_queries_only(*arrays), index, sequences), n_blocks


def _read_queries(reader: InputReader, widths: tuple[int, int] | None = None) -> _Queries:
    """Queries, lists and sequences; `widths` are those of the latent and of rope where the operator fixes them."""
    settings = reader.settings
    reader.expect_all({"k_scale_cache"} | ({"index"} if settings.dense else set()))
    if settings.softmax_scale is None:
        raise ValueError(
            f"softmax_scale: expected a number (softmax_scale in dims.json, or --softmax-scale), got none in "
            f"{reader.files.folder}"
        )
    n, latent, rope = _shown_sizes(reader)
    latent, rope = widths or (latent, rope)
    nope = reader.read("query_nope", heads(None, n, latent, BF16))
    t = len(nope)
    queries = _queries_only(nope, reader.read("query_rope", heads(t, n, rope, BF16)))
    sequences = Sequences.read(reader, t)
    index = None
    if not settings.dense:
        index = reader.read("index", *(lists(t, settings.k, dtype) for dtype in (INT32, INT64)))
    return _Queries(queries, index, sequences)


def _shown_sizes(reader: InputReader) -> tuple[int, int, int]:
    """Heads, widths of the latent and of rope: of the settings, else as arrays show, else DeepSeek-V3.2's."""
    nope, rope, index = (reader.shape(key) for key in ("query_nope", "query_rope", "index"))
    dims = reader.settings.dims
    if dims is None and nope and rope and len(nope) > 1:
        n_rows = prod(nope[:-1])
        n_lists = prod(index[:-1]) if index and len(index) > 1 else 0
        n_heads = nope[-2] if len(nope) > 2 else n_rows // n_lists if n_lists else 0
        if n_heads:
            return n_heads, nope[-1], rope[-1]
    dims = dims or MlaDims.deepseek_v32()
    return dims.num_attention_heads, dims.kv_lora_rank, dims.qk_rope_head_dim


def _queries_only(nope: Array, rope: Array) -> PrologOutput:
    return PrologOutput(nope, rope, np.zeros((len(nope), 0), INT8), None)


def _check_keys(reader: InputReader, queries: _Queries, block_size: int, n_blocks: int) -> None:
    """Raises `ValueError` unless every key that a token attends to is one that it sees, in a block of the cache."""
    index, (table, act_seq, starts) = queries.positions, queries.sequences
    if index is None:
        queries.sequences.check_mapped(reader, block_size, n_blocks)
        return
    with renamed({key: reader.label(key) for key in ("index", "block_table")}):
        for row, (sequence, limit) in zip(index, keys_seen(len(index), act_seq, starts), strict=True):
            slots_of(listed_positions(row, limit), table[sequence], block_size, n_blocks)
