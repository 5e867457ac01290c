"""What an instruction set is to the kernels: a register tile, and the ways in which it multiplies.

Each is a file in `micro`; `micro.table` has all of them, and chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from llvmlite import ir

from .kinds import Int64
from .llvm_ir import Vectors

__all__ = ["BY_COLUMN", "BY_COLUMN_REVERSED", "BlockOrder", "Isa", "MicroKernel"]


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """Where a packed weight holds step r of k of column j, in a block of KR steps of NR columns.

    `place(nr, kr, r, j)` counts elements from the block's begin. Of codes the bits `flips[r]`, if any, are flipped. The
    name is part of a packed file.
    """

    name: str
    place: Callable[[int, int, int, int], int] = field(repr=False)
    flips: tuple[int, ...] = ()


BY_COLUMN = BlockOrder("[NR][KR]", lambda _nr, kr, r, j: j * kr + r)
BY_COLUMN_REVERSED = BlockOrder("[NR][KR] last k first", lambda _nr, kr, r, j: j * kr + kr - 1 - r)


@dataclass(frozen=True)
class MicroKernel:
    """One way to multiply a register tile of A by a panel of B, KR steps of k at a time, as the emitter asks for it.

    `load(builder, vectors, b, v)` gives vector v of a step of B at address b, widened where that is done once, as
    `column` takes it.
    A step is `passes` passes over the rows of A. In pass p, `value(builder, vectors, a, p)` gives what the row at
    address a is multiplied by, in all lanes, `column(builder, vectors, loaded, p)` a vector of B, and
    `multiply(builder, vectors, acc, value, column)` the accumulator after their product.

    `order` says which of these is the outermost loop: "passes" holds the columns of one pass in registers, "rows" those
    of all passes, "columns" the values of all rows. LLVM then moves instructions, but not far.

    An instruction may multiply `square` rows by as many columns at once. An accumulator then holds a square of sums,
    one row of it behind the other, and a step loads `square` times as many vectors of B. `value` is then given a list
    of rows' addresses; of an odd number of rows the last list has one.

    Tiles of at most `two_panels` rows, if any, may take two panels at once: so few rows have fewer sums than hide the
    latency of a multiply-add.

    An int8 one may multiply by more than the code: in step r of KR by code + `surplus[r]`, if there are any. The offset
    of a column takes that off again (`Isa.surplus`). One of `Isa.int8_keys` takes A's codes as they are and more than
    B's, by the bits that are flipped in them (`BlockOrder`). There the offset of a row takes that off.

    With `shifts`, an int8 one takes B's codes of an even and an odd k as one int16, 256*b1 + b0 + 128, of which a shift
    leaves b1. A has a0 for the one and a1 - 256*a0 - 128 for the other, which fit int16 for all codes: of a step of KR
    first those of all even k, and then the others. Their products are a0*b0 + a1*b1 and 128*a0 - 128*b1. The surplus of
    odd k is -128, and the sums of a row begin with -128 times its a0, an int32 that ends where the next row begins.

    `round_two(builder, vectors, low, high)` rounds two vectors of sums to one of bf16 at once, if there is a way that
    is right where no sum is subnormal: such a microkernel is used for no others.
    """

    name: str
    is_int8: bool
    load: Callable[[ir.IRBuilder, Vectors, Any, int], Any]
    value: Callable[[ir.IRBuilder, Vectors, Any, int], Any]
    multiply: Callable[[ir.IRBuilder, Vectors, Any, Any, Any], Any]
    column: Callable[[ir.IRBuilder, Vectors, Any, int], Any] = lambda _builder, _vectors, loaded, _pass: loaded
    passes: int = 1
    order: Literal["passes", "rows", "columns"] = "passes"
    square: int = 1
    two_panels: int = 0
    surplus: tuple[int, ...] = ()
    shifts: bool = False
    round_two: Callable[[ir.IRBuilder, Vectors, Any, Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set and its register tile.

    A tile holds `mr` rows of `nr` columns; a packed weight interleaves `kr_bf16` or `kr_int8` steps of k, in the order
    `bf16_order` or `int8_order`. An int8 activation is stored as `code + a_offset` in elements of `a_int8_bytes` bytes
    (or as `MicroKernel.shifts` says), a bf16 one as float32 or, with `bf16_dot`, as it is, in pairs like the weight.

    `features` are what a CPU must have, by LLVM's names. `int8` and `bf16` are how it multiplies, `bf16_subnormal` how
    it does where sums may be subnormal, if otherwise, and `int8_keys` how the lightning index does, whose B is in the
    order `keys_order`, if otherwise; of plain loops all are None. With `tune`, a name of LLVM's, their code is made of
    these features and in the order that suits that CPU, whatever CPU it is compiled for: so it is known what runs on
    CPUs that are not at hand.
    """

    name: str
    lanes: int
    mr: int
    nr: int
    kr_bf16: int
    kr_int8: int
    a_offset: int
    a_int8_bytes: int
    features: frozenset[str]
    bf16_dot: bool = False
    tune: str = ""
    bf16_order: BlockOrder = BY_COLUMN_REVERSED
    int8_order: BlockOrder = BY_COLUMN
    keys_order: BlockOrder | None = None
    int8: MicroKernel | None = field(default=None, repr=False)
    int8_keys: MicroKernel | None = field(default=None, repr=False)
    bf16: MicroKernel | None = field(default=None, repr=False)
    bf16_subnormal: MicroKernel | None = field(default=None, repr=False)

    @property
    def a_bf16_bytes(self) -> int:
        """Bytes of a packed bf16 activation."""
        return 2 if self.bf16_dot else 4

    @property
    def facts(self) -> dict[str, str | int | bool]:
        """Its name and its numbers, by field: what is neither a set of names nor a way to multiply."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, (str, int))}

    @property
    def vectors(self) -> Vectors:
        """The vectors of a row of the register tile."""
        return Vectors(self.lanes, self.nr // self.lanes)

    @property
    def surplus(self) -> tuple[int, ...]:
        """What each of KR steps of int8 products adds to the codes of A: `a_offset`, and the microkernel's own."""
        of_kernel = self.int8.surplus if self.int8 else ()
        return tuple(self.a_offset + surplus for surplus in of_kernel or (0,) * self.kr_int8)

    @property
    def a_int8_begin(self) -> int:
        """Elements at the end of a row of int8 activations that hold what its sums begin with, see `MicroKernel`."""
        return 4 // self.a_int8_bytes if self.int8 and self.int8.shifts else 0

    @property
    def of_keys(self) -> Isa:
        """The same with the lightning index's int8 products as its own: of queries, as they are, and keys.

        Its `surplus` is what they add to the codes of keys.
        """
        order, int8 = self.keys_order or self.int8_order, self.int8_keys or self.int8
        return replace(self, int8=int8, int8_order=order, a_offset=0)

    def places(self, is_int8: bool) -> Int64:
        """`BlockOrder.place` of every element, (KR, NR) int64."""
        kr, order = (self.kr_int8, self.int8_order) if is_int8 else (self.kr_bf16, self.bf16_order)
        places = [[order.place(self.nr, kr, r, j) for j in range(self.nr)] for r in range(kr)]
        return np.array(places, np.int64)

    def flips(self, is_int8: bool) -> Int64:
        """The bits that are flipped in the elements of each step of KR, (KR,) int64, see `BlockOrder`."""
        kr, order = (self.kr_int8, self.int8_order) if is_int8 else (self.kr_bf16, self.bf16_order)
        return np.array(order.flips or (0,) * kr, np.int64)

    @property
    def attributes(self) -> dict[str, str]:
        """What LLVM is told of every function that has vector code, by LLVM's names; nothing without `tune`."""
        if not self.tune:
            return {}
        features = ",".join(f"+{name}" for name in sorted(self.features))
        return {"target-cpu": "generic", "tune-cpu": self.tune, "target-features": features}

    def kr(self, kernel: MicroKernel) -> int:
        """Steps of k that a packed weight interleaves for a microkernel."""
        return self.kr_int8 if kernel.is_int8 else self.kr_bf16

    def a_bytes(self, kernel: MicroKernel) -> int:
        """Bytes of a row of A that a step of KR takes."""
        return self.kr(kernel) * (self.a_int8_bytes if kernel.is_int8 else self.a_bf16_bytes)

    def b_bytes(self, kernel: MicroKernel) -> int:
        """Bytes of B that a step of KR takes."""
        return self.nr * self.kr(kernel) * (1 if kernel.is_int8 else 2)
