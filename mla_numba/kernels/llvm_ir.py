"""The words in which vector code is emitted: types of LLVM's IR, loads, splats, prefetches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

__all__ = [
    "AHEAD_L2_BYTES", "AHEAD_ONCE_BYTES", "F32", "I1", "I8", "I16", "I32", "I64", "IN_L1", "IN_L2", "ONCE", "POINTER",
    "BFloat", "Vectors", "add_attributes", "counted_loop", "declare",
    "internal_function", "load", "no_load_passes", "prefetch", "store",
]  # fmt: skip

# Where a prefetched line comes to, as LLVM numbers it. One that is wanted ONCE comes into L1, and on AMD no other cache
# keeps it afterwards, so that a stream of weights does not push everything else out of them.
ONCE, IN_L2, IN_L1 = 0, 2, 3
# How far ahead of the loads a stream is prefetched; see docs/performance.md
AHEAD_ONCE_BYTES = 8192
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


def internal_function(
    module: ir.Module, fnty: ir.FunctionType, name: str, attributes: Mapping[str, str] | None = None
) -> ir.Function:
    """A function that other modules may have too, compiled once in this one and never inlined.

    `attributes` are those of LLVM's that have a name and a value.
    """
    function = ir.Function(module, fnty, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    add_attributes(function, attributes or {})
    return function


def add_attributes(function: ir.Function, attributes: Mapping[str, str]) -> None:
    """Gives a function attributes of LLVM's that have a name and a value."""
    for key, value in attributes.items():
        set.add(function.attributes, f'"{key}"="{value}"')  # its own add knows none that have a value


def prefetch(builder: ir.IRBuilder, address: Any, n_bytes: int, locality: int, to_write: bool = False) -> None:
    """Asks for the cache lines from an address on, which need not be one that may be read: ONCE, IN_L2 or IN_L1.

    A line that is asked for `to_write` is taken from the caches of other cores.
    """
    fn = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32])
    of_data = (ir.Constant(I32, int(to_write)), ir.Constant(I32, locality), ir.Constant(I32, 1))
    for line in range(0, n_bytes, 64):
        builder.call(fn, [builder.gep(address, [ir.Constant(I64, line)]), *of_data])


def load(builder: ir.IRBuilder, base: Any, offset_bytes: int, kind: ir.Type, align: int) -> Any:
    """A `kind` from base + offset_bytes."""
    address = builder.gep(base, [ir.Constant(I64, offset_bytes)])
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=align)


def store(builder: ir.IRBuilder, value: Any, base: Any, offset_bytes: int) -> None:
    """A value to base + offset_bytes, which need not be aligned."""
    address = builder.gep(base, [ir.Constant(I64, offset_bytes)])
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=1)


def no_load_passes(builder: ir.IRBuilder) -> None:
    """LLVM moves no load from behind this place to before it; there is no instruction for that."""
    builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)


@dataclass(frozen=True)
class Vectors:
    """The vectors that hold a row of a register tile: `n` of `lanes` lanes of 32 bits."""

    lanes: int
    n: int

    @property
    def floats(self) -> ir.VectorType:
        """Lanes of float32."""
        return ir.VectorType(F32, self.lanes)

    @property
    def words(self) -> ir.VectorType:
        """Lanes of int32."""
        return ir.VectorType(I32, self.lanes)

    @property
    def halves(self) -> ir.VectorType:
        """Twice as many lanes of int16."""
        return ir.VectorType(I16, 2 * self.lanes)

    @property
    def pairs(self) -> ir.VectorType:
        """Twice as many lanes of bf16."""
        return ir.VectorType(BFloat(), 2 * self.lanes)

    def filled(self, word: int) -> ir.Constant:
        """Words that are all the same."""
        return ir.Constant(self.words, [word] * self.lanes)

    def splat(self, builder: ir.IRBuilder, scalar: Any) -> Any:
        """A scalar in all lanes."""
        empty = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        one = builder.insert_element(empty, scalar, ir.Constant(I32, 0))
        return builder.shuffle_vector(one, empty, ir.Constant(self.words, None))


def counted_loop(
    builder: ir.IRBuilder, n: Any, first: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Emits `body(number, values)` for each number below n, which is at least 1; gives the last one's values.

    `first` are the values of number 0, those of any other are what `body` made in the step before.
    """
    before = builder.block
    loop, done = (builder.append_basic_block(name) for name in ("loop", "done"))
    builder.branch(loop)
    builder.position_at_end(loop)
    number = builder.phi(I64)
    number.add_incoming(ir.Constant(I64, 0), before)
    held = [builder.phi(value.type) for value in first]
    made = body(number, list(held))
    following = builder.add(number, ir.Constant(I64, 1))
    number.add_incoming(following, builder.block)
    for phi, value, next_value in zip(held, first, made, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(next_value, builder.block)
    builder.cbranch(builder.icmp_unsigned("<", following, n), loop, done)
    builder.position_at_end(done)
    return made
