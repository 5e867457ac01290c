"""The vector code of the lightning index as a library of machine code, and how kernels call it."""

from __future__ import annotations

from typing import Any

from numba.core import types

from ..llvm_ir import POINTER
from ..micro.library import Library
from ..micro.table import ISA
from .emitter import define_lightning

__all__ = ["call_vector_code", "load_lightning"]

load_lightning = Library("lightning", define_lightning).load


def call_vector_code(context: Any, builder: Any, sig: Any, args: Any, declare: Any) -> Any:
    """Calls a function of the library: arrays by their addresses, numbers as they are, tuples one by one."""

    def operands(kind: Any, value: Any) -> list[Any]:
        if isinstance(kind, types.Array):
            return [builder.bitcast(context.make_array(kind)(context, builder, value).data, POINTER)]
        if isinstance(kind, types.BaseTuple):
            return [each for i, k in enumerate(kind) for each in operands(k, builder.extract_value(value, i))]
        return [value]

    load_lightning()
    given = [each for kind, value in zip(sig.args, args, strict=True) for each in operands(kind, value)]
    result = builder.call(declare(builder.module, ISA), given)
    return context.get_dummy_value() if sig.return_type == types.void else result
