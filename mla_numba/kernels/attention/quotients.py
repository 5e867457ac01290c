"""Probabilities of some positions, in pairs of bf16, and the smallest of each head, in vector code."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..jit.callee import overload_callee
from ..kinds import F32, Bits, Typed, Words
from ..llvm_ir import I64, POINTER, counted_loop, load, store
from ..micro.table import ISA
from ..micro.ukernel import NR
from ..scalars import round_bf16, window
from .rounding import pairs_of_words, rounded_words

__all__ = ["NO_SMALLEST", "pairs_of_quotients"]

NO_SMALLEST = np.uint16(0xFFFF)  # of zeros alone: see `pairs_of_quotients`
_VECTORS = ISA.vectors
_BYTES = 4 * ISA.lanes  # of a vector


def pairs_of_quotients(e: F32, total: F32, words: Words, smallest: Bits) -> None:
    """words = e / total as bf16: of two positions, NR heads each, a row of NR pairs, the first position above.

    `e` has an even number of positions, at least two; total (NR,) is each head's. smallest (2 * NR,): a head's least
    bits but 0 so far, less one, of second positions and then of first ones; `NO_SMALLEST` at the begin.
    """
    for row in range(len(e) // (2 * NR)):
        even, odd = window(e, 2 * row * NR, NR), window(e, (2 * row + 1) * NR, NR)
        pairs = window(words, row * NR, NR)
        for j in range(NR):
            upper = int(round_bf16(np.float32(even[j] / total[j])))
            lower = int(round_bf16(np.float32(odd[j] / total[j])))
            pairs[j] = np.uint32(upper << 16 | lower)
            smallest[2 * j] = min(int(smallest[2 * j]), (lower - 1) & 0xFFFF)
            smallest[2 * j + 1] = min(int(smallest[2 * j + 1]), (upper - 1) & 0xFFFF)


def _emit_rounded(builder: ir.IRBuilder, value: Any) -> Any:
    """Words whose upper halves are `round_bf16` of float32 numbers."""
    quiet = builder.or_(builder.bitcast(value, _VECTORS.words), _VECTORS.filled(0x400000))
    return builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded_words(builder, value))


@intrinsic
def _pairs_intrinsic(_typingctx: Any, e: Any, total: Any, words: Any, smallest: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = [context.make_array(kind)(context, builder, arg) for kind, arg in zip(sig.args, args, strict=True)]
        source, divisors, target, least = (builder.bitcast(array.data, POINTER) for array in arrays)
        n_rows = builder.udiv(arrays[0].nitems, ir.Constant(I64, 2 * NR))
        halves = _VECTORS.halves
        totals = [load(builder, divisors, v * _BYTES, _VECTORS.floats, 4) for v in range(_VECTORS.n)]
        ones = ir.Constant(halves, [1] * halves.count)

        def row(number: Any, held: list[Any]) -> list[Any]:
            here = builder.gep(source, [builder.mul(number, ir.Constant(I64, 2 * NR * 4))])
            to, made = builder.gep(target, [builder.mul(number, ir.Constant(I64, NR * 4))]), []
            for v, before in enumerate(held):
                even, odd = (load(builder, here, r * NR * 4 + v * _BYTES, _VECTORS.floats, 4) for r in range(2))
                upper, lower = (_emit_rounded(builder, builder.fdiv(each, totals[v])) for each in (even, odd))
                pairs = pairs_of_words(builder, upper, lower)
                store(builder, pairs, to, v * _BYTES)
                sizes = builder.sub(builder.bitcast(pairs, halves), ones)
                made.append(builder.select(builder.icmp_unsigned("<", sizes, before), sizes, before))
            return made

        first = [load(builder, least, v * _BYTES, halves, 2) for v in range(_VECTORS.n)]
        for v, value in enumerate(counted_loop(builder, n_rows, first, row)):
            store(builder, value, least, v * _BYTES)
        return context.get_dummy_value()

    return types.void(e, total, words, smallest), codegen


@overload_callee(pairs_of_quotients)
def _pairs_of_quotients(e: Typed, total: Typed, words: Typed, smallest: Typed) -> Any:
    if ISA.bf16 is None:
        return pairs_of_quotients

    def emitted(e: F32, total: F32, words: Words, smallest: Bits) -> None:
        _pairs_intrinsic(e, total, words, smallest)

    return emitted
