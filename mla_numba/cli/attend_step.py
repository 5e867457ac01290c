"""A decode step of sparse attention at random: weights, caches full of keys, inputs, and the calls of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Literal, NamedTuple, Self

import numpy as np

from tiling import Work, ceil_div

from ..attention.lightning import MAX_K, lightning_index, lightning_memory_bytes
from ..attention.pages import Pages
from ..attention.rounds import Sizes, memory_bytes
from ..attention.sparse import sparse_attention
from ..base.checks import BF16, FP16, FP32, INT8, Array
from ..base.memory import aligned_empty
from ..base.modes import PagedMode
from ..cache import N_SCALES, PagedCache
from ..call.indexer import IndexerOutput
from ..indexer_cache import IndexerCache
from ..oracle.inputs import Inputs, random_inputs
from ..prolog import MlaProlog, PrologOutput
from ..weights.indexer import IndexerWeights
from .faults import blame
from .indexer_options import IndexerOptions
from .layer import Caches, Layer
from .model_option import IndexerShape, Model
from .options import LayerOptions

__all__ = ["AttendOptions", "Results", "Step", "random_caches"]

_SMALL_INDEXER = (8, 32)
_DEEPSEEK_V32_SCALE: float = 192**-0.5 * (0.1 * log(40) + 1) ** 2  # YaRN with a factor of 40, mscale_all_dim 1


@dataclass(frozen=True, kw_only=True)
class AttendOptions(LayerOptions, IndexerOptions):
    """The options of `mla-numba attend`. One set of weights: each step has all of a layer's, and the keys between."""

    context: int | None
    sequences: int
    tokens: int
    k: int | None
    softmax_scale: float | None
    repeats: int
    cache_mode: PagedMode
    block_size: int
    check: Literal["some", "all", "none"]
    as_json: bool
    weight_sets: int = 1

    @property
    def n_keys(self) -> int:
        """Keys of a sequence."""
        return self.context or (512 if self.small else 65536)

    def check_model(self) -> None:
        """Refuses, before any work, a configuration that does not say what a step needs."""
        _ = self.of_indexer, self.n_selected, self.scale_of_scores

    @cached_property
    def n_selected(self) -> int:
        """Keys that a token attends to, at most."""
        with blame("--dims"):
            of_model = None if self.k or self.model is None else self.model.index_topk(MAX_K)
        return self.k or of_model or (64 if self.small else 2048)

    @cached_property
    def of_indexer(self) -> IndexerShape:
        """The indexer that is made at random."""
        return self.indexer_shape(self.model, *(_SMALL_INDEXER if self.small else ()))

    @cached_property
    def scale_of_scores(self) -> float:
        """What attention multiplies its scores by; DeepSeek-V3.2's where nothing is given."""
        if self.softmax_scale is not None:
            return self.softmax_scale
        if self.model is None and not self.small:
            return _DEEPSEEK_V32_SCALE
        with blame("--dims"):
            return (self.model or Model(self.sizes, None)).softmax_scale()

    @property
    def n_blocks(self) -> int:
        """Blocks of a sequence."""
        return ceil_div(self.n_keys, self.block_size)


class Results(NamedTuple):
    """What the stages of a step return: of the prologs, positions (T, k) int32, latents (T, N, C) bf16."""

    out: PrologOutput
    positions: Array
    latent: Array

    @property
    def of_indexer(self) -> IndexerOutput:
        """What the lightning index takes."""
        assert self.out.indexer is not None
        return self.out.indexer


@dataclass(frozen=True)
class Step:
    """A step of T tokens. `pages` say which keys they see, `latent` is where attention writes."""

    layer: Layer
    prolog: MlaProlog
    inputs: Inputs
    caches: Caches
    pages: Pages
    block_table: Array
    act_seq: Array
    k: int
    softmax_scale: float
    out: PrologOutput
    latent: Array

    @classmethod
    def random(cls, given: AttendOptions, layer: Layer, caches: Caches, prolog: MlaProlog) -> Self:
        """Inputs for the last keys of each sequence, whose blocks lie anywhere in the caches."""
        rng = np.random.default_rng((given.seed, 4))
        n_seq, t, block_size = given.sequences, given.sequences * given.tokens, given.block_size
        table = rng.permutation(n_seq * given.n_blocks + 1)[: n_seq * given.n_blocks].reshape(n_seq, -1)
        act_seq = np.full(n_seq, given.n_keys, np.int32)
        positions = np.arange(given.n_keys - given.tokens, given.n_keys)
        slots = table[:, positions // block_size] * block_size + positions % block_size
        inputs = random_inputs(given.sizes, t, given.seed, caches.latents.capacity)
        dims = given.sizes
        return cls(
            layer=layer,
            prolog=prolog,
            inputs=inputs._replace(cache_index=slots.reshape(-1).astype(np.int64)),
            caches=caches,
            pages=Pages.of(t, table, act_seq, block_size=block_size, n_blocks=table.size + 1),
            block_table=table.astype(np.int32),
            act_seq=act_seq,
            k=given.n_selected,
            softmax_scale=given.scale_of_scores,
            out=prolog.allocate_output(t),
            latent=aligned_empty((t, dims.num_attention_heads, dims.kv_lora_rank), BF16),
        )

    @property
    def t(self) -> int:
        """Tokens of the step."""
        return len(self.inputs.x)

    def project(self) -> PrologOutput:
        """The first stage: both prologs."""
        return self.prolog(*self.inputs, self.caches.latents, self.out, indexer_cache=self.caches.keys)

    def choose(self, out: PrologOutput) -> Array:
        """The second: the best keys of each token."""
        assert out.indexer is not None
        assert self.caches.keys is not None
        n = self.prolog.n_threads
        return lightning_index(out.indexer, self.caches.keys, self.block_table, self.act_seq, self.k, n_threads=n)

    def attend(self, out: PrologOutput, index: Array) -> Array:
        """The third: attention over these."""
        return sparse_attention(
            out, self.caches.latents, index, self.block_table, self.act_seq, softmax_scale=self.softmax_scale,
            latent=self.latent, n_threads=self.prolog.n_threads,
        )  # fmt: skip

    @property
    def work(self) -> dict[str, Work]:
        """What each stage moves and computes: a key is read once a sequence, and once however many tokens chose it."""
        d, indexer = self.prolog.dims, self._indexer.dims
        seen = self.pages.limits
        chosen = np.minimum(seen, self.k)
        of_sequence = np.bincount(self.pages.sequences, chosen, len(self.act_seq))
        n_distinct = int(np.minimum(of_sequence, self.act_seq).sum())
        query_bytes = self.t * indexer.n_heads * (indexer.head_dim + FP16.itemsize * 2)
        index = Work(
            int(self.act_seq.sum()) * (indexer.head_dim + FP16.itemsize) + query_bytes + 4 * self.t * self.k,
            int8_ops=2 * int(seen.sum()) * indexer.query_dim,
        )
        n_heads, latent, rope = d.num_attention_heads, d.kv_lora_rank, d.qk_rope_head_dim
        key_bytes = latent + N_SCALES * FP32.itemsize + rope * BF16.itemsize
        attention = Work(
            n_distinct * key_bytes + self.t * n_heads * (2 * latent + rope) * BF16.itemsize + 4 * self.t * self.k,
            flops=2 * int(chosen.sum()) * n_heads * (2 * latent + rope),
        )
        return {"prologs": self.prolog.plan(self.t).work, "lightning index": index, "sparse attention": attention}

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that each stage works in, beside its arguments and results."""
        d, indexer, n = self.prolog.dims, self._indexer.dims, self.prolog.n_threads
        n_most = int(np.minimum(self.pages.limits, self.k).max())
        sizes = Sizes(self.t, d.num_attention_heads, d.kv_lora_rank, d.qk_rope_head_dim, n_most)
        return {
            "prologs": self.prolog.plan(self.t).workspace_bytes,
            "lightning index": lightning_memory_bytes(self.pages, indexer.n_heads, indexer.head_dim, self.k, n),
            "sparse attention": memory_bytes(sizes, n),
        }

    @property
    def _indexer(self) -> IndexerWeights:
        assert self.layer.indexer is not None
        return self.layer.indexer


def random_caches(given: AttendOptions, layer: Layer) -> Caches:
    """Caches of one block more than the sequences have, every slot a key: codes of all values, some magnitude."""
    assert layer.indexer is not None
    rng = np.random.default_rng((given.seed, 3))
    n_blocks = given.sequences * given.n_blocks + 1
    latents = PagedCache.allocate(given.sizes, n_blocks, given.block_size, given.cache_mode)
    keys = IndexerCache.allocate(layer.indexer.dims, n_blocks, given.block_size, given.cache_mode)
    for codes in (latents.kv, keys.k):
        codes[...] = rng.integers(-127, 128, codes.shape, INT8)
    for block in latents.kr:  # one by one: normal numbers take four times the memory
        block[...] = rng.standard_normal(block.shape, np.float32).astype(BF16)
    for scales in (latents.k_scale, keys.k_scale):
        assert scales is not None
        scales[...] = 0.01 + 0.02 * rng.random(scales.shape, np.float32)
    return Caches(latents, keys)
