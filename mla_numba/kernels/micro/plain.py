"""What a register tile computes, in NumPy and for any instruction set, on whatever CPU this runs."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..isa import Isa
from ..kinds import F32, Bits, Index, Int64
from .operands import A, B, C

__all__ = ["add_products"]


def add_products(isa: Isa, mr: Index, k: Index, a: A, b: B, c: C) -> None:
    """C[mr, NR] = (C.carry ? C : 0) + A[mr, k] @ B[k, NR] in ascending k, of an instruction set's operands."""
    is_int8 = b.panels.dtype == np.int8
    nr, places = isa.nr, _places(isa, is_int8)
    kr = len(places)
    sums = c.sums[c.at : c.at + mr * nr].reshape(mr, nr)
    if not c.carry:
        sums[...] = 0
    flat, rows = a.rows.reshape(-1), a.at + np.arange(mr) * a.step
    for p in range(k):
        step, r = divmod(p, kr)
        values = flat[rows + step * kr + (kr - 1 - r if flat.dtype == np.uint16 else r)]
        column = b.panels[b.at + step * nr * kr + places[r]]
        if is_int8:
            surplus = np.int32(isa.surplus[r] - isa.a_offset)
            sums += (values.astype(np.int32) + surplus)[:, None] * column.astype(np.int32)
        else:
            sums += (_widened(values) if flat.dtype == np.uint16 else values)[:, None] * _widened(column)


@cache
def _places(isa: Isa, is_int8: bool) -> Int64:
    return isa.places(is_int8)


def _widened(bits: Bits) -> F32:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
