"""AArch64 with i8mm and bf16: int8 products eight k of two rows and two columns at once by smmla, bf16 ones by bfmlal.

bfmlalt and bfmlalb widen the second and the first bf16 of each pair and are fused multiply-adds: one rounding each, and
subnormal numbers are numbers. bfdot and bfmmla are not used: they add several products with roundings of their own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..isa import Isa, MicroKernel
from ..llvm_ir import I16, I32, I64, BFloat, Vectors, declare, load
from .multiply_adds import bf16_multiply_adds
from .neon import BYTES, lanes
from .neondot import NEONDOT

__all__ = ["NEONI8MM"]

_PAIRS = ir.VectorType(BFloat(), 8)


def _int8_load(builder: ir.IRBuilder, _vectors: Vectors, b: Any, v: int) -> Any:
    return load(builder, b, v * 16, BYTES, 1)


def _int8_value(builder: ir.IRBuilder, _vectors: Vectors, rows: Any, _pass: int) -> Any:
    """Eight codes of one row and eight of the next."""
    first, last = (load(builder, row, 0, ir.VectorType(I64, 1), 1) for row in (rows[0], rows[-1]))
    both = builder.shuffle_vector(first, last, ir.Constant(ir.VectorType(I32, 2), [0, 1]))
    return builder.bitcast(both, BYTES)


def _int8_multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """smmla adds to each int32 lane eight products s8 x s8 of a row and a column, without saturation."""
    square = declare(builder, "llvm.aarch64.neon.smmla.v4i32.v16i8", vectors.words, [vectors.words, BYTES, BYTES])
    return builder.call(square, [acc, builder.bitcast(value, BYTES), builder.bitcast(column, BYTES)])


def _bf16_load(builder: ir.IRBuilder, vectors: Vectors, b: Any, v: int) -> Any:
    return load(builder, b, v * 16, vectors.pairs, 2)


def _bf16_value(builder: ir.IRBuilder, _vectors: Vectors, a: Any, _pass: int) -> Any:
    return lanes(builder, load(builder, a, 0, ir.VectorType(I16, 2), 2), [0, 1] * 4)


def _bf16_multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """The second of each pair, which is the even k, and then the first; of `value` all pairs are the same."""
    halves, pairs = builder.bitcast(value, vectors.halves), builder.bitcast(column, _PAIRS)
    for half, letter in ((1, "t"), (0, "b")):
        name = f"llvm.aarch64.neon.bfmlal{letter}"
        multiply = declare(builder, name, vectors.floats, [vectors.floats, _PAIRS, _PAIRS])
        element = builder.bitcast(lanes(builder, halves, [half] * 8), _PAIRS)
        acc = builder.call(multiply, [acc, pairs, element])
    return acc


# 24 accumulators and, of int8, 3 pairs of rows of A and a vector of B, of bf16 4 vectors of B and a row of A.
NEONI8MM = Isa(
    "neoni8mm",
    lanes=4,
    mr=6,
    nr=16,
    kr_bf16=2,
    kr_int8=8,
    a_offset=0,
    a_int8_bytes=1,
    features=NEONDOT.features | {"i8mm", "bf16"},
    bf16_dot=True,
    tune="neoverse-v2",
    int8=MicroKernel(
        "ukernel_int8",
        is_int8=True,
        load=_int8_load,
        value=_int8_value,
        multiply=_int8_multiply,
        order="columns",
        square=2,
    ),
    bf16=MicroKernel(
        "ukernel_bf16", is_int8=False, load=_bf16_load, value=_bf16_value, multiply=_bf16_multiply, order="rows"
    ),
    bf16_subnormal=bf16_multiply_adds(a_in_pairs=True),
)
