"""AVX2 with FMA: int8 products two k at once by vpmaddwd, bf16 ones by multiply-adds."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..isa import Isa, MicroKernel
from ..llvm_ir import I8, I32, Vectors, declare, load
from .multiply_adds import bf16_multiply_adds

__all__ = ["AVX2"]


def _load(builder: ir.IRBuilder, vectors: Vectors, b: Any, v: int) -> Any:
    codes = ir.VectorType(I8, 2 * vectors.lanes)
    return builder.sext(load(builder, b, v * vectors.lanes * 2, codes, 1), vectors.halves)


def _value(builder: ir.IRBuilder, vectors: Vectors, a: Any, _pass: int) -> Any:
    return vectors.splat(builder, load(builder, a, 0, I32, 2))


def _multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """vpmaddwd adds two int16 products in each int32 lane; vpmaddubsw would saturate."""
    halves = vectors.halves
    madd = declare(builder, "llvm.x86.avx2.pmadd.wd", vectors.words, [halves, halves])
    return builder.add(acc, builder.call(madd, [builder.bitcast(value, halves), builder.bitcast(column, halves)]))


# 12 accumulators, 2 of B and a broadcast fill 15 of 16 registers; vpmaddwd takes pairs of int16.
AVX2 = Isa(
    "avx2",
    lanes=8,
    mr=6,
    nr=16,
    kr_bf16=2,
    kr_int8=2,
    a_offset=0,
    a_int8_bytes=2,
    features=frozenset({"avx2", "fma"}),
    int8=MicroKernel("ukernel_int8", is_int8=True, load=_load, value=_value, multiply=_multiply),
    bf16=bf16_multiply_adds(a_in_pairs=False),
)
