"""The indexer's prolog, the lightning index and sparse attention for the suite: calls and peers, checked.

The last two read keys and no weights. In the state "cold" several sequences take turns, each with keys of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from shared.contenders import OURS, make_inputs
from shared.left_out import or_skipped

import mla_numba as mla
from mla_numba.base.checks import BF16, Array
from mla_numba.oracle.bits import check_indexer_output, check_output, compare_bits, poison, reference_run
from mla_numba.oracle.index_agreement import compare_index
from mla_numba.oracle.indexer import indexer_prolog_reference
from mla_numba.oracle.lightning_index import lightning_index_reference
from mla_numba.oracle.sparse_attention import sparse_attention_reference
from tiling import Work

from .prolog_cases import PrologCases
from .session import Suite

__all__ = ["ATTENTION_PEERS", "INDEX_PEERS", "AttentionCases", "Case"]

INDEX_PEERS = ("torch-index-fp32", "torch-index-int8")
ATTENTION_PEERS = {
    "torch-attention-fp32": "fp32 products",
    "torch-attention-mixed": "fp32 and bf16 products",
    "torch-attention-sdpa": "scaled_dot_product_attention",
}
BLOCK_SIZE = 128
SOFTMAX_SCALE = 0.135
_MOST_OF_PEERS = 32  # tokens
_CHUNK = 8192  # keys that a peer takes at once
_EXACT = "bit for bit against the reference"
_EXACT_SOME = "bit for bit against the reference, the first and the last token"


class Case(NamedTuple):
    """Calls that take turns, what one moves and computes, and how it was found right."""

    calls: list[Callable[[], Any]]
    work: Work
    made_of: str
    verified: str

    def time(self, suite: Suite, benchmark: Any, group: str, implementation: str, state: str) -> None:
        """Time the calls, as `Suite.time_calls` does."""
        suite.time_calls(
            benchmark, group, implementation, self.calls, state, self.work, made_of=self.made_of, verified=self.verified
        )


class Lengths(NamedTuple):
    """Keys of a sequence, and how many of them a token chooses."""

    n_keys: int
    k: int


class AttentionCases:
    """Cases by name and number of tokens; what is expensive to make is kept as long as the next bench needs it."""

    def __init__(self, suite: Suite, prologs: PrologCases) -> None:
        self.suite, self._prologs = suite, prologs
        self.lengths = Lengths(300, 40) if suite.tiny else Lengths(65536, 2048)
        self.n_heads, self.head_dim = (8, 64) if suite.tiny else (64, 128)
        self.fused: Callable[[int], Case] = lru_cache(1)(self._fused)
        self.alone: Callable[[int], Case] = lru_cache(1)(self._alone)
        self.index: Callable[[str, int], Case] = lru_cache(1)(self._index)
        self.attention: Callable[[str, int], Case] = lru_cache(1)(self._attention)

    @cached_property
    def _indexer(self) -> mla.IndexerWeights:
        return mla.IndexerWeights.random(self.suite.dims, 0, self.n_heads, self.head_dim)

    def _keys_for(self, cache: mla.PagedCache) -> mla.IndexerCache:
        return mla.IndexerCache.allocate(self._indexer.dims, cache.kv.shape[0], cache.kv.shape[1])

    def _fused(self, t: int) -> Case:
        inputs, empty = make_inputs(self.suite.dims, t, 0)
        prologs = [
            mla.MlaProlog(each.weights, n_threads=self.suite.n_threads, indexer=self._indexer)
            for each in self._prologs.prologs("b")
        ]
        cache, keys, out = empty.copy(), self._keys_for(empty), prologs[0].allocate_output(t)
        calls = [partial(prolog, *inputs, cache, out, indexer_cache=keys) for prolog in prologs]
        want = reference_run(self._prologs.weights("b"), *inputs, empty)
        x, cos, sin, slots = inputs
        of_indexer = indexer_prolog_reference(
            self._indexer, x, want.q_norm, want.q_norm_scale, cos, sin, slots, self._keys_for(empty)
        )
        for call in calls:
            poison(*out, *out.indexer)
            call()
            wrong = check_output(out, cache, want) + check_indexer_output(out.indexer, keys, of_indexer)
            assert not wrong, wrong
        plan = prologs[0].plan(t)
        return Case(calls, plan.work, str(plan), _EXACT)

    def _alone(self, t: int) -> Case:
        inputs, empty = make_inputs(self.suite.dims, t, 0)
        x, cos, sin, slots = inputs
        found = self._prologs.prologs("b")[0](*inputs, empty.copy())
        given = (x, found.q_norm, found.q_norm_scale, cos, sin, slots)
        n_copies = self.suite.copies(self._indexer.nbytes)
        prologs = [mla.IndexerProlog(self._indexer, n_threads=self.suite.n_threads) for _ in range(n_copies)]
        keys, out = self._keys_for(empty), prologs[0].allocate_output(t)
        calls = [partial(prolog, *given, keys, out) for prolog in prologs]
        want = indexer_prolog_reference(self._indexer, *given, self._keys_for(empty))
        for call in calls:
            poison(*out)
            call()
            wrong = check_indexer_output(out, keys, want)
            assert not wrong, wrong
        plan = prologs[0].plan(t)
        return Case(calls, plan.work, str(plan), _EXACT)

    def _tables(self, key_bytes: int) -> Array:
        """Blocks of the sequences that take turns (copies, blocks), anywhere in one cache."""
        n_blocks = -(-self.lengths.n_keys // BLOCK_SIZE)
        n_copies = self.suite.copies(key_bytes * self.lengths.n_keys)
        rng = np.random.default_rng(0)
        return rng.permutation(n_copies * n_blocks).reshape(n_copies, n_blocks).astype(np.int32)

    def _act_seq(self, t: int) -> Array:
        if t > self.lengths.n_keys:
            pytest.skip(f"attention left out: a sequence has {self.lengths.n_keys} keys, fewer than {t} tokens")
        return np.array([self.lengths.n_keys], np.int32)

    @cached_property
    def _index_keys(self) -> tuple[mla.IndexerCache, Array]:
        tables, rng = self._tables(self.head_dim + 2), np.random.default_rng(1)
        lead = (tables.size, BLOCK_SIZE, 1)
        codes = rng.integers(-128, 128, (*lead, self.head_dim), np.int8)
        return mla.IndexerCache(codes, rng.uniform(0.01, 0.02, (*lead, 1)).astype(np.float16)), tables

    def _index(self, implementation: str, t: int) -> Case:
        act_seq, (cache, tables) = self._act_seq(t), self._index_keys
        n_keys, k = self.lengths
        rng = np.random.default_rng(2)
        out = mla.IndexerOutput(
            rng.integers(-128, 128, (t, self.n_heads, self.head_dim), np.int8),
            rng.uniform(0.01, 0.02, (t, self.n_heads, 1)).astype(np.float16),
            rng.standard_normal((t, self.n_heads)).astype(np.float16),
        )
        seen = sum(n_keys - i for i in range(t))
        n_bytes = n_keys * (self.head_dim + 2) + t * (self.n_heads * (self.head_dim + 4) + 4 * k)
        work = Work(n_bytes, int8_ops=2 * seen * self.n_heads * self.head_dim)
        made_of = f"{n_keys} keys, the {k} best, {self.n_heads} heads of {self.head_dim}"
        if implementation == OURS:
            run = partial(mla.lightning_index, k=k, n_threads=self.suite.n_threads)
            calls = [partial(run, out, cache, table[None], act_seq) for table in tables]
            got = calls[0]()
            for token in {0, t - 1}:
                one = mla.IndexerOutput(*(array[token : token + 1] for array in out))
                want = lightning_index_reference(one, cache, tables[:1], act_seq - (t - 1 - token), k)
                assert compare_bits("index", got[token : token + 1], want) is None
            return Case(calls, work, made_of, _EXACT_SOME)
        calls = self._index_peer(implementation, out, cache, tables)
        one = mla.IndexerOutput(*(array[:1] for array in out))
        with or_skipped(implementation):
            found = compare_index(np.asarray(calls[0]())[:1], one, cache, tables[:1], act_seq - (t - 1))
            assert found.passed, found
        return Case(calls, work, made_of, "the first token's keys, but for some whose scores are as good as equal")

    def _index_peer(
        self, implementation: str, out: mla.IndexerOutput, cache: mla.IndexerCache, tables: Array
    ) -> list[Callable[[], Any]]:
        torch = pytest.importorskip("torch")
        from shared.torch_index import KeyTensors, QueryTensors, chosen, fp32_scores, int8_scores

        from mla_numba.interop.torch.prolog import to_torch

        if len(out.query) > _MOST_OF_PEERS:
            pytest.skip(f"{implementation} left out: scores of {len(out.query)} tokens, head by head, take gigabytes")
        torch.set_num_threads(self.suite.n_threads)
        scores_of = {"torch-index-fp32": fp32_scores, "torch-index-int8": int8_scores}[implementation]
        queries, codes, scales = QueryTensors(*map(to_torch, out)), to_torch(cache.k), to_torch(cache.k_scale)
        n_keys, k = self.lengths
        keys = [KeyTensors(codes, scales, to_torch(table), n_keys) for table in tables]
        return [partial(chosen, scores_of, queries, of_sequence, k, _CHUNK) for of_sequence in keys]

    @cached_property
    def _latents(self) -> tuple[mla.PagedCache, Array]:
        d, rng = self.suite.dims, np.random.default_rng(3)
        tables = self._tables(d.kv_lora_rank + 2 * d.qk_rope_head_dim + 16)
        lead = (tables.size, BLOCK_SIZE, 1)
        cache = mla.PagedCache(
            rng.integers(-127, 128, (*lead, d.kv_lora_rank), np.int8),
            rng.standard_normal((*lead, d.qk_rope_head_dim), np.float32).astype(BF16),
            rng.random((*lead, 4), np.float32) * np.float32(0.02) + np.float32(0.001),
        )
        return cache, tables

    def _attention(self, implementation: str, t: int) -> Case:
        act_seq, (cache, tables) = self._act_seq(t), self._latents
        d, (n_keys, k) = self.suite.dims, self.lengths
        rng = np.random.default_rng(4)
        queries = [
            (rng.standard_normal((t, d.num_attention_heads, width), np.float32) * np.float32(0.3)).astype(BF16)
            for width in (d.kv_lora_rank, d.qk_rope_head_dim)
        ]
        out = mla.PrologOutput(*queries, np.zeros((t, 1), np.int8), None)
        lists = [np.stack([rng.permutation(n_keys - t + 1)[:k] for _ in range(t)]).astype(np.int32) for _ in tables]
        width = 2 * d.kv_lora_rank + d.qk_rope_head_dim
        key_bytes = d.kv_lora_rank + 16 + 2 * d.qk_rope_head_dim
        work = Work(
            min(t * k, n_keys) * key_bytes + 2 * t * d.num_attention_heads * width,
            flops=2 * t * d.num_attention_heads * k * width,
        )
        made_of = f"{k} of {n_keys} keys a token, {d.num_attention_heads} heads"
        latent = np.empty_like(out.query_nope)
        run = partial(
            mla.sparse_attention, out, cache, softmax_scale=SOFTMAX_SCALE, latent=latent, n_threads=self.suite.n_threads
        )
        calls = [
            partial(run, index=index, block_table=table[None], act_seq=act_seq)
            for index, table in zip(lists, tables, strict=True)
        ]
        calls[0]()
        if implementation == OURS:
            for token in {0, t - 1}:
                some = slice(token, token + 1)
                one = out._replace(query_nope=out.query_nope[some], query_rope=out.query_rope[some])
                seen = act_seq - (t - 1 - token)
                want = sparse_attention_reference(one, cache, lists[0][some], tables[:1], seen, SOFTMAX_SCALE)
                assert compare_bits("latent", latent[some], want) is None
            return Case(calls, work, made_of, _EXACT_SOME)
        slots = [
            table[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
            for index, table in zip(lists, tables, strict=True)
        ]
        peers = self._attention_peer(implementation, out, cache, slots, latent.copy())
        return Case(peers, work, made_of, "within the reference operator's tolerances of ours")

    def _attention_peer(
        self, implementation: str, out: mla.PrologOutput, cache: mla.PagedCache, slots: list[Array], ours: Array
    ) -> list[Callable[[], Any]]:
        torch = pytest.importorskip("torch")
        from shared.torch_attention import COMPOSITIONS, MOST_OUTSIDE, share_outside, tensors_of

        from mla_numba.interop.torch.prolog import to_numpy

        if len(ours) > _MOST_OF_PEERS:
            pytest.skip(f"{implementation} left out: it takes {len(ours)} tokens one by one, seconds a call")
        torch.set_num_threads(self.suite.n_threads)
        run = COMPOSITIONS[ATTENTION_PEERS[implementation]]
        calls = [partial(run, tensors_of(out, cache, of_copy, SOFTMAX_SCALE)) for of_copy in slots]
        with or_skipped(implementation):
            outside = share_outside(to_numpy(calls[0]()), ours)
            assert outside <= MOST_OUTSIDE, f"{outside:.1%} of its elements are outside the tolerance"
        return calls
