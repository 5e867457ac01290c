"""AVX2 with FMA: int8 products by vpmaddwd, bf16 ones by multiply-adds; a step of either takes one line of weights.

vpmaddwd takes int16. A sign extension of a weight's codes would be an instruction for 16 of them, and share its port
with additions. So two codes are one int16, and one shift for 32 codes is all that it takes (`MicroKernel.shifts`). Keys
of the lightning index, which are packed in each call, are sign-extended and so need no offset for each of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from llvmlite import ir

from ..isa import BY_COLUMN, BlockOrder, Isa, MicroKernel
from ..llvm_ir import I8, I32, Vectors, declare, load
from .multiply_adds import float_value, multiply_add

__all__ = ["AVX2", "INT8_BY_SHIFT", "Step", "halves_column", "halves_load", "of_step", "round_two"]

_WORDS_A_SIDE = 4  # vpunpck takes words from each half of a vector by itself


class Step(NamedTuple):
    """Vector v of a step of B at address b, loaded where it is multiplied: both passes at once would not fit."""

    b: Any
    v: int


def of_step(_builder: ir.IRBuilder, _vectors: Vectors, b: Any, v: int) -> Step:
    """A `MicroKernel.load` that leaves loading to `column`."""
    return Step(b, v)


def _bf16_place(nr: int, _kr: int, r: int, j: int) -> int:
    """A row of NR columns for each k. Quarters 1 and 2 of it have changed places, since vpunpck works within halves."""
    quarter, at = divmod(j, _WORDS_A_SIDE)
    return r * nr + _WORDS_A_SIDE * (0, 2, 1, 3)[quarter] + at


def _bf16_column(builder: ir.IRBuilder, vectors: Vectors, step: Step, k: int) -> Any:
    """The words of k as float32: words of zero come before them, by vpunpcklwd or vpunpckhwd."""
    n = 2 * vectors.lanes
    low = [*range(_WORDS_A_SIDE), *range(2 * _WORDS_A_SIDE, 3 * _WORDS_A_SIDE)]
    words = [word + step.v * _WORDS_A_SIDE for word in low]
    order = [ir.Constant(I32, at) for word in words for at in (word, n + word)]
    row = load(builder, step.b, k * n * 2, vectors.halves, 2)
    zero = ir.Constant(vectors.halves, None)
    widened = builder.shuffle_vector(zero, row, ir.Constant(ir.VectorType(I32, n), order))
    return builder.bitcast(widened, vectors.floats)


def _key_place(nr: int, _kr: int, r: int, j: int) -> int:
    """A row of NR pairs of k, and another behind it."""
    pair, k = divmod(r, 2)
    return pair * nr * 2 + j * 2 + k


def _key_column(builder: ir.IRBuilder, vectors: Vectors, step: Step, pair: int) -> Any:
    """Pairs of codes, widened to int16."""
    codes = ir.VectorType(I8, 2 * vectors.lanes)
    at = (pair * vectors.n + step.v) * vectors.lanes * 2
    return builder.sext(load(builder, step.b, at, codes, 1), vectors.halves)


def halves_load(builder: ir.IRBuilder, vectors: Vectors, b: Any, v: int) -> Any:
    """Codes of an even and an odd k as one int16."""
    return load(builder, b, v * vectors.lanes * 4, vectors.halves, 1)


def halves_column(builder: ir.IRBuilder, vectors: Vectors, halves: Any, odd: int) -> Any:
    """As they are, and then the codes of odd k by vpsraw."""
    return builder.ashr(halves, _halves_of(vectors, 8)) if odd else halves


def _halves_value(builder: ir.IRBuilder, vectors: Vectors, a: Any, odd: int) -> Any:
    return vectors.splat(builder, load(builder, a, odd * 4, I32, 2))


def _multiply_halves(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """vpmaddwd adds two int16 products in each int32 lane; vpmaddubsw would saturate."""
    halves = vectors.halves
    name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[vectors.lanes]
    madd = declare(builder, name, vectors.words, [halves, halves])
    return builder.add(acc, builder.call(madd, [builder.bitcast(value, halves), builder.bitcast(column, halves)]))


def round_two(builder: ir.IRBuilder, vectors: Vectors, low: Any, high: Any) -> Any:
    """Ties to even, a NaN becomes a quiet one: upon halves of both vectors side by side, which are then put in order.

    The upper half is one more where the lower one is above 0x8000, or equal and the upper one odd.
    """
    first, second = (builder.bitcast(value, vectors.words) for value in (low, high))
    above = vectors.filled(16)
    upper = _alternating(builder, vectors, builder.lshr(first, above), second)
    lower = _alternating(builder, vectors, first, builder.shl(second, above))
    even = builder.and_(builder.not_(upper), _halves_of(vectors, 1))
    less = declare(builder, f"llvm.usub.sat.v{2 * vectors.lanes}i16", vectors.halves, [vectors.halves] * 2)
    carry = builder.lshr(builder.call(less, [lower, even]), _halves_of(vectors, 15))
    masks = [builder.sext(builder.fcmp_unordered("uno", v, v), vectors.words) for v in (low, high)]
    nan = builder.icmp_signed("<", _alternating(builder, vectors, *masks), _halves_of(vectors, 0))
    quiet = builder.or_(upper, _halves_of(vectors, 0x40))
    rounded = builder.select(nan, quiet, builder.add(upper, carry))
    n = 2 * vectors.lanes
    in_order = ir.Constant(ir.VectorType(I32, n), [*range(0, n, 2), *range(1, n, 2)])
    return builder.shuffle_vector(rounded, rounded, in_order)


def _alternating(builder: ir.IRBuilder, vectors: Vectors, first: Any, second: Any) -> Any:
    """The lower halves of a vector's words, between them the upper ones of another's: vpblendw."""
    n = 2 * vectors.lanes
    chosen = ir.Constant(ir.VectorType(I32, n), [j + j % 2 * n for j in range(n)])
    first, second = (builder.bitcast(value, vectors.halves) for value in (first, second))
    return builder.shuffle_vector(first, second, chosen)


def _halves_of(vectors: Vectors, value: int) -> Any:
    return ir.Constant(vectors.halves, [value] * (2 * vectors.lanes))


_BF16 = MicroKernel(
    "ukernel_bf16", is_int8=False, load=of_step, value=float_value, multiply=multiply_add, column=_bf16_column,
    passes=2, two_panels=3, round_two=round_two,
)  # fmt: skip
INT8_BY_SHIFT = MicroKernel(
    "ukernel_int8", is_int8=True, load=halves_load, value=_halves_value, multiply=_multiply_halves,
    column=halves_column, passes=2, surplus=(0, -128, 0, -128), shifts=True, round_two=round_two,
)  # fmt: skip
_BY_EXTENSION = MicroKernel(
    "ukernel_int8", is_int8=True, load=of_step, value=_halves_value, multiply=_multiply_halves, column=_key_column,
    passes=2,
)  # fmt: skip

# 12 accumulators, 2 of B, a broadcast, and a zero or a product fill the 16 registers. Code for a CPU that has more
# registers, or multiplies and adds int16 in one, would not show what runs on those that choose this.
AVX2 = Isa(
    "avx2",
    lanes=8,
    mr=6,
    nr=16,
    kr_bf16=2,
    kr_int8=4,
    a_offset=0,
    a_int8_bytes=2,
    features=frozenset({"avx2", "fma"}),
    tune="znver3",
    bf16_order=BlockOrder("[KR][NR] for vpunpck", _bf16_place),
    int8_order=replace(BY_COLUMN, name="[NR][KR], even k + 128", flips=(-128, 0, -128, 0)),
    keys_order=BlockOrder("[KR / 2][NR][2]", _key_place),
    int8=INT8_BY_SHIFT,
    int8_keys=_BY_EXTENSION,
    bf16=_BF16,
)
