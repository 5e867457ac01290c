"""bf16 products by fused multiply-adds, two k in two passes: on every instruction set with vectors of float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..isa import MicroKernel
from ..llvm_ir import F32, I32, Vectors, declare, load

__all__ = ["bf16_multiply_adds", "float_value", "multiply_add"]


def _half(builder: ir.IRBuilder, vectors: Vectors, pairs: Any, k: int) -> Any:
    """Of the pair in each 32-bit lane the even k by a mask, the odd one by a shift."""
    bits = builder.shl(pairs, vectors.filled(16)) if k else builder.and_(pairs, vectors.filled(0xFFFF0000))
    return builder.bitcast(bits, vectors.floats)


def _load(builder: ir.IRBuilder, vectors: Vectors, b: Any, v: int) -> Any:
    return load(builder, b, v * vectors.lanes * 4, vectors.words, 4)


def float_value(builder: ir.IRBuilder, vectors: Vectors, a: Any, k: int) -> Any:
    """The float32 k elements on, in all lanes."""
    return vectors.splat(builder, load(builder, a, k * 4, F32, 4))


def _paired_value(builder: ir.IRBuilder, vectors: Vectors, a: Any, k: int) -> Any:
    return _half(builder, vectors, vectors.splat(builder, load(builder, a, 0, I32, 4)), k)


def multiply_add(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """value * column + acc, rounded once."""
    fma = declare(builder, f"llvm.fma.v{vectors.lanes}f32", vectors.floats, [vectors.floats] * 3)
    return builder.call(fma, [value, column, acc])


def bf16_multiply_adds(a_in_pairs: bool) -> MicroKernel:
    """The microkernel, for rows of A that are float32, or bf16 in pairs like the weight."""
    value: Callable[[ir.IRBuilder, Vectors, Any, int], Any] = _paired_value if a_in_pairs else float_value
    return MicroKernel(
        "ukernel_bf16_steps", is_int8=False, load=_load, value=value, multiply=multiply_add, column=_half, passes=2
    )
