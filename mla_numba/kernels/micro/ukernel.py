"""The microkernels, each beside a Python function that says what it computes.

    ukernel:       C[mr, NR] = (C.carry ? C : 0) + A[mr, k] @ B[k, NR]
    ukernel_store: Y[mr, NR] = bf16((float32((C.carry ? C : 0) + A @ B + offset[NR]) * row_scale[mr]) * col_scale[NR])
    ukernel_two, ukernel_two_store: the same for two panels of B at once

The operands are those of `operands`. Every element of C is one accumulator that takes its products in ascending k, so
tile, thread and instruction set never change a bit; int32 wraps, hence exact. In a pair of bf16 activations the even k
is the second of the two, since vdpbf16ps takes that one first: it is two multiply-adds, each rounded (Intel SDM), save
that it takes subnormal numbers for 0. `no_subnormals` says that there can be none (`scalars.sums_stay_normal`); where
there can be, plain multiply-adds do the work.

Called from Python both run their own bodies, the oracles of the compiled ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..jit.callee import by_dtype, callee, field_type, overload_callee
from ..kinds import Index, Typed, Values
from ..llvm_ir import F32 as FLOAT
from ..llvm_ir import I16, I64, POINTER
from .emitter import TileFunction
from .epilogue import store_tile
from .library import load_microkernels
from .operands import A, B, C, Second, Y
from .plain import add_products
from .portable import ukernel_bf16_portable, ukernel_int8_portable
from .table import ISA

MR, NR = ISA.mr, ISA.nr
KR_BF16, KR_INT8 = ISA.kr_bf16, ISA.kr_int8
A_OFFSET = np.int32(ISA.a_offset)
A_SURPLUS = np.array(ISA.surplus, np.int32)
A_BEGIN = ISA.a_int8_begin
A_INT8_DTYPE = {2: np.int16, 1: np.uint8 if ISA.a_offset else np.int8}[ISA.a_int8_bytes]
A_BF16_DTYPE = np.uint16 if ISA.bf16_dot else np.float32
_ROWS_OF_TWO_INT8, _ROWS_OF_TWO_BF16 = (kernel.two_panels if kernel else 0 for kernel in (ISA.int8, ISA.bf16))


def ukernel(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool) -> None:
    """One register tile; the panels' dtype chooses between bf16 and int8. `k` is a multiple of KR, 1 <= mr <= MR."""
    add_products(ISA, mr, k, a, b, c)


def ukernel_store(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool, y: Y) -> None:
    """One register tile whose sums are complete after it. What it leaves in c is arbitrary."""
    ukernel(mr, k, a, b, c, no_subnormals)
    store_tile(mr, NR, c, y)


def ukernel_two(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool, second: Second) -> None:
    """Two register tiles side by side, 1 <= mr <= `rows_of_two(b.panels)`."""
    ukernel(mr, k, a, b, c, no_subnormals)
    ukernel(mr, k, a, _second_panel(b, second), _second_sums(c, second), no_subnormals)


def ukernel_two_store(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool, y: Y, second: Second) -> None:
    """Two register tiles side by side whose sums are complete after it."""
    ukernel_store(mr, k, a, b, c, no_subnormals, y)
    ukernel_store(
        mr, k, a, _second_panel(b, second), _second_sums(c, second), no_subnormals,
        Y(y.values, y.at + NR, y.step, y.row_scale, y.row_at, y.col_scale, y.offset, y.col_at + NR),
    )  # fmt: skip


@callee
def _second_panel(b: B, second: Second) -> B:
    return B(b.panels, b.at + second.panel, b.ahead, b.ahead_step, b.locality)


@callee
def _second_sums(c: C, second: Second) -> C:
    return C(c.sums, c.at + second.sums, c.carry)


@callee
def _rows_of_two_int8(panels: Values) -> int:
    return _ROWS_OF_TWO_INT8


@callee
def _rows_of_two_bf16(panels: Values) -> int:
    return _ROWS_OF_TWO_BF16


@by_dtype("panels", {np.int8: _rows_of_two_int8}, otherwise=_rows_of_two_bf16)
def rows_of_two(panels: Values) -> Index:
    """Up to how many rows two panels of a packed weight are taken at once; 0 where they never are."""


@overload_callee(ukernel)
def _ukernel(mr: Typed, k: Typed, a: Typed, b: Typed, c: Typed, no_subnormals: Typed) -> Any:
    is_int8 = field_type(b, "panels").dtype == types.int8
    if ISA.name == "portable":
        loops = ukernel_int8_portable if is_int8 else ukernel_bf16_portable

        def portable(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool) -> None:
            loops(mr, k, a, b, c)

        return portable
    emitted = _keep_int8 if is_int8 else _keep_bf16

    def simd(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool) -> None:
        emitted(np.int64(mr), np.int64(k), a, b, c, no_subnormals)

    return simd


@overload_callee(ukernel_store)
def _ukernel_store(mr: Typed, k: Typed, a: Typed, b: Typed, c: Typed, no_subnormals: Typed, y: Typed) -> Any:
    if ISA.name == "portable":
        return ukernel_store
    emitted = _store_int8 if field_type(b, "panels").dtype == types.int8 else _store_bf16

    def simd(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool, y: Y) -> None:
        emitted(np.int64(mr), np.int64(k), a, b, c, no_subnormals, y)

    return simd


@overload_callee(ukernel_two)
def _ukernel_two(mr: Typed, k: Typed, a: Typed, b: Typed, c: Typed, no_subnormals: Typed, second: Typed) -> Any:
    is_int8 = field_type(b, "panels").dtype == types.int8
    if not (_ROWS_OF_TWO_INT8 if is_int8 else _ROWS_OF_TWO_BF16):
        return ukernel_two
    emitted = _keep_two_int8 if is_int8 else _keep_two_bf16

    def simd(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool, second: Second) -> None:
        emitted(np.int64(mr), np.int64(k), a, b, c, no_subnormals, second)

    return simd


@overload_callee(ukernel_two_store)
def _ukernel_two_store(
    mr: Typed, k: Typed, a: Typed, b: Typed, c: Typed, no_subnormals: Typed, y: Typed, second: Typed
) -> Any:
    is_int8 = field_type(b, "panels").dtype == types.int8
    if not (_ROWS_OF_TWO_INT8 if is_int8 else _ROWS_OF_TWO_BF16):
        return ukernel_two_store
    emitted = _store_two_int8 if is_int8 else _store_two_bf16

    def simd(mr: Index, k: Index, a: A, b: B, c: C, no_subnormals: bool, y: Y, second: Second) -> None:
        emitted(np.int64(mr), np.int64(k), a, b, c, no_subnormals, y, second)

    return simd


class _Operand:
    """An operand of an intrinsic: its fields by name, as addresses and as distances in bytes."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self._context, self._builder, self._kind, self._value = context, builder, kind, value

    def number(self, name: str) -> Any:
        """A field as it is."""
        return self._builder.extract_value(self._value, self._kind.fields.index(name))

    def address(self, array: str, *positions: str) -> Any:
        """The address of an array's element; the position is the sum of the fields that are named."""
        kind = field_type(self._kind, array)
        data = self._context.make_array(kind)(self._context, self._builder, self.number(array)).data
        for name in positions:
            data = self._builder.gep(data, [self.number(name)])
        return self._builder.bitcast(data, POINTER)

    def n_bytes(self, array: str, distance: str) -> Any:
        """A field that is a distance in elements of an array, in bytes."""
        return self.bytes_of(array, self.number(distance))

    def bytes_of(self, array: str, n: Any) -> Any:
        """The bytes of n elements of an array."""
        return self._builder.mul(n, ir.Constant(I64, field_type(self._kind, array).dtype.bitwidth // 8))


def _call_tile(context: Any, builder: Any, sig: Any, args: Any, is_int8: bool) -> Any:
    """Calls the function of a register tile, or of two, see `emitter`; without a y, the sums stay in c."""
    kernel, subnormal = (ISA.int8, None) if is_int8 else (ISA.bf16, ISA.bf16_subnormal)
    assert kernel is not None
    mr, k, _, _, _, no_subnormals = args[:6]
    a, b, c = (_Operand(context, builder, sig.args[i], args[i]) for i in range(2, 5))
    null = ir.Constant(POINTER, None)
    output, stored, beside = [null, ir.Constant(I64, 0), null, null, null], I16, []
    for kind, value in zip(sig.args[6:], args[6:], strict=True):
        more = _Operand(context, builder, kind, value)
        if kind.instance_class is Second:
            beside = [b.bytes_of("panels", more.number("panel")), c.bytes_of("sums", more.number("sums"))]
        else:
            output = [
                more.address("values", "at"), more.n_bytes("values", "step"), more.address("row_scale", "row_at"),
                more.address("col_scale", "col_at"), more.address("offset", "col_at"),
            ]  # fmt: skip
            stored = I16 if field_type(kind, "values").dtype == types.uint16 else FLOAT
    operands = [
        mr, builder.udiv(k, ir.Constant(I64, ISA.kr(kernel))), a.address("rows", "at"), a.n_bytes("rows", "step"),
        ir.Constant(I64, ISA.a_bytes(kernel)), b.address("panels", "at"), b.address("panels", "at", "ahead"),
        b.n_bytes("panels", "ahead_step"), b.number("locality"), c.address("sums", "at"), c.number("carry"), *output,
        *beside,
    ]  # fmt: skip
    load_microkernels()
    panels = 2 if beside else 1
    function = TileFunction(ISA, kernel, stored, panels).declared(builder.module)
    if subnormal is not None:
        other = TileFunction(ISA, subnormal, stored, panels).declared(builder.module)
        function = builder.select(no_subnormals, function, other)
    builder.call(function, operands)
    return context.get_dummy_value()


def _define_keep(is_int8: bool) -> Any:
    @intrinsic
    def keep(_typingctx: Any, mr: Any, k: Any, a: Any, b: Any, c: Any, no_subnormals: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _call_tile(context, builder, sig, args, is_int8)

        return types.void(mr, k, a, b, c, no_subnormals), codegen

    return keep


def _define_with(is_int8: bool) -> Any:
    """What stores, or takes two panels: with one operand more."""

    @intrinsic
    def one_more(_typingctx: Any, mr: Any, k: Any, a: Any, b: Any, c: Any, no_subnormals: Any, more: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _call_tile(context, builder, sig, args, is_int8)

        return types.void(mr, k, a, b, c, no_subnormals, more), codegen

    return one_more


def _define_store_two(is_int8: bool) -> Any:
    @intrinsic
    def store(_typingctx: Any, mr: Any, k: Any, a: Any, b: Any, c: Any, no_subnormals: Any, y: Any, second: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _call_tile(context, builder, sig, args, is_int8)

        return types.void(mr, k, a, b, c, no_subnormals, y, second), codegen

    return store


_keep_bf16, _store_bf16, _keep_two_bf16, _store_two_bf16 = (
    _define_keep(False), _define_with(False), _define_with(False), _define_store_two(False)
)  # fmt: skip
_keep_int8, _store_int8, _keep_two_int8, _store_two_int8 = (
    _define_keep(True), _define_with(True), _define_with(True), _define_store_two(True)
)  # fmt: skip
