"""Inputs, fenced memory and bitwise comparison, shared by the tests of the prolog."""

import os
import shutil
from dataclasses import astuple, dataclass
from math import prod

import ml_dtypes
import numpy as np

from mla_numba import MlaProlog, MlaWeights, PagedCache, PrologOutput
from mla_numba.kernels import max_threads
from mla_numba.oracle.bits import (
    check_output,
    compare_bits,
    poison,
    reference_run,
)
from mla_numba.oracle.inputs import Inputs
from mla_numba.reference import ReferenceOutput

BF16 = np.dtype(ml_dtypes.bfloat16)
QUANTS = ("none", "a", "b", "ab")
MODES = (*QUANTS, "b smooth", "ab smooth")
THREADS = tuple(sorted({1, min(2, max_threads()), max_threads()}))
HAS_CXX = (
    shutil.which(os.environ.get("CXX", "g++")) is not None
)  # torch.compile calls it for what lies between operators
FENCE = 67  # elements; odd, so that what lies behind it is aligned to its element and no further


class Fenced:
    """A C-contiguous array between two runs of elements that nobody may write."""

    def __init__(self, name, shape, dtype):
        self.name = name
        self._whole = np.empty(prod(shape) + 2 * FENCE, dtype)
        self._whole.view(np.uint8)[...] = 0xA5
        self.array = self._whole[FENCE : FENCE + prod(shape)].reshape(shape)

    def assert_intact(self):
        for where, part in (("before", self._whole[:FENCE]), ("behind", self._whole[FENCE + self.array.size :])):
            changed = np.flatnonzero(part.view(np.uint8) != 0xA5)
            assert not changed.size, f"{self.name}: {changed.size} bytes {where} it were written, first {changed[0]}"


@dataclass
class Call:
    """The arrays of one call: poisoned outputs and a cache of random bytes, all of it fenced."""

    out: PrologOutput
    cache: PagedCache
    fenced: list[Fenced]

    def assert_equals(self, want: ReferenceOutput):
        assert_none(check_output(self.out, self.cache, want))
        for fenced in self.fenced:
            fenced.assert_intact()


def assert_none(mismatches):
    assert not mismatches, "\n".join(map(str, mismatches))


def assert_same_bits(name, got, want):
    mismatch = compare_bits(name, got, want)
    assert mismatch is None, str(mismatch)


def spread(rng, *shape):
    """bf16 normals over nine binades, so that another order of sums shows."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-4, 5, shape)).astype(np.float32).astype(BF16)


def make_weights(dims, mode, seed=0, **changes):
    """Weights of a mode; int8 ones take every code, -128 too, and no scale is a power of two."""
    rng = np.random.default_rng((seed, 11))
    quant = mode.split()[0]
    hidden, heads, q_rank, latent, nope, rope = vars_of(dims)
    columns = {
        "w_dq": (hidden, q_rank),
        "w_uq_qr": (q_rank, heads * (nope + rope)),
        "w_dkv_kr": (hidden, latent + rope),
    }
    arrays = {"w_uk": spread(rng, heads, nope, latent)}
    for name, shape in columns.items():
        if ("b" if name == "w_uq_qr" else "a") in quant:
            arrays[name] = rng.integers(-128, 128, shape, np.int8)
            arrays[f"dequant_scale_{name}"] = rng.uniform(1e-4, 1e-2, shape[1]).astype(np.float32)
        else:
            arrays[name] = spread(rng, *shape)
    if "smooth" in mode:
        arrays["smooth_scales_cq"] = rng.uniform(0.25, 4, (1, q_rank)).astype(np.float32)
    arrays["gamma_cq"] = spread(rng, q_rank)
    arrays["gamma_ckv"] = spread(rng, latent)
    return MlaWeights(**(arrays | {"epsilon_cq": 1e-5, "epsilon_ckv": 1e-6} | changes))


def vars_of(dims):
    """hidden_size, num_attention_heads, q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim."""
    return astuple(dims)


def make_inputs(dims, t, capacity, seed=0):
    """Inputs whose halves of cos and sin differ, and whose slots hold paddings and duplicates."""
    rng = np.random.default_rng((seed, 12))
    slots = rng.permutation(np.arange(max(capacity, t)) % capacity)[:t].astype(np.int64)
    slots[rng.random(t) < 0.15] = -1
    repeated = rng.random(t) < 0.15
    slots[repeated] = rng.choice(slots, repeated.sum()) if t else slots
    rope = dims.qk_rope_head_dim
    return Inputs(spread(rng, t, dims.hidden_size), spread(rng, t, rope), spread(rng, t, rope), slots)


def random_bytes(rng, array):
    raw = array.view(np.uint8)
    raw[...] = rng.integers(0, 256, raw.shape, np.uint8)
    return array


def make_cache(dims, quantized, n_blocks, block_size, cache_mode="PA_BSND", seed=0, fenced=None):
    rng = np.random.default_rng((seed, 13))
    lead = (n_blocks, block_size, 1)
    shapes = {"kv_cache": ((*lead, dims.kv_lora_rank), np.dtype(np.int8) if quantized else BF16)}
    shapes["kr_cache"] = ((*lead, dims.qk_rope_head_dim), BF16)
    if quantized:
        shapes["k_scale_cache"] = ((*lead, 4), np.dtype(np.float32))
    made = [Fenced(name, *what) for name, what in shapes.items()]
    if fenced is not None:
        fenced += made
    arrays = [random_bytes(rng, f.array) for f in made]
    return PagedCache(*arrays, cache_mode=cache_mode) if quantized else PagedCache(*arrays, None, cache_mode)


def make_output(dims, quantized, t, fenced=None):
    heads = (t, dims.num_attention_heads)
    shapes = {
        "query_nope": ((*heads, dims.kv_lora_rank), BF16),
        "query_rope": ((*heads, dims.qk_rope_head_dim), BF16),
        "q_norm": ((t, dims.q_lora_rank), np.dtype(np.int8) if quantized else BF16),
    }
    if quantized:
        shapes["q_norm_scale"] = ((t, 1), np.dtype(np.float32))
    made = [Fenced(name, *what) for name, what in shapes.items()]
    if fenced is not None:
        fenced += made
    arrays = [f.array for f in made]
    poison(*arrays)
    return PrologOutput(*arrays) if quantized else PrologOutput(*arrays, None)


def make_call(dims, quantized, t, n_blocks, block_size, cache_mode="PA_BSND", seed=0):
    fenced = []
    cache = make_cache(dims, quantized, n_blocks, block_size, cache_mode, seed, fenced)
    return Call(make_output(dims, quantized, t, fenced), cache, fenced)


def assert_exact(weights, t, *, threads=THREADS, n_blocks=2, block_size=16, cache_mode="PA_BSND", seed=0, **settings):
    """Runs T tokens on each number of threads; outputs and whole caches equal the reference's. Returns the prologs."""
    dims, quantized = weights.dims, "b" in weights.quant
    numerics = settings.get("numerics", "pypto")
    inputs = make_inputs(dims, t, n_blocks * block_size, seed)
    want = None
    prologs = []
    for n in threads:
        call = make_call(dims, quantized, t, n_blocks, block_size, cache_mode, seed)
        if want is None:
            want = reference_run(weights, *inputs, call.cache, numerics=numerics)
        prologs.append(MlaProlog(weights, n_threads=n, **settings))
        got = prologs[-1](*inputs, call.cache, call.out)
        assert got is call.out
        call.assert_equals(want)
    return prologs


def most_workers(prolog, t):
    """The largest number of threads that any tile of the plan for T tokens uses."""
    plan = prolog.plan(t)
    return max((plan.tile_plan(factor).n_workers for _, factor in plan.tiles), default=0)
