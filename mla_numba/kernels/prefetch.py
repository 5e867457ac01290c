"""Asking for cache lines before they are used: keys lie anywhere in a cache, where no hardware sees them coming."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .jit.callee import overload_callee
from .kinds import Index, Typed, Values
from .llvm_ir import I64, IN_L1, IN_L2, POINTER, counted_loop
from .llvm_ir import prefetch as emit_prefetch

__all__ = ["LINE_BYTES", "prefetch", "prefetch_far", "prefetch_to_write"]

LINE_BYTES = 64


def prefetch(array: Values, at: Index, n: Index) -> None:
    """Asks for elements at..at+n of a flat array, n >= 1, which are read at once."""


def prefetch_far(array: Values, at: Index, n: Index) -> None:
    """Likewise where they are read some microseconds later: they come to L2, and leave L1 to what is at work."""


def prefetch_to_write(array: Values, at: Index, n: Index) -> None:
    """Likewise where they are written: lines that another core has, or none, would be waited for with each store."""


def _define(locality: int, to_write: bool = False) -> Any:
    @intrinsic
    def asking(_typingctx: Any, array: Any, at: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            first = builder.bitcast(builder.gep(data, [args[1]]), POINTER)
            each = sig.args[0].dtype.bitwidth // 8
            last = builder.mul(builder.sub(args[2], ir.Constant(I64, 1)), ir.Constant(I64, each))
            line = ir.Constant(I64, LINE_BYTES)

            def ask(number: Any, _values: list[Any]) -> list[Any]:
                emit_prefetch(builder, builder.gep(first, [builder.mul(number, line)]), LINE_BYTES, locality, to_write)
                return []

            # The last element may lie in one line more than as many whole ones.
            counted_loop(builder, builder.add(builder.udiv(last, line), ir.Constant(I64, 1)), [], ask)
            emit_prefetch(builder, builder.gep(first, [last]), LINE_BYTES, locality, to_write)
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64), codegen

    return asking


_near, _far, _to_write = _define(IN_L1), _define(IN_L2), _define(IN_L1, to_write=True)


@overload_callee(prefetch)
def _prefetch(array: Typed, at: Typed, n: Typed) -> Any:
    def ask(array: Values, at: Index, n: Index) -> None:
        _near(array, np.int64(at), np.int64(n))

    return ask


@overload_callee(prefetch_far)
def _prefetch_far(array: Typed, at: Typed, n: Typed) -> Any:
    def ask(array: Values, at: Index, n: Index) -> None:
        _far(array, np.int64(at), np.int64(n))

    return ask


@overload_callee(prefetch_to_write)
def _prefetch_to_write(array: Typed, at: Typed, n: Typed) -> Any:
    def ask(array: Values, at: Index, n: Index) -> None:
        _to_write(array, np.int64(at), np.int64(n))

    return ask
