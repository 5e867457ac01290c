"""DeepSeek's dimensions, made and computed once for all tests."""

import functools
from typing import NamedTuple

import numpy as np

from mla_numba import MlaDims, MlaWeights, PrologOutput
from mla_numba.oracle.bits import reference_run
from mla_numba.oracle.inputs import Inputs
from mla_numba.reference import ReferenceOutput

from .calls import make_cache, make_inputs


class FullSize(NamedTuple):
    """DeepSeek's dimensions: weights, 128 tokens and the reference's rows for them; row t of its caches is token t."""

    weights: MlaWeights
    inputs: Inputs
    rows: ReferenceOutput


@functools.cache
def fullsize_base():
    return MlaWeights.random(MlaDims.deepseek_v32(), seed=3, quant="none")


@functools.cache
def fullsize(quant):
    """Made once for all tests: a token's bits don't depend on its batch, so slices of these are expected everywhere."""
    dims, t = MlaDims.deepseek_v32(), 128
    weights = fullsize_base() if quant == "none" else fullsize_base().quantize(quant)
    inputs = make_inputs(dims, t, t, seed=4)._replace(cache_index=np.arange(t))
    cache = make_cache(dims, "b" in quant, 1, t)
    return FullSize(weights, inputs, reference_run(weights, *inputs, cache))


def expect_rows(full, tokens, slots, cache):
    """What a full-size call of these tokens into these slots of a cache gives: the reference's rows, placed."""
    rows = full.rows
    placed = {}
    for name, array in cache.copy().arrays().items():
        flat = array.reshape(-1, array.shape[3])
        for token, slot in zip(tokens, slots, strict=True):
            if slot >= 0:
                flat[slot] = getattr(rows, name)[0, token, 0]
        placed[name] = flat.reshape(array.shape)
    outputs = {
        name: None if getattr(rows, name) is None else getattr(rows, name)[tokens] for name in PrologOutput._fields
    }
    return ReferenceOutput(**(outputs | {"k_scale_cache": None} | placed))
