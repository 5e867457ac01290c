"""Two rows of NR bf16 numbers as pairs, in vector code: LLVM unrolls so short a loop instead."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..jit.callee import overload_callee
from ..kinds import Bits, Typed, Words
from ..llvm_ir import I16, I32, load
from ..micro.ukernel import NR

__all__ = ["interleave"]


def interleave(even: Bits, odd: Bits, words: Words) -> None:
    """words[j] = even[j] above odd[j], for NR columns: a step of a panel whose pairs have the odd k first."""
    words[:NR] = even[:NR].astype(np.uint32) << np.uint32(16) | odd[:NR]


@intrinsic
def _interleave_intrinsic(_typingctx: Any, even: Any, odd: Any, words: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = [context.make_array(kind)(context, builder, arg).data for kind, arg in zip(sig.args, args, strict=True)]
        narrow, wide = ir.VectorType(I16, NR), ir.VectorType(I32, NR)
        upper, lower = (builder.zext(load(builder, each, 0, narrow, 2), wide) for each in data[:2])
        pairs = builder.or_(builder.shl(upper, ir.Constant(wide, [16] * NR)), lower)
        builder.store(pairs, builder.bitcast(data[2], wide.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(even, odd, words), codegen


@overload_callee(interleave)
def _interleave(even: Typed, odd: Typed, words: Typed) -> Any:
    def emitted(even: Bits, odd: Bits, words: Words) -> None:
        _interleave_intrinsic(even, odd, words)

    return emitted
