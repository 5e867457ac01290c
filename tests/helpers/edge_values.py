"""Values at the edges of a call, and what they must not reach."""

import numpy as np

from mla_numba import MlaProlog
from mla_numba.oracle.bits import compare_bits, reference_run

from .calls import BF16, make_call, make_inputs, make_weights

NOT_FINITE = {"nan": 0x7FC0, "inf": 0x7F80, "-inf": 0xFF80, "all ones": 0xFFFF, "signalling": 0x7F81}


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
