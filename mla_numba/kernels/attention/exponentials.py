"""Exponentials of whole steps of scores, in vector code.

An exponential is a chain of some twenty operations, each of which waits for the one before. LLVM's own loop takes one
vector after the other and fetches each constant anew; this one takes several side by side, which share the constants.
It is for vectors of 16 lanes, which have 32 registers beside them; with the 16 of AVX2 LLVM's loop is faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..jit.callee import callee, overload_callee
from ..kinds import F32, Real, Typed
from ..llvm_ir import I64, POINTER, counted_loop, load, store
from ..micro.table import ISA
from ..scalars import window
from .exp import BIAS, LEAST, LN2_HIGH, LN2_LOW, LOG2_E, POLYNOMIAL, ROUND, TO_EXPONENT, exp_negative

__all__ = ["add_exponentials", "add_step"]

_VECTORS = ISA.vectors
_AT_ONCE = 4  # vectors
_BYTES = 4 * ISA.lanes  # of a vector
_HAS_REGISTERS = ISA.bf16 is not None and ISA.lanes == 16


@callee
def add_step(scores: F32, scale: Real, most: F32, total: F32) -> None:
    """scores = exp(scores * scale - most), and total += scores: three arrays of one length."""
    for i in range(len(scores)):
        e = exp_negative(np.float32(np.float32(scores[i] * scale) - most[i]))
        scores[i] = e
        total[i] = total[i] + e


def add_exponentials(scores: F32, scale: Real, most: F32, total: F32) -> None:
    """`add_step`, by steps of as many scores as `most` and `total` have.

    There are whole steps of them, and steps are multiples of `_AT_ONCE` vectors.
    """
    for first in range(0, len(scores), len(most)):
        add_step(window(scores, first, len(most)), scale, most, total)


def _all(value: np.float32) -> ir.Constant:
    return ir.Constant(_VECTORS.floats, [float(value)] * ISA.lanes)


def _emit_exp(builder: ir.IRBuilder, x: list[Any]) -> list[Any]:
    """`exp_negative` of some vectors, each operation of all of them before the next one."""

    def times(a: list[Any], b: Any) -> list[Any]:
        return [builder.fmul(each, b[i] if isinstance(b, list) else b) for i, each in enumerate(a)]

    def plus(a: list[Any], b: Any) -> list[Any]:
        return [builder.fadd(each, b[i] if isinstance(b, list) else b) for i, each in enumerate(a)]

    def minus(a: list[Any], b: Any) -> list[Any]:
        return [builder.fsub(each, b[i] if isinstance(b, list) else b) for i, each in enumerate(a)]

    shifted = plus(times(x, _all(LOG2_E)), _all(ROUND))
    n = minus(shifted, _all(ROUND))
    r = minus(minus(x, times(n, _all(LN2_HIGH))), times(n, _all(LN2_LOW)))
    p = times(r, _all(POLYNOMIAL[0]))
    for factor in POLYNOMIAL[1:-1]:
        p = times(plus(p, _all(factor)), r)
    p = plus(p, _all(POLYNOMIAL[-1]))
    e = plus(plus(times(p, times(r, r)), r), _all(np.float32(1)))
    bits = [builder.add(builder.bitcast(each, _VECTORS.words), _VECTORS.filled(int(BIAS))) for each in shifted]
    power = [builder.bitcast(builder.shl(each, _VECTORS.filled(int(TO_EXPONENT))), _VECTORS.floats) for each in bits]
    least, zero = _all(LEAST), _all(np.float32(0))
    tiny = [builder.fcmp_ordered("<", each, least) for each in x]
    return [builder.select(is_tiny, zero, each) for is_tiny, each in zip(tiny, times(e, power), strict=True)]


@intrinsic
def _add_intrinsic(_typingctx: Any, scores: Any, scale: Any, most: Any, total: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = [context.make_array(sig.args[i])(context, builder, args[i]) for i in (0, 2, 3)]
        at, top, lanes = (builder.bitcast(array.data, POINTER) for array in arrays)
        n, width = (array.nitems for array in arrays[:2])
        factor = _VECTORS.splat(builder, args[1])

        def some(number: Any, here: Any) -> None:
            """Some vectors of a step that begins `here`."""
            offset = builder.mul(number, ir.Constant(I64, _AT_ONCE * _BYTES))
            scores_at, top_at, lanes_at = (builder.gep(base, [offset]) for base in (here, top, lanes))

            def vectors(base: Any) -> list[Any]:
                return [load(builder, base, i * _BYTES, _VECTORS.floats, 4) for i in range(_AT_ONCE)]

            pairs = zip(vectors(scores_at), vectors(top_at), strict=True)
            made = _emit_exp(builder, [builder.fsub(builder.fmul(score, factor), most) for score, most in pairs])
            for i, (e, before) in enumerate(zip(made, vectors(lanes_at), strict=True)):
                store(builder, e, scores_at, i * _BYTES)
                store(builder, builder.fadd(before, e), lanes_at, i * _BYTES)

        def step(number: Any, _values: list[Any]) -> list[Any]:
            here = builder.gep(at, [builder.mul(number, builder.mul(width, ir.Constant(I64, 4)))])

            def one(inner: Any, _values: list[Any]) -> list[Any]:
                some(inner, here)
                return []

            counted_loop(builder, builder.udiv(width, ir.Constant(I64, _AT_ONCE * ISA.lanes)), [], one)
            return []

        with builder.if_then(builder.icmp_unsigned(">=", n, width)):
            counted_loop(builder, builder.udiv(n, width), [], step)
        return context.get_dummy_value()

    return types.void(scores, types.float32, most, total), codegen


@overload_callee(add_exponentials)
def _add(scores: Typed, scale: Typed, most: Typed, total: Typed) -> Any:
    if not _HAS_REGISTERS:
        return add_exponentials

    def emitted(scores: F32, scale: Real, most: F32, total: F32) -> None:
        _add_intrinsic(scores, np.float32(scale), most, total)

    return emitted
