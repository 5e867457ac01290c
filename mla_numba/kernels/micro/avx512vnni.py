"""AVX-512 with VNNI: int8 products four k at once by vpdpbusd, bf16 ones by multiply-adds."""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from ..isa import Isa, MicroKernel
from ..llvm_ir import I8, I32, Vectors, declare, load
from .avx2 import AVX2
from .multiply_adds import bf16_multiply_adds

__all__ = ["AVX512VNNI", "INT8_VPDPBUSD"]


def dot_operand_type() -> ir.VectorType:
    """The operand type of vpdpbusd in this LLVM: bytes since LLVM 22, words before; LLVM itself is asked."""
    for text, kind in (("<64 x i8>", ir.VectorType(I8, 64)), ("<16 x i32>", ir.VectorType(I32, 16))):
        declaration = f"declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, {text}, {text})"
        try:
            llvm.parse_assembly(declaration).verify()
        except RuntimeError:
            continue
        return kind
    version = ".".join(map(str, llvm.llvm_version_info))
    raise RuntimeError(f"LLVM {version}: expected llvm.x86.avx512.vpdpbusd.512 on vectors of i8 or i32, got neither")


def _load(builder: ir.IRBuilder, vectors: Vectors, b: Any, v: int) -> Any:
    return load(builder, b, v * vectors.lanes * 4, dot_operand_type(), 1)


def _value(builder: ir.IRBuilder, vectors: Vectors, a: Any, _pass: int) -> Any:
    return vectors.splat(builder, load(builder, a, 0, I32, 1))


def _multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """vpdpbusd adds four u8 x s8 products to each int32 lane, without saturation."""
    operand = dot_operand_type()
    dot = declare(builder, "llvm.x86.avx512.vpdpbusd.512", vectors.words, [vectors.words, operand, operand])
    return builder.call(dot, [acc, builder.bitcast(value, operand), builder.bitcast(column, operand)])


INT8_VPDPBUSD = MicroKernel("ukernel_int8", is_int8=True, load=_load, value=_value, multiply=_multiply)

# vpdpbusd wants u8 x s8, hence the offset. Both halves of bf16 B are held apart; 12 rows spill then and take twice as
# long, 10 reach the peak.
AVX512VNNI = Isa(
    "avx512vnni",
    lanes=16,
    mr=10,
    nr=32,
    kr_bf16=2,
    kr_int8=4,
    a_offset=128,
    a_int8_bytes=1,
    features=AVX2.features | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"},
    int8=INT8_VPDPBUSD,
    bf16=bf16_multiply_adds(a_in_pairs=False),
)
