"""AArch64 with NEON: bf16 products by multiply-adds, int8 ones by products of bytes that are added in pairs.

All AArch64 CPUs have it. A row of A is loaded once a step and multiplied element by element: `fmla` takes one lane of a
register for all of another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from llvmlite import ir

from ..isa import BlockOrder, Isa, MicroKernel
from ..llvm_ir import F32, I8, I16, I32, Vectors, declare, load

__all__ = ["BF16_FMLA", "BF16_ROWS_OF_FOUR", "BYTES", "NEON", "lanes"]

BYTES = ir.VectorType(I8, 16)
_HALF_OF_BYTES, _HALVES, _FOUR_HALVES = ir.VectorType(I8, 8), ir.VectorType(I16, 8), ir.VectorType(I16, 4)

# Four columns of one k side by side, so that a shift left widens them, and then those of the next k.
BF16_ROWS_OF_FOUR = BlockOrder("[NR/4][KR][4]", lambda _nr, kr, r, j: (j // 4 * kr + r) * 4 + j % 4)


def _int8_place(nr: int, kr: int, r: int, j: int) -> int:
    """Pairs of k side by side: of eight columns the first and then the second, of four behind them both."""
    pair, k = divmod(r, 2)
    in_eights = nr // 8 * 8
    if j < in_eights:
        return j // 8 * 8 * kr + pair * 16 + j % 8 * 2 + k
    return in_eights * kr + pair * 8 + (j - in_eights) * 2 + k


def lanes(builder: ir.IRBuilder, vector: Any, chosen: list[int]) -> Any:
    """A vector of these lanes of another."""
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, len(chosen)), chosen))


def _bf16_load(builder: ir.IRBuilder, _vectors: Vectors, b: Any, v: int) -> Any:
    return load(builder, b, v * 16, _HALVES, 2)


def _bf16_column(builder: ir.IRBuilder, vectors: Vectors, raw: Any, k: int) -> Any:
    """shll or shll2."""
    words = builder.zext(lanes(builder, raw, [4 * k + j for j in range(4)]), vectors.words)
    return builder.bitcast(builder.shl(words, vectors.filled(16)), vectors.floats)


def _bf16_value(builder: ir.IRBuilder, _vectors: Vectors, a: Any, k: int) -> Any:
    return lanes(builder, load(builder, a, 0, ir.VectorType(F32, 2), 4), [k] * 4)


def _bf16_multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    fma = declare(builder, "llvm.fma.v4f32", vectors.floats, [vectors.floats] * 3)
    return builder.call(fma, [column, value, acc])


class _Half(NamedTuple):
    """Four columns of a pair of k: in a vector of bytes those from `first` on, which is 0 or 8."""

    vector: Any
    first: int

    def of(self, builder: ir.IRBuilder, vector: Any) -> Any:
        """The same half of another vector."""
        return lanes(builder, builder.bitcast(vector, BYTES), list(range(self.first, self.first + 8)))


def _int8_load(builder: ir.IRBuilder, _vectors: Vectors, b: Any, v: int) -> list[_Half]:
    """Of both pairs of k: v = 0 and 1 are the halves of two vectors of eight columns, v = 2 has both in one vector."""
    places, halves = ((0, 16), (8 * v, 8 * v)) if v < 2 else ((32, 32), (0, 8))
    return [_Half(load(builder, b, at, BYTES, 1), first) for at, first in zip(places, halves, strict=True)]


def _int8_value(builder: ir.IRBuilder, _vectors: Vectors, a: Any, _pass: int) -> tuple[Any, Any]:
    """The first pair everywhere, and the complement of the second, by dup.

    Both in one vector would take a tbl, which is three times as much for Cortex-A72.
    """
    pairs = _pairs(builder, a)
    return lanes(builder, pairs, [0] * 8), lanes(builder, builder.not_(pairs), [1] * 8)


def _int8_value_for_keys(builder: ir.IRBuilder, _vectors: Vectors, a: Any, _pass: int) -> tuple[Any, Any]:
    """Both pairs as they are: of keys the second one is packed as its complement."""
    pairs = _pairs(builder, a)
    return lanes(builder, pairs, [0] * 8), lanes(builder, pairs, [1] * 8)


def _pairs(builder: ir.IRBuilder, a: Any) -> Any:
    zeros, first = ir.Constant(ir.VectorType(I32, 4), None), ir.Constant(I32, 0)
    return builder.bitcast(builder.insert_element(zeros, load(builder, a, 0, I32, 1), first), _HALVES)


def _int8_multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """smull, smlsl and sadalp, or the same with upper halves: a0 * b0 - ~a1 * b1, which is a0 * b0 + a1 * b1 + b1.

    That fits int16 for all codes; two products of -128 and -128 would not, if they were added. Of plain vectors the
    lower and then the upper half is taken.
    """
    columns = column if isinstance(column, list) else [_Half(column, 0), _Half(column, 8)]
    values = value if isinstance(value, tuple) else (value, value)
    product = declare(builder, "llvm.aarch64.neon.smull.v8i16", _HALVES, [_HALF_OF_BYTES, _HALF_OF_BYTES])
    add_pairs = declare(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", vectors.words, [_HALVES])
    first, second = (
        builder.call(product, [half.of(builder, x) for x in (half.vector, pair)])
        for half, pair in zip(columns, values, strict=True)
    )
    return builder.add(acc, builder.call(add_pairs, [builder.sub(first, second)]))


BF16_FMLA = MicroKernel(
    "ukernel_bf16", is_int8=False, load=_bf16_load, value=_bf16_value, multiply=_bf16_multiply, column=_bf16_column,
    passes=2, order="rows",
)  # fmt: skip
_INT8_ORDER = BlockOrder("[8][2] of each pair of k, and [KR/2][4][2]", _int8_place)
_INT8 = MicroKernel(
    "ukernel_int8", is_int8=True, load=_int8_load, value=_int8_value, multiply=_int8_multiply, order="rows",
    surplus=(0, 0, 1, 1),
)  # fmt: skip

# 24 accumulators, 6 of B and a row of A fill 31 of 32 registers. In the order that LLVM takes for neoverse-v2 nothing
# else is needed at any time; in that for neoverse-n1, or for no CPU, a sum is stored and loaded again in each step.
NEON = Isa(
    "neon",
    lanes=4,
    mr=8,
    nr=12,
    kr_bf16=2,
    kr_int8=4,
    a_offset=0,
    a_int8_bytes=1,
    features=frozenset({"neon"}),
    tune="neoverse-v2",
    bf16_order=BF16_ROWS_OF_FOUR,
    int8_order=_INT8_ORDER,
    keys_order=replace(_INT8_ORDER, name=f"{_INT8_ORDER.name}, complements of second pairs", flips=(0, 0, -1, -1)),
    int8=_INT8,
    int8_keys=replace(_INT8, value=_int8_value_for_keys),
    bf16=BF16_FMLA,
)
