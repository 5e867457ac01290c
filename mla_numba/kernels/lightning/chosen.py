"""Vector code that keeps, of ranks in a row, those within bounds.

    append(more, n, first, end, ranks, at) -> how many ranks there are then

Of a vector those that stay move together, by an instruction that only AVX-512 has, and are stored without a branch.
One comparison does for both bounds: what is below `first` wraps around when that is taken off.
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
        module, ir.FunctionType(I64, [POINTER, I64, I64, I64, POINTER, I64]), name
    )


def define_append(module: ir.Module, isa: Isa) -> None:
    """`append`, defined in a module."""
    function = declare_append(module, isa)
    add_attributes(function, isa.attributes)
    more, n, first, end, ranks, at = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    pointer = _RANKS.as_pointer()
    read = declare(builder, "llvm.masked.load.v8i64.p0", _RANKS, [pointer, I32, _MASK, _RANKS])
    write = declare(builder, "llvm.masked.store.v8i64.p0", ir.VoidType(), [_RANKS, pointer, I32, _MASK])
    compress = declare(builder, "llvm.x86.avx512.mask.compress.v8i64", _RANKS, [_RANKS, _RANKS, _MASK])
    count = declare(builder, "llvm.ctpop.i8", I8, [I8])
    nothing, unaligned, lanes = ir.Constant(_RANKS, None), ir.Constant(I32, 8), ir.Constant(I64, _LANES)
    lowest, reach = (_VECTOR.splat(builder, each) for each in (first, builder.sub(end, first)))

    def append(number: Any, there: Any, at: Any) -> Any:
        """Those of a vector of `more`, or of its elements that are there."""
        values = builder.call(read, [_at(builder, more, builder.mul(number, lanes)), unaligned, there, nothing])
        kept = builder.and_(there, builder.icmp_unsigned("<", builder.sub(values, lowest), reach))
        n_kept = builder.zext(builder.call(count, [builder.bitcast(kept, I8)]), I64)
        together = builder.call(compress, [values, nothing, kept])
        builder.call(write, [together, _at(builder, ranks, at), unaligned, _below(builder, n_kept)])
        return builder.add(at, n_kept)

    every = ir.Constant(_MASK, [1] * _LANES)
    n_whole, begin = builder.udiv(n, lanes), builder.block
    with builder.if_then(builder.icmp_unsigned(">", n_whole, ir.Constant(I64, 0))):
        whole = counted_loop(builder, n_whole, [at], lambda number, held: [append(number, every, held[0])])[0]
        looped = builder.block
    after = builder.phi(I64)
    after.add_incoming(at, begin)
    after.add_incoming(whole, looped)
    rest = builder.urem(n, lanes)
    with builder.if_then(builder.icmp_unsigned(">", rest, ir.Constant(I64, 0))):
        builder.ret(append(n_whole, _below(builder, rest), after))
    builder.ret(after)


def _below(builder: ir.IRBuilder, n: Any) -> Any:
    """The first n lanes, or all."""
    return builder.icmp_signed("<", ir.Constant(_RANKS, list(range(_LANES))), _VECTOR.splat(builder, n))


def _at(builder: ir.IRBuilder, base: Any, place: Any) -> Any:
    """Where a vector lies that begins with rank `place`."""
    address = builder.gep(base, [builder.mul(place, ir.Constant(I64, 8))])
    return builder.bitcast(address, _RANKS.as_pointer())
