"""The microkernels, each beside a Python function that says what it computes.

    ukernel:       C[mr, NR] = (carry ? C : 0) + A[mr, k] @ B[k, NR]
    ukernel_store: Y[mr, NR] = bf16((float32((carry ? C : 0) + A @ B + offset[NR]) * row_scale[mr]) * col_scale[NR])

| array     | shape                   | dtype                             | notes                                     |
|-----------|-------------------------|-----------------------------------|-------------------------------------------|
| a         | [mr] by lda, [k]        | A_BF16_DTYPE, A_INT8_DTYPE        | by the weight's type, see `operand`   |
| b         | [k/KR][NR][KR]          | uint16 (bf16 bits), int8          |                                           |
| c         | [mr][NR]                | float32, int32                    | may be uninitialised where carry is false |
| y         | [mr] by ldy, [NR]       | uint16, float32 of bf16 values    | float32 where it is to be an `a`          |
| offset    | [NR]                    | int32                             | read for int8 weights only                |
| row_scale, col_scale | [mr], [NR]   | float32                           | likewise; else the sum alone is rounded   |

Meanwhile `b` is prefetched from b_off + ahead on, ahead_step elements a step of KR: what is read next, at the pace at
which it is needed, to where `locality` says (ONCE, IN_L2 or IN_L1 of `llvm_ir`).

Every element of C is one accumulator that takes its products in ascending k, so tile, thread and instruction set never
change a bit; int32 wraps, hence exact. In a pair of bf16 the even k is the second of the two, since vdpbf16ps takes
that one first: it is two multiply-adds, each rounded (Intel SDM), save that it takes subnormal numbers for 0. `normal`
says that there can be none (`scalars.sums_stay_normal`); where there can be, plain multiply-adds do the work.

Both take arrays as flat and an offset into each. Called from Python they run their own bodies, the oracles of the
compiled ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..isa import ISA
from ..jit.callee import overload_callee
from ..llvm_ir import F32, I16, I64, POINTER
from .emitter import BF16_PAIRS, BF16_STEPS, INT8, MicroKernel, declare_tile_function
from .epilogue import store_tile
from .library import load_microkernels
from .portable import ukernel_bf16_portable, ukernel_int8_portable

MR, NR = ISA.mr, ISA.nr
KR_BF16, KR_INT8 = ISA.kr_bf16, ISA.kr_int8
A_OFFSET = np.int32(ISA.a_offset)
A_INT8_DTYPE = np.uint8 if ISA.a_int8_bytes == 1 else np.int16
A_BF16_DTYPE = np.uint16 if ISA.bf16_dot else np.float32


def ukernel(
    mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any, ahead_step: Any,
    locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
) -> None:  # fmt: skip
    """One register tile; `b`'s dtype chooses between bf16 and int8. `k` is a multiple of KR, 1 <= mr <= MR."""
    is_int8 = b.dtype == np.int8
    kr = KR_INT8 if is_int8 else KR_BF16
    tile = c[c_off : c_off + mr * NR].reshape(mr, NR)
    if not carry:
        tile[...] = 0
    a, rows = a.reshape(-1), a_off + np.arange(mr) * lda
    for p in range(k):
        step, r = divmod(p, kr)
        values = a[rows + step * kr + (kr - 1 - r if a.dtype == np.uint16 else r)]
        column = b[b_off + step * NR * kr + (r if is_int8 else kr - 1 - r) :][: NR * kr : kr]
        if is_int8:
            tile += values.astype(np.int32)[:, None] * column.astype(np.int32)
        else:
            tile += (_widened(values) if a.dtype == np.uint16 else values)[:, None] * _widened(column)


def ukernel_store(
    mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any, ahead_step: Any,
    locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
    y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any, col_scale: Any, offset: Any, col_off: Any,
) -> None:  # fmt: skip
    """One register tile whose sums are complete after it. What it leaves in c is arbitrary."""
    ukernel(mr, k, a, a_off, lda, b, b_off, ahead, ahead_step, locality, c, c_off, carry, normal)
    store_tile(mr, NR, c, c_off, NR, y, y_off, ldy, row_scale, row_off, col_scale, offset, col_off)


def _widened(bits: Any) -> Any:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


@overload_callee(ukernel)
def _ukernel(
    mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any, ahead_step: Any,
    locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
) -> Any:  # fmt: skip
    is_int8 = b.dtype == types.int8
    if ISA.name == "portable":
        loops = ukernel_int8_portable if is_int8 else ukernel_bf16_portable

        def portable(
            mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any,
            ahead_step: Any, locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
        ) -> None:  # fmt: skip
            loops(mr, k, a, a_off, lda, b, b_off, c, c_off, carry)

        return portable
    emitted = _keep_int8 if is_int8 else _keep_bf16

    def simd(
        mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any, ahead_step: Any,
        locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
    ) -> None:  # fmt: skip
        emitted(
            np.int64(mr), np.int64(k), a, np.int64(a_off), np.int64(lda), b, np.int64(b_off),
            np.int64(ahead), np.int64(ahead_step), np.int64(locality), c, np.int64(c_off), carry, normal,
            c, np.int64(0), np.int64(0), c, np.int64(0), c, c, np.int64(0),
        )  # fmt: skip

    return simd


@overload_callee(ukernel_store)
def _ukernel_store(
    mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any, ahead_step: Any,
    locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
    y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any, col_scale: Any, offset: Any, col_off: Any,
) -> Any:  # fmt: skip
    if ISA.name == "portable":

        def portable(
            mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any,
            ahead_step: Any, locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
            y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any, col_scale: Any, offset: Any, col_off: Any,
        ) -> None:  # fmt: skip
            ukernel(mr, k, a, a_off, lda, b, b_off, ahead, ahead_step, locality, c, c_off, carry, normal)
            store_tile(mr, NR, c, c_off, NR, y, y_off, ldy, row_scale, row_off, col_scale, offset, col_off)

        return portable
    emitted = _store_int8 if b.dtype == types.int8 else _store_bf16

    def simd(
        mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any, ahead_step: Any,
        locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
        y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any, col_scale: Any, offset: Any, col_off: Any,
    ) -> None:  # fmt: skip
        emitted(
            np.int64(mr), np.int64(k), a, np.int64(a_off), np.int64(lda), b, np.int64(b_off),
            np.int64(ahead), np.int64(ahead_step), np.int64(locality), c, np.int64(c_off), carry, normal,
            y, np.int64(y_off), np.int64(ldy), row_scale, np.int64(row_off), col_scale, offset, np.int64(col_off),
        )  # fmt: skip

    return simd


class _Operands:
    """An intrinsic's arguments as addresses and distances in bytes."""

    def __init__(self, context: Any, builder: Any, sig: Any, args: Any) -> None:
        self.context, self.builder, self.types, self.args = context, builder, sig.args, args

    def address(self, array: int, *offsets: int) -> Any:
        """The address of an array's element; the array and the offsets that are added up by their positions."""
        data = self.context.make_array(self.types[array])(self.context, self.builder, self.args[array]).data
        for position in offsets:
            data = self.builder.gep(data, [self.args[position]])
        return self.builder.bitcast(data, POINTER)

    def n_bytes(self, array: int, distance: int) -> Any:
        """A distance in elements of an array, both by position, in bytes."""
        itemsize = ir.Constant(I64, self.types[array].dtype.bitwidth // 8)
        return self.builder.mul(self.args[distance], itemsize)

    def call(self, kernel: MicroKernel, subnormal: MicroKernel | None, store: ir.Type, output: list[Any]) -> Any:
        """Calls the tile function; `subnormal` is the kernel for sums that may be so, None if `kernel` is right."""
        builder, args = self.builder, self.args
        operands = [
            args[0], builder.udiv(args[1], ir.Constant(I64, kernel.kr)), self.address(2, 3), self.n_bytes(2, 4),
            ir.Constant(I64, kernel.a_bytes), self.address(5, 6), self.address(5, 6, 7), self.n_bytes(5, 8),
            args[9], self.address(10, 11), args[12], *output,
        ]  # fmt: skip
        load_microkernels()
        function = declare_tile_function(builder.module, kernel, store)
        if subnormal is not None:
            other = declare_tile_function(builder.module, subnormal, store)
            function = builder.select(args[13], function, other)
        builder.call(function, operands)
        return self.context.get_dummy_value()


def _define(kernel: MicroKernel, subnormal: MicroKernel | None, stores: bool) -> Any:
    @intrinsic
    def call(
        _typingctx: Any, mr: Any, k: Any, a: Any, a_off: Any, lda: Any, b: Any, b_off: Any, ahead: Any,
        ahead_step: Any, locality: Any, c: Any, c_off: Any, carry: Any, normal: Any,
        y: Any, y_off: Any, ldy: Any, row_scale: Any, row_off: Any, col_scale: Any, offset: Any, col_off: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            operands = _Operands(context, builder, sig, args)
            null = ir.Constant(POINTER, None)
            output = [null, ir.Constant(I64, 0), null, null, null]
            store = I16
            if stores:
                output = [
                    operands.address(14, 15), operands.n_bytes(14, 16), operands.address(17, 18),
                    operands.address(19, 21), operands.address(20, 21),
                ]  # fmt: skip
                store = I16 if sig.args[14].dtype == types.uint16 else F32
            return operands.call(kernel, subnormal, store, output)

        signature = types.void(
            mr, k, a, a_off, lda, b, b_off, ahead, ahead_step, locality, c, c_off, carry, normal,
            y, y_off, ldy, row_scale, row_off, col_scale, offset, col_off,
        )  # fmt: skip
        return signature, codegen

    return call


_BF16, _SUBNORMAL = (BF16_PAIRS, BF16_STEPS) if ISA.bf16_dot else (BF16_STEPS, None)
_keep_bf16, _store_bf16 = _define(_BF16, _SUBNORMAL, stores=False), _define(_BF16, _SUBNORMAL, stores=True)
_keep_int8, _store_int8 = _define(INT8, None, stores=False), _define(INT8, None, stores=True)
