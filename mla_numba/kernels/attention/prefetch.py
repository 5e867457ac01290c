"""Asking for cache lines before they are read: keys lie anywhere in a cache, where no hardware sees them coming."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from ..jit.callee import callee, overload_callee
from ..kinds import Index, Typed, Values
from ..llvm_ir import IN_L1, POINTER
from ..llvm_ir import prefetch as emit_prefetch

__all__ = ["prefetch"]

_LINE_BYTES = 64


def _prefetch_line(array: Values, at: Index) -> None:
    """Asks for the line of element `at` of a flat array."""


@intrinsic
def _prefetch_intrinsic(_typingctx: Any, array: Any, at: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), POINTER)
        emit_prefetch(builder, address, _LINE_BYTES, IN_L1)
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@overload_callee(_prefetch_line)
def _prefetch_overload(array: Typed, at: Typed) -> Any:
    def ask(array: Values, at: Index) -> None:
        _prefetch_intrinsic(array, np.int64(at))

    return ask


@callee
def prefetch(array: Values, at: Index, n: Index) -> None:
    """Asks for elements at..at+n of a flat array, n >= 1."""
    step = _LINE_BYTES // array.itemsize
    for i in range(at, at + n, step):
        _prefetch_line(array, i)
    _prefetch_line(array, at + n - 1)
