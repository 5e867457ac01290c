"""int8 products four k at once by vpdpbusd, on vectors of any length."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from ..isa import BY_COLUMN, MicroKernel
from ..llvm_ir import I8, I32, Vectors, declare, load

__all__ = ["INT8_VPDPBUSD", "KEYS_BY_VPDPBUSD", "KEYS_WITHOUT_SIGN"]


@functools.cache
def _takes_bytes() -> bool:
    """Whether vpdpbusd's operands are bytes in this LLVM, as since 22, or words, as before; LLVM itself is asked."""
    for bytes_, kind in ((True, "<64 x i8>"), (False, "<16 x i32>")):
        declaration = f"declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, {kind}, {kind})"
        try:
            llvm.parse_assembly(declaration).verify()
        except RuntimeError:
            continue
        return bytes_
    version = ".".join(map(str, llvm.llvm_version_info))
    raise RuntimeError(f"LLVM {version}: expected llvm.x86.avx512.vpdpbusd.512 on vectors of i8 or i32, got neither")


def _operand_type(vectors: Vectors) -> ir.VectorType:
    return ir.VectorType(I8, 4 * vectors.lanes) if _takes_bytes() else vectors.words


def _load(builder: ir.IRBuilder, vectors: Vectors, b: Any, v: int) -> Any:
    return load(builder, b, v * vectors.lanes * 4, _operand_type(vectors), 1)


def _value(builder: ir.IRBuilder, vectors: Vectors, a: Any, _pass: int) -> Any:
    return vectors.splat(builder, load(builder, a, 0, I32, 1))


def _multiply(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """vpdpbusd adds four u8 x s8 products to each int32 lane, without saturation."""
    operand = _operand_type(vectors)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * vectors.lanes}"  # that of 256 bits is AVX-VNNI's, too
    dot = declare(builder, name, vectors.words, [vectors.words, operand, operand])
    return builder.call(dot, [acc, builder.bitcast(value, operand), builder.bitcast(column, operand)])


def _multiply_keys(builder: ir.IRBuilder, vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    """The same with a column without sign."""
    return _multiply(builder, vectors, acc, column, value)


INT8_VPDPBUSD = MicroKernel("ukernel_int8", is_int8=True, load=_load, value=_value, multiply=_multiply)

# A flipped sign bit makes a code + 128.
KEYS_BY_VPDPBUSD = replace(INT8_VPDPBUSD, multiply=_multiply_keys, surplus=(128,) * 4)
KEYS_WITHOUT_SIGN = replace(BY_COLUMN, name="[NR][KR], all k + 128", flips=(-128,) * 4)
