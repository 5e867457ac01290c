"""How finished sums become bf16: of int8 products the row's and the column's scale, one rounding, a store.

    int8: y[i, j] = bf16((float32(c[i, j] + offset[j]) * row_scale[i]) * col_scale[j])        bf16: y = bf16(c)

The microkernels do this in registers where a register tile is whole (`ukernel.ukernel_store`); these loops do the rest.
y holds bf16 bits (uint16) or, as rows of A for a bf16 product may, their float32 values.
"""

from __future__ import annotations

import numpy as np
from numba.core import types

from ..jit.callee import by_dtype, callee, overload_callee
from ..kinds import Index, Scalar, Typed, Values, Word
from ..scalars import round_bf16, widen, window
from .operands import C, Y
from .table import ISA

NR = ISA.nr


def add_int32(a: Scalar, b: Scalar) -> Scalar:
    """a + b in int32, which wraps: that makes the u8 form of the activations exact."""
    with np.errstate(over="ignore"):
        return a + b


@overload_callee(add_int32)
def _add_int32(a: Typed, b: Typed) -> Typed:
    assert (a, b) == (types.int32, types.int32)

    def add(a: Scalar, b: Scalar) -> Scalar:
        return np.int32(a + b)

    return add


@callee
def _put_bits(y: Values, j: Index, bits: Word) -> None:
    y[j] = bits


@callee
def _put_values(y: Values, j: Index, bits: Word) -> None:
    y[j] = widen(bits)


@by_dtype("y", {np.uint16: _put_bits}, otherwise=_put_values)
def put_bf16(y: Values, j: Index, bits: Word) -> None:
    """y[j] = a bf16 given as bits, for uint16 bits or for float32 values."""


@callee
def _store_scaled(rows: Index, n_cols: Index, c: C, y: Y) -> None:
    offsets, scales = window(y.offset, y.col_at, n_cols), window(y.col_scale, y.col_at, n_cols)
    for i in range(rows):
        sums, out = window(c.sums, c.at + i * NR, n_cols), window(y.values, y.at + i * y.step, n_cols)
        scale = y.row_scale[y.row_at + i]
        for j in range(n_cols):
            value = np.float32(add_int32(sums[j], offsets[j]))
            put_bf16(out, j, round_bf16(np.float32(np.float32(value * scale) * scales[j])))


@callee
def _store_rounded(rows: Index, n_cols: Index, c: C, y: Y) -> None:
    for i in range(rows):
        sums, out = window(c.sums, c.at + i * NR, n_cols), window(y.values, y.at + i * y.step, n_cols)
        for j in range(n_cols):
            put_bf16(out, j, round_bf16(sums[j]))


@by_dtype("c.sums", {np.int32: _store_scaled}, otherwise=_store_rounded)
def store_tile(rows: Index, n_cols: Index, c: C, y: Y) -> None:
    """The first `n_cols` <= NR columns of some rows of sums to y; scales are read for int32 sums only."""
