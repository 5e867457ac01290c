"""AArch64 with the dot product: int8 products four k at once by sdot, bf16 ones as NEON does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llvmlite import ir

from ..isa import BlockOrder, Isa, MicroKernel
from ..llvm_ir import I32, Vectors, declare, load
from .neon import BF16_FMLA, BF16_ROWS_OF_FOUR, BYTES, NEON, lanes

__all__ = ["NEONDOT"]

# Of four columns the first four k, and then the second four: sdot adds four bytes that lie side by side.
_FOUR_K = BlockOrder("[NR/4][KR/4][4][4]", lambda _nr, kr, r, j: (j // 4 * kr // 4 + r // 4) * 16 + j % 4 * 4 + r % 4)


def _load(builder: ir.IRBuilder, _vectors: Vectors, b: Any, v: int) -> Any:
    return [load(builder, b, (2 * v + k) * 16, BYTES, 1) for k in range(2)]


def _column(_builder: ir.IRBuilder, _vectors: Vectors, loaded: Any, k: int) -> Any:
    return loaded[k]


def _value(builder: ir.IRBuilder, _vectors: Vectors, a: Any, k: int) -> Any:
    return lanes(builder, load(builder, a, 0, ir.VectorType(I32, 2), 1), [k] * 4)


def _multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """sdot adds four s8 x s8 products to each int32 lane, without saturation."""
    dot = declare(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", vectors.words, [vectors.words, BYTES, BYTES])
    return builder.call(dot, [acc, builder.bitcast(column, BYTES), builder.bitcast(value, BYTES)])


# 24 accumulators, 4 of B and a row of A fill 29 of 32 registers. Twelve rows, not NEON's eight, share the widening of a
# bf16 B, which takes the place of multiplications here.
NEONDOT = Isa(
    "neondot",
    lanes=4,
    mr=12,
    nr=8,
    kr_bf16=2,
    kr_int8=8,
    a_offset=0,
    a_int8_bytes=1,
    features=NEON.features | {"dotprod"},
    tune="neoverse-v2",
    bf16_order=BF16_ROWS_OF_FOUR,
    int8_order=_FOUR_K,
    int8=MicroKernel(
        "ukernel_int8",
        is_int8=True,
        load=_load,
        value=_value,
        multiply=_multiply,
        column=_column,
        passes=2,
        order="rows",
        two_panels=4,
    ),
    bf16=replace(BF16_FMLA, two_panels=4),
)
