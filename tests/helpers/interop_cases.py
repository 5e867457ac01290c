"""Weights, inputs and caches as tensors, and the comparison with the reference."""

from typing import NamedTuple

import numpy as np

from mla_numba import MlaDims, PagedCache, PrologOutput
from mla_numba.interop.torch.prolog import (
    TorchCache,
    TorchOutput,
    TorchProlog,
    to_numpy,
    to_torch,
)
from mla_numba.oracle.bits import check_output, reference_run

from .calls import BF16, assert_none, make_inputs, make_weights, random_bytes

DIMS = MlaDims(130, 3, 50, 64, 34, 32)
LEADS = {"PA_BSND": (3, 16, 1), "PA_NZ": (3, 16, 1), "BSND": (3, 16, 1), "TND": (48, 1)}
CAPACITY = 48


def make_cache(quantized, cache_mode="PA_BSND", scales=np.float32):
    """Random bytes in NumPy's arrays."""
    rng = np.random.default_rng(5)
    widths = {DIMS.kv_lora_rank: np.int8 if quantized else BF16, DIMS.qk_rope_head_dim: BF16, 4: scales}
    arrays = [random_bytes(rng, np.empty((*LEADS[cache_mode], d), kind)) for d, kind in widths.items()]
    return PagedCache(*arrays[: 3 if quantized else 2], cache_mode=cache_mode)


class Case(NamedTuple):
    """A module, the tensors of a call, and what the reference makes of them."""

    weights: object
    prolog: TorchProlog
    inputs: list
    cache: TorchCache

    @property
    def call(self):
        return (*self.inputs, self.cache)

    def reference(self):
        arrays = [None if a is None else to_numpy(a) for a in self.inputs]
        return reference_run(self.weights, *arrays, self.cache.numpy(), numerics=self.prolog.prolog.numerics)

    def operands(self):
        """What the operator `mla_prolog` takes."""
        return (self.prolog._handle, *self.inputs, *self.cache, DIMS.num_attention_heads, DIMS.q_lora_rank)


def make_case(mode="b", cache_mode="PA_BSND", t=9, seed=0, **settings):
    weights = make_weights(DIMS, mode, seed)
    cache = make_cache("b" in weights.quant, cache_mode)
    inputs = make_inputs(DIMS, t, CAPACITY, seed)
    if not cache.paged:
        inputs = inputs._replace(cache_index=None)
    tensors = [None if a is None else to_torch(a) for a in inputs]
    return Case(weights, TorchProlog(weights, **settings), tensors, TorchCache.from_numpy(cache))


def assert_is_reference(out, cache, want):
    assert isinstance(out, TorchOutput)
    arrays = PrologOutput(*(None if a is None else to_numpy(a) for a in out))
    assert_none(check_output(arrays, cache.numpy(), want))


def clone(cache):
    return TorchCache(*(a if a is None or isinstance(a, str) else a.clone() for a in cache))
