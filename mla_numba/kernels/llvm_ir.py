"""The words in which vector code is emitted: types of LLVM's IR, loads, splats, prefetches."""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from .isa import ISA

__all__ = [
    "AHEAD_L2_BYTES", "AHEAD_ONCE_BYTES", "F32", "I1", "I8", "I16", "I32", "I64", "IN_L1", "IN_L2", "LANES", "ONCE",
    "POINTER", "BFloat", "declare", "dot_operand_type", "internal_function", "load", "prefetch", "splat",
]  # fmt: skip

LANES = ISA.lanes
# Where a prefetched line comes to, as LLVM numbers it. One that is wanted ONCE comes into L1, and on AMD no other cache
# keeps it afterwards, so that a stream of weights does not push everything else out of them.
ONCE, IN_L2, IN_L1 = 0, 2, 3
# How far ahead of the loads a stream is prefetched; see docs/performance.md
AHEAD_ONCE_BYTES = 4096
AHEAD_L2_BYTES = 6144

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
POINTER = I8.as_pointer()


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite.ir lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


def declare(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    """An intrinsic of LLVM, known to the builder's module from now on."""
    existing = builder.module.globals.get(name)
    return existing or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def internal_function(module: ir.Module, fnty: ir.FunctionType, name: str) -> ir.Function:
    """A function that other modules may have too, compiled once in this one and never inlined."""
    function = ir.Function(module, fnty, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    return function


def prefetch(builder: ir.IRBuilder, address: Any, n_bytes: int, locality: int) -> None:
    """Asks for the cache lines from an address on, which need not be one that may be read: ONCE, IN_L2 or IN_L1."""
    fn = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32])
    a_read_of_data = (ir.Constant(I32, 0), ir.Constant(I32, locality), ir.Constant(I32, 1))
    for line in range(0, n_bytes, 64):
        builder.call(fn, [builder.gep(address, [ir.Constant(I64, line)]), *a_read_of_data])


def load(builder: ir.IRBuilder, base: Any, offset_bytes: int, kind: ir.Type, align: int) -> Any:
    """A `kind` from base + offset_bytes."""
    address = builder.gep(base, [ir.Constant(I64, offset_bytes)])
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=align)


def splat(builder: ir.IRBuilder, scalar: Any) -> Any:
    """A vector of LANES times a scalar."""
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, LANES), None))


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
