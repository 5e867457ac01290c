"""Blocks of 32-bit words, each two bf16 numbers, transposed in vector code: LLVM would move them one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..isa import BY_COLUMN, BY_COLUMN_REVERSED
from ..jit.callee import overload_callee
from ..kinds import Bits, Index, Typed, Values
from ..llvm_ir import I32, I64, POINTER, load
from ..micro.table import ISA
from ..micro.ukernel import A_BF16_DTYPE, KR_BF16

__all__ = ["COLUMNS", "HAS_COLUMNS", "HAS_ROWS", "ROWS", "columns_of_rows", "rows_of_columns"]

_SWAPS = ISA.bf16_order is BY_COLUMN_REVERSED

COLUMNS = ISA.lanes  # words of a row that `columns_of_rows` takes, of as many rows
HAS_COLUMNS = ISA.bf16 is not None and KR_BF16 == 2 and ISA.bf16_order in (BY_COLUMN, BY_COLUMN_REVERSED)
ROWS = min(ISA.lanes, 8)  # words of a row that `rows_of_columns` makes
HAS_ROWS = ISA.bf16 is not None and A_BF16_DTYPE is np.uint16


def columns_of_rows(rows: Bits, at: Index, distance: Index, panel: Bits, to: Index, step: Index) -> None:
    """COLUMNS rows of as many pairs, `distance` elements apart, as columns of as many steps of a panel of B."""
    for j in range(COLUMNS):
        for i in range(COLUMNS):
            pair = rows[at + j * distance + 2 * i : at + j * distance + 2 * i + 2]
            panel[to + i * step + 2 * j : to + i * step + 2 * j + 2] = pair[::-1] if _SWAPS else pair


def rows_of_columns(words: Values, at: Index, distance: Index, rows: Bits, to: Index, step: Index) -> None:
    """ROWS rows of `lanes` words, `distance` words apart: each column becomes ROWS pairs of a row of `rows`."""
    for j in range(ISA.lanes):
        for i in range(ROWS):
            word = int(words[at + i * distance + j])
            rows[to + j * step + 2 * i : to + j * step + 2 * i + 2] = word & 0xFFFF, word >> 16


def _emit_transposed(builder: ir.IRBuilder, held: list[Any]) -> list[Any]:
    """Squares of as many lanes as there are vectors, transposed, side by side; their number is a power of two."""
    n, lanes = len(held), ISA.lanes
    step = 1
    while step < n:
        upper = [lanes + lane - step if lane & step else lane for lane in range(lanes)]
        lower = [lanes + lane if lane & step else lane + step for lane in range(lanes)]
        masks = [ir.Constant(ISA.vectors.words, mask) for mask in (upper, lower)]
        for i in (i for i in range(n) if not i & step):
            pair = held[i], held[i + step]
            held[i], held[i + step] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        step *= 2
    return held


def _define(n_rows: int, swaps: bool) -> Any:
    """An intrinsic that makes of `n_rows` rows of `lanes` words as many rows of `n_rows` words."""

    @intrinsic
    def transposed(_typingctx: Any, source: Any, at: Any, distance: Any, target: Any, to: Any, step: Any) -> Any:
        def place(context: Any, builder: Any, kind: Any, array: Any, first: Any, each: Any) -> Any:
            data = builder.bitcast(context.make_array(kind)(context, builder, array).data, POINTER)
            size = ir.Constant(I64, kind.dtype.bitwidth // 8)
            begin, bytes_each = builder.gep(data, [builder.mul(first, size)]), builder.mul(each, size)
            return lambda i: builder.gep(begin, [builder.mul(bytes_each, ir.Constant(I64, i))])

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            vectors, lanes = ISA.vectors, ISA.lanes
            row = place(context, builder, sig.args[0], *args[:3])
            held = [load(builder, row(i), 0, vectors.words, 2) for i in range(n_rows)]
            if swaps:
                half = vectors.filled(16)
                held = [builder.or_(builder.shl(each, half), builder.lshr(each, half)) for each in held]
            made = _emit_transposed(builder, held)
            out = place(context, builder, sig.args[3], *args[3:])
            for lane in range(lanes):
                first = lane - lane % n_rows
                mask = ir.Constant(ir.VectorType(I32, n_rows), list(range(first, first + n_rows)))
                value = builder.shuffle_vector(made[lane % n_rows], made[lane % n_rows], mask)
                builder.store(value, builder.bitcast(out(lane), value.type.as_pointer()), align=2)
            return context.get_dummy_value()

        return types.void(source, types.int64, types.int64, target, types.int64, types.int64), codegen

    return transposed


_columns, _rows = _define(COLUMNS, _SWAPS), _define(ROWS, False)


@overload_callee(columns_of_rows)
def _columns_of_rows(rows: Typed, at: Typed, distance: Typed, panel: Typed, to: Typed, step: Typed) -> Any:
    def emitted(rows: Bits, at: Index, distance: Index, panel: Bits, to: Index, step: Index) -> None:
        _columns(rows, np.int64(at), np.int64(distance), panel, np.int64(to), np.int64(step))

    return emitted


@overload_callee(rows_of_columns)
def _rows_of_columns(words: Typed, at: Typed, distance: Typed, rows: Typed, to: Typed, step: Typed) -> Any:
    def emitted(words: Values, at: Index, distance: Index, rows: Bits, to: Index, step: Index) -> None:
        _rows(words, np.int64(at), np.int64(distance), rows, np.int64(to), np.int64(step))

    return emitted
