"""Calls at the edges: small dimensions, the values of the edges, and what they must not reach."""

import numpy as np

from mla_numba import MlaDims, MlaProlog
from mla_numba.kernels import ISA
from mla_numba.oracle.bits import compare_bits, reference_run

from .calls import BF16, MODES, make_call, make_inputs, make_weights

SMALL = MlaDims(130, 3, 50, 68, 33, 34)
SHARED = MlaDims(514, 5, 101, 132, 33, 34)
FRACTAL = MlaDims(130, 3, 50, 64, 33, 32)
T = ISA.mr + 3
WITH_SCALES = [mode for mode in MODES if "b" in mode.split()[0]]
NOT_FINITE = {"nan": 0x7FC0, "inf": 0x7F80, "-inf": 0xFF80, "all ones": 0xFFFF, "signalling": 0x7F81}


def run(weights, inputs, t, *, dims=SMALL, threads=1, numerics="pypto", **settings):
    """A call on poisoned outputs and a random cache, with the reference on the same; both unchecked."""
    call = make_call(dims, "b" in weights.quant, t, 3, 16)
    want = reference_run(weights, *inputs, call.cache, numerics=numerics)
    MlaProlog(weights, n_threads=threads, numerics=numerics, **settings)(*inputs, call.cache, call.out)
    for fenced in call.fenced:
        fenced.assert_intact()
    return call, want


def tiny(exponent, n):
    return np.full(n, 2.0**exponent, np.float32).astype(BF16)


def other_tokens(call, want, bad, slots):
    """Mismatches outside the bad tokens' rows and slots."""
    keep = np.setdiff1d(np.arange(len(slots)), bad)
    found = [
        compare_bits(name, got[keep], getattr(want, name)[keep])
        for name, got in call.out._asdict().items()
        if got is not None
    ]
    for name, array in call.cache.arrays().items():
        rows = np.setdiff1d(np.arange(call.cache.capacity), slots[bad])
        flat = (a.reshape(-1, array.shape[3])[rows] for a in (array, getattr(want, name)))
        found.append(compare_bits(name, *flat))
    return [mismatch for mismatch in found if mismatch is not None]


def check_zero_tokens(mode, dims, t, numerics):
    """A call with tokens of zeros among others: they give zeros, and all of it is the reference's."""
    weights = make_weights(dims, mode)
    inputs = make_inputs(dims, t, 48)._replace(cache_index=np.arange(t))
    inputs.x[[0, 4, t - 1]] = 0
    call = make_call(dims, "b" in weights.quant, t, 3, 16)
    want = reference_run(weights, *inputs, call.cache, numerics=numerics)
    MlaProlog(weights, n_threads=1, numerics=numerics)(*inputs, call.cache, call.out)
    call.assert_equals(want)
    arrays = [a for a in call.out if a is not None] + [a.reshape(-1, a.shape[3]) for a in call.cache.arrays().values()]
    for array in arrays:
        assert not array[4].astype(np.float32).any()
