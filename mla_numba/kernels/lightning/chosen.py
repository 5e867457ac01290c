"""Vector code that keeps, of ranks in a row, those that are not worse than a bound.

    append(more, n, worst, ranks, at) -> how many ranks there are then

Of a vector those that stay move together, by an instruction that only AVX-512 has, and are stored without a branch.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..isa import Isa
from ..llvm_ir import I1, I8, I32, I64, POINTER, Vectors, add_attributes, counted_loop, declare

__all__ = ["can_append", "declare_append", "define_append"]

_LANES = 8
_VECTOR = Vectors(_LANES, 1)
_RANKS, _MASK = ir.VectorType(I64, _LANES), ir.VectorType(I1, _LANES)


def can_append(isa: Isa) -> bool:
    """Whether an instruction set has what this takes."""
    return isa.lanes * 4 == _LANES * 8


def declare_append(module: ir.Module, isa: Isa) -> ir.Function:
    """`append`, as it is known to who calls it."""
    name = f"mla_numba_append_{isa.name}"
    return module.globals.get(name) or ir.Function(
        module, ir.FunctionType(I64, [POINTER, I64, I64, POINTER, I64]), name
    )


def define_append(module: ir.Module, isa: Isa) -> None:
    """`append`, defined in a module."""
    function = declare_append(module, isa)
    add_attributes(function, isa.attributes)
    more, n, worst, ranks, at = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    with builder.if_then(builder.icmp_signed("<=", n, ir.Constant(I64, 0))):
        builder.ret(at)
    pointer = _RANKS.as_pointer()
    read = declare(builder, "llvm.masked.load.v8i64.p0", _RANKS, [pointer, I32, _MASK, _RANKS])
    write = declare(builder, "llvm.masked.store.v8i64.p0", ir.VoidType(), [_RANKS, pointer, I32, _MASK])
    compress = declare(builder, "llvm.x86.avx512.mask.compress.v8i64", _RANKS, [_RANKS, _RANKS, _MASK])
    count = declare(builder, "llvm.ctpop.i8", I8, [I8])
    nothing, unaligned = ir.Constant(_RANKS, None), ir.Constant(I32, 8)
    bound = _VECTOR.splat(builder, worst)

    def some(number: Any, held: list[Any]) -> list[Any]:
        first = builder.mul(number, ir.Constant(I64, _LANES))
        there = _below(builder, builder.sub(n, first))
        values = builder.call(read, [_at(builder, more, first), unaligned, there, nothing])
        kept = builder.and_(there, builder.icmp_unsigned("<=", values, bound))
        n_kept = builder.zext(builder.call(count, [builder.bitcast(kept, I8)]), I64)
        together = builder.call(compress, [values, nothing, kept])
        builder.call(write, [together, _at(builder, ranks, held[0]), unaligned, _below(builder, n_kept)])
        return [builder.add(held[0], n_kept)]

    n_vectors = builder.udiv(builder.add(n, ir.Constant(I64, _LANES - 1)), ir.Constant(I64, _LANES))
    builder.ret(counted_loop(builder, n_vectors, [at], some)[0])


def _below(builder: ir.IRBuilder, n: Any) -> Any:
    """The first n lanes, or all."""
    return builder.icmp_signed("<", ir.Constant(_RANKS, list(range(_LANES))), _VECTOR.splat(builder, n))


def _at(builder: ir.IRBuilder, base: Any, number: Any) -> Any:
    address = builder.gep(base, [builder.mul(number, ir.Constant(I64, 8))])
    return builder.bitcast(address, _RANKS.as_pointer())
