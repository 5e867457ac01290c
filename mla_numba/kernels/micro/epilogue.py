"""How finished sums become bf16: of int8 products the row's and the column's scale, one rounding, a store.

    int8: y[i, j] = bf16((float32(c[i, j] + offset[j]) * row_scale[i]) * col_scale[j])        bf16: y = bf16(c)

The microkernels do this in registers where a tile is whole (`ukernel.ukernel_store`); these loops do the rest. y holds
bf16 bits (uint16) or, as rows of A for a bf16 product may, their float32 values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from ..jit.callee import callee, overload_callee
from ..scalars import round_bf16, widen, window


def add_int32(a: Any, b: Any) -> Any:
    """a + b in int32, which wraps: that makes the u8 form of the activations exact."""
    with np.errstate(over="ignore"):
        return a + b


@overload_callee(add_int32)
def _add_int32(a: Any, b: Any) -> Any:
    def add(a: Any, b: Any) -> Any:
        return np.int32(a + b)

    return add


def put_bf16(y: Any, j: Any, bits: Any) -> None:
    """y[j] = a bf16 given as bits, for uint16 bits or for float32 values."""
    y[j] = bits if y.dtype == np.uint16 else widen(bits)


@overload_callee(put_bf16)
def _put_bf16(y: Any, j: Any, bits: Any) -> Any:
    if y.dtype == types.uint16:

        def put(y: Any, j: Any, bits: Any) -> None:
            y[j] = bits
    else:

        def put(y: Any, j: Any, bits: Any) -> None:
            y[j] = widen(bits)

    return put


def store_tile(
    rows: Any, n_cols: Any, c: Any, c_off: Any, ldc: Any, y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any,
    col_scale: Any, offset: Any, col_off: Any,
) -> None:  # fmt: skip
    """Rows of at most `n_cols` sums at c[c_off + i*ldc] to y[y_off + i*ldy]; scales are read for int32 sums only."""
    store = _store_scaled if c.dtype == np.int32 else _store_rounded
    store(rows, n_cols, c, c_off, ldc, y, y_off, ldy, row_scale, row_off, col_scale, offset, col_off)


@overload_callee(store_tile)
def _store_tile(
    rows: Any, n_cols: Any, c: Any, c_off: Any, ldc: Any, y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any,
    col_scale: Any, offset: Any, col_off: Any,
) -> Any:  # fmt: skip
    take = _store_scaled if c.dtype == types.int32 else _store_rounded

    def store(
        rows: Any, n_cols: Any, c: Any, c_off: Any, ldc: Any, y: Any, y_off: Any, ldy: Any, row_scale: Any,
        row_off: Any, col_scale: Any, offset: Any, col_off: Any,
    ) -> None:  # fmt: skip
        take(rows, n_cols, c, c_off, ldc, y, y_off, ldy, row_scale, row_off, col_scale, offset, col_off)

    return store


@callee
def _store_scaled(
    rows: Any, n_cols: Any, c: Any, c_off: Any, ldc: Any, y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any,
    col_scale: Any, offset: Any, col_off: Any,
) -> None:  # fmt: skip
    offsets, scales = window(offset, col_off, n_cols), window(col_scale, col_off, n_cols)
    for i in range(rows):
        sums, out = window(c, c_off + i * ldc, n_cols), window(y, y_off + i * ldy, n_cols)
        scale = row_scale[row_off + i]
        for j in range(n_cols):
            value = np.float32(add_int32(sums[j], offsets[j]))
            put_bf16(out, j, round_bf16(np.float32(np.float32(value * scale) * scales[j])))


@callee
def _store_rounded(
    rows: Any, n_cols: Any, c: Any, c_off: Any, ldc: Any, y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any,
    col_scale: Any, offset: Any, col_off: Any,
) -> None:  # fmt: skip
    for i in range(rows):
        sums, out = window(c, c_off + i * ldc, n_cols), window(y, y_off + i * ldy, n_cols)
        for j in range(n_cols):
            put_bf16(out, j, round_bf16(sums[j]))
