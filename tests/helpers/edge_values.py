"""Values at the edges of a call, and what they must not reach."""

import numpy as np

from mla_numba.oracle.bits import compare_bits

from .calls import BF16

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
