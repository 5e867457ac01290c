"""AVX-512 with VNNI and BF16: bf16 products two k at once by vdpbf16ps, int8 ones as without BF16."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..isa import Isa, MicroKernel
from ..llvm_ir import I32, Vectors, declare, load
from .avx512vnni import AVX512VNNI
from .multiply_adds import bf16_multiply_adds
from .vpdpbusd import INT8_VPDPBUSD, KEYS_BY_VPDPBUSD, KEYS_WITHOUT_SIGN

__all__ = ["AVX512BF16", "BF16_VDPBF16PS"]


def _load(builder: ir.IRBuilder, vectors: Vectors, b: Any, v: int) -> Any:
    return load(builder, b, v * vectors.lanes * 4, vectors.pairs, 4)


def _value(builder: ir.IRBuilder, vectors: Vectors, a: Any, _pass: int) -> Any:
    return vectors.splat(builder, load(builder, a, 0, I32, 4))


def _multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """vdpbf16ps adds the second pair's product to each float32 lane, rounds, then the first's, and rounds."""
    pairs = vectors.pairs
    dot = declare(builder, "llvm.x86.avx512bf16.dpbf16ps.512", vectors.floats, [vectors.floats, pairs, pairs])
    return builder.call(dot, [acc, builder.bitcast(value, pairs), builder.bitcast(column, pairs)])


def _round_two(builder: ir.IRBuilder, vectors: Vectors, low: Any, high: Any) -> Any:
    """vcvtne2ps2bf16 flushes subnormal numbers."""
    kinds = [vectors.floats, vectors.floats]
    convert = declare(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", vectors.pairs, kinds)
    return builder.call(convert, [high, low])


BF16_VDPBF16PS = MicroKernel(
    "ukernel_bf16", is_int8=False, load=_load, value=_value, multiply=_multiply, round_two=_round_two
)

# 24 accumulators, 2 of B and a broadcast fill 27 of 32 registers.
AVX512BF16 = Isa(
    "avx512bf16",
    lanes=16,
    mr=12,
    nr=32,
    kr_bf16=2,
    kr_int8=4,
    a_offset=128,
    a_int8_bytes=1,
    features=AVX512VNNI.features | {"avx512bf16"},
    bf16_dot=True,
    int8=INT8_VPDPBUSD,
    int8_keys=KEYS_BY_VPDPBUSD,
    keys_order=KEYS_WITHOUT_SIGN,
    bf16=BF16_VDPBF16PS,
    bf16_subnormal=bf16_multiply_adds(a_in_pairs=True),
)
