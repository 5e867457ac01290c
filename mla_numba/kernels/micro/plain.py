"""What a register tile computes, in NumPy and for any instruction set, on whatever CPU this runs."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..isa import Isa
from ..kinds import F32, Bits, Index, Int32, Int64, Values
from .operands import A, B, C

__all__ = ["add_products"]


def add_products(isa: Isa, mr: Index, k: Index, a: A, b: B, c: C) -> None:
    """C[mr, NR] = (C.carry ? C : 0) + A[mr, k] @ B[k, NR] in ascending k, of an instruction set's operands."""
    is_int8 = b.panels.dtype == np.int8
    nr, places = isa.nr, _places(isa, is_int8)
    kr = len(places)
    sums = c.sums[c.at : c.at + mr * nr].reshape(mr, nr)
    flat, rows = a.rows.reshape(-1), a.at + np.arange(mr) * a.step
    if not c.carry:
        sums[...] = 0
    if is_int8 and isa.int8 is not None and isa.int8.shifts:
        _add_halves(isa, k, flat, rows, b, sums)
        if not c.carry:
            ends = rows + a.step
            sums += flat[np.stack([ends - 2, ends - 1], axis=1)].view(np.int32)
        return
    for p in range(k):
        step, r = divmod(p, kr)
        values = flat[rows + step * kr + (kr - 1 - r if flat.dtype == np.uint16 else r)]
        column = b.panels[b.at + step * nr * kr + places[r]]
        if is_int8:
            surplus = np.int32(isa.surplus[r] - isa.a_offset)
            sums += (values.astype(np.int32) + surplus)[:, None] * column.astype(np.int32)
        else:
            sums += (_widened(values) if flat.dtype == np.uint16 else values)[:, None] * _widened(column)


def _add_halves(isa: Isa, k: Index, a: Values, rows: Int64, b: B, sums: Int32) -> None:
    """The products of `MicroKernel.shifts`."""
    kr, places = isa.kr_int8, _places(isa, is_int8=True)
    for p in range(0, k, 2):
        step, pair = p // kr * kr, p % kr // 2
        even, odd = (b.panels[b.at + step * isa.nr + places[2 * pair + i]] for i in range(2))
        both = 256 * odd.astype(np.int32) + even.view(np.uint8)
        first, second = (a[rows + step + i * kr // 2 + pair].astype(np.int32)[:, None] for i in range(2))
        sums += first * both + second * odd.astype(np.int32)


@cache
def _places(isa: Isa, is_int8: bool) -> Int64:
    return isa.places(is_int8)


def _widened(bits: Bits) -> F32:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
