"""Calls of sparse attention on random caches, lists and block tables, held against the reference."""

from typing import Any, NamedTuple

import numpy as np

import mla_numba as mla
from helpers.calls import BF16
from mla_numba.layouts import pa_bsnd_to_pa_nz, to_records
from mla_numba.oracle.bits import compare_bits
from mla_numba.oracle.sparse_attention import sparse_attention_reference

KINDS = ("int8", "fp16 scales", "bf16")


class AttentionCall(NamedTuple):
    """The arguments of a call."""

    out: mla.PrologOutput
    cache: Any
    index: Any
    block_table: Any
    act_seq: Any
    query_start_loc: Any = None
    record_order: Any = None
    softmax_scale: float = 0.1
    flash_tile: Any = None


class Shape(NamedTuple):
    """Sizes of a call: b sequences of s1 tokens, heads, widths, positions a list, and blocks."""

    b: int = 2
    s1: int = 2
    n_heads: int = 5
    latent: int = 20
    rope: int = 6
    k: int = 7
    block_size: int = 3
    n_blocks: int = 6


def random_shape(rng, widest=40):
    """Sizes below and above those of register tiles, and multiples of none."""
    b, s1, block_size, n_blocks = (int(rng.integers(1, most)) for most in (4, 3, 9, 12))
    latent, rope = 4 * int(rng.integers(1, widest // 4)), int(rng.integers(1, 20))
    return Shape(b, s1, int(rng.integers(1, 40)), latent, rope, int(rng.integers(1, 40)), block_size, n_blocks)


def random_call(rng, shape=Shape(), kind="int8", cache_mode="PA_BSND", dense=False, record_order=None):  # noqa: B008
    """A call with lists of all lengths: ended by -1, longer than what a token sees, with positions named twice."""
    cache = random_cache(rng, shape, kind, cache_mode, record_order)
    t, capacity = shape.b * shape.s1, shape.n_blocks * shape.block_size
    block_table = np.stack([rng.permutation(shape.n_blocks) for _ in range(shape.b)]).astype(np.int32)
    act_seq = rng.integers(0, capacity + 1, shape.b).astype(np.int32)
    queries = [rng.standard_normal((t, shape.n_heads, width)).astype(BF16) for width in (shape.latent, shape.rope)]
    index = None if dense else np.stack([random_list(rng, limit, shape.k) for limit in limits(act_seq, shape.s1)])
    return AttentionCall(
        mla.PrologOutput(*queries, np.zeros((t, 1), np.int8), None), cache, index, block_table, act_seq,
        record_order=record_order,
    )  # fmt: skip


def random_cache(rng, shape, kind, cache_mode="PA_BSND", record_order=None):
    lead = (shape.n_blocks, shape.block_size, 1)
    kr = rng.standard_normal((*lead, shape.rope)).astype(BF16)
    if kind == "bf16":
        kv, k_scale = rng.standard_normal((*lead, shape.latent)).astype(BF16), None
    else:
        kv = rng.integers(-128, 128, (*lead, shape.latent)).astype(np.int8)
        k_scale = (rng.random((*lead, 4)) * 0.02).astype(np.float16 if kind == "fp16 scales" else np.float32)
    if record_order:
        return to_records(kv, k_scale, kr, order=record_order)
    if cache_mode == "PA_NZ":
        kv, kr = pa_bsnd_to_pa_nz(kv), pa_bsnd_to_pa_nz(kr)
    return mla.PagedCache(kv, kr, k_scale, cache_mode)


def limits(act_seq, s1):
    """How many keys each token sees."""
    return [int(keys) - s1 + 1 + i for keys in act_seq for i in range(s1)]


def random_list(rng, limit, k):
    """A row of an index. What is behind a list's end, or beyond what the token sees, is never read."""
    row = np.where(rng.random(k) < 0.5, -1, 2**31 - 1).astype(np.int32)
    n = min(max(limit, 0), k)
    if n and rng.random() < 0.3:
        n = int(rng.integers(0, n))
        row[n] = -1
    named_twice = rng.random() < 0.3
    if n:
        row[:n] = rng.integers(0, limit, n) if named_twice else rng.permutation(limit)[:n]
    return row


def attend(call, **settings):
    """The call itself."""
    settings = {"query_start_loc": call.query_start_loc, "record_order": call.record_order} | settings
    settings.setdefault("flash_tile", call.flash_tile)
    return mla.sparse_attention(*call[:5], softmax_scale=call.softmax_scale, **settings)


def reference(call):
    """What the call should return."""
    return sparse_attention_reference(
        *call[:5], call.softmax_scale, query_start_loc=call.query_start_loc, record_order=call.record_order,
        flash_tile=call.flash_tile,
    )  # fmt: skip


def assert_exact(call, n_threads=(1, 2), want=None):
    """Whatever the threads, every bit; and all NaN are alike. Returns what the reference gives."""
    want = reference(call) if want is None else want
    for n in n_threads:
        latent = np.full(want.shape, 1e30, BF16)
        assert attend(call, n_threads=n, latent=latent) is latent
        mismatch = compare_bits("latent", one_nan(latent), one_nan(want))
        assert mismatch is None, f"{n} threads: {mismatch}"
    return want


def one_nan(latent):
    """The array with one kind of NaN: their sign and payload are the hardware's."""
    return np.where(np.isnan(latent.astype(np.float32)), np.array(np.nan, BF16), latent)
