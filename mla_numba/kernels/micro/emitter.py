"""The microkernels' vector code: for each row count a loop over k that keeps its tile of C in registers.

    f(mr, steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset)

See `ukernel` for what it computes. The instruction set is an argument, so that the code for any can be made, and looked
at, on any machine. Here lda, a_step, ahead_step and ldy count bytes. a_step, what a step of KR takes of a row, is
always the same; but where LLVM sees that, it keeps a pointer to each row and moves all of them in each step, which
takes half as long again (see also `RowDistances`). Where y is null the sums go to c, else, as bf16, to y. In step s
the lines at ahead + s*ahead_step and behind it are prefetched; locality is ONCE, IN_L2 or IN_L1 of `llvm_ir`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

from llvmlite import ir

from ..isa import Isa, MicroKernel
from ..llvm_ir import (
    F32,
    I1,
    I16,
    I64,
    IN_L1,
    IN_L2,
    ONCE,
    POINTER,
    Vectors,
    counted_loop,
    internal_function,
    load,
    no_load_passes,
    prefetch,
)
from .step import multiply, rows_of, squares_of, sums_begin

__all__ = ["RowDistances", "TileFunction"]


class TileFunction(NamedTuple):
    """`f(mr, ...)` of this file's head: a microkernel of an instruction set that stores y as `store`, I16 or F32.

    Of two `panels`, f takes the second's distance from b and that of its sums from c, too; its columns of y follow.
    """

    isa: Isa
    kernel: MicroKernel
    store: ir.Type
    panels: int = 1

    @property
    def vectors(self) -> Vectors:
        """The vectors of a row of the register tile."""
        return self.isa.vectors

    @property
    def name(self) -> str:
        """The function's name."""
        return f"mla_numba_{self.kernel.name}_{self.isa.name}_{self.store}{'_two' * (self.panels - 1)}"

    @property
    def most_rows(self) -> int:
        """Rows that it takes at most."""
        return self.isa.mr if self.panels == 1 else self.kernel.two_panels

    @property
    def arguments(self) -> list[ir.Type]:
        """The types of its arguments but the first."""
        return [*_ARGUMENTS, *[I64] * (2 * (self.panels - 1))]

    def declared(self, module: ir.Module) -> ir.Function:
        """The function as it is known to who calls it; see `library` on where it is."""
        existing = module.globals.get(self.name)
        return existing or ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, *self.arguments]), self.name)

    def define(self, module: ir.Module, by_row: bool = False) -> ir.Function:
        """The function, defined in a module.

        With `by_row`, each row by itself: for what is rare, so that there is one loop over k to compile, not MR.
        """
        function = self.declared(module)
        (_define_loop_over_rows if by_row else _define_switch)(self, function)
        return function


# steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset
_ARGUMENTS = [
    I64, POINTER, I64, I64, POINTER, POINTER, I64, I64, POINTER, I1, POINTER, I64, POINTER, POINTER, POINTER
]  # fmt: skip


def _define_switch(tile: TileFunction, function: ir.Function) -> None:
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    out = function.append_basic_block("out")
    switch = builder.switch(function.args[0], out)
    for mr in range(1, tile.most_rows + 1):
        block = function.append_basic_block(f"rows{mr}")
        switch.add_case(ir.Constant(I64, mr), block)
        builder.position_at_end(block)
        builder.call(_rows_function(tile, function, mr), function.args[1:])
        builder.branch(out)
    builder.position_at_end(out)
    builder.ret_void()


def _define_loop_over_rows(tile: TileFunction, function: ir.Function) -> None:
    of_one_row = _rows_function(tile, function, 1)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    mr, steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset = (
        function.args
    )
    stores = builder.icmp_unsigned("!=", y, ir.Constant(POINTER, None))

    def one_row(row: Any, _values: list[Any]) -> list[Any]:
        a_here = builder.gep(a, [builder.mul(row, lda)])
        c_here = builder.gep(c, [builder.mul(row, ir.Constant(I64, tile.isa.nr * 4))])
        y_here = builder.select(stores, builder.gep(y, [builder.mul(row, ldy)]), y)
        scale_here = builder.gep(row_scale, [builder.mul(row, ir.Constant(I64, 4))])
        operands = [steps, a_here, lda, a_step, b, ahead, ahead_step, locality, c_here, carry, y_here, ldy, scale_here]
        builder.call(of_one_row, [*operands, col_scale, offset])
        return []

    counted_loop(builder, mr, [], one_row)
    builder.ret_void()


def _rows_function(tile: TileFunction, parent: ir.Function, mr: int) -> ir.Function:
    """The loop over k for exactly `mr` rows, whose accumulators stay in registers from the first step to the last."""
    isa, kernel, vectors = tile.isa, tile.kernel, tile.vectors
    fnty = ir.FunctionType(ir.VoidType(), tile.arguments)
    function = internal_function(parent.module, fnty, f"{parent.name}_{mr}", isa.attributes)
    steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y = function.args[:11]
    b_step, c_step = function.args[15:] or (None, None)
    names = ("entry", "load", "fresh", "begin", "keep", "finish")
    entry, load_c, fresh, begin, keep, finish = (function.append_basic_block(s) for s in names)
    builder = ir.IRBuilder(entry)
    vector = vectors.words if kernel.is_int8 else vectors.floats
    c_at = [_vectors_at(builder, at, vector, mr * vectors.n) for at in _panels_at(builder, tile, c, c_step)]
    distances = RowDistances(builder, lda, mr)
    builder.cbranch(carry, load_c, fresh)
    builder.position_at_end(load_c)
    held = [squares_of(builder, kernel, vectors, [builder.load(p, align=4) for p in panel]) for panel in c_at]
    builder.branch(begin)
    builder.position_at_end(fresh)
    begins = sums_begin(builder, kernel, vectors, a, lda, mr)
    of_panel = squares_of(builder, kernel, vectors, [value for value in begins for _ in range(vectors.n)])
    builder.branch(begin)
    builder.position_at_end(begin)
    first = []
    for new, old in zip(of_panel * tile.panels, chain(*held), strict=True):
        first.append(builder.phi(vector))
        first[-1].add_incoming(new, fresh)
        first[-1].add_incoming(old, load_c)

    def step_of_k(step: Any, acc: list[Any]) -> list[Any]:
        b_here = builder.gep(b, [builder.mul(step, ir.Constant(I64, isa.b_bytes(kernel)))])
        ahead_here = builder.gep(ahead, [builder.mul(step, ahead_step)])
        for at in _panels_at(builder, tile, ahead_here, b_step):
            _prefetch(builder, at, isa.b_bytes(kernel), locality)
        rows = distances.rows(builder, builder.gep(a, [builder.mul(step, a_step)]))
        made: list[Any] = []
        for panel, at in zip(_parts(acc, tile.panels), _panels_at(builder, tile, b_here, b_step), strict=True):
            if made:
                no_load_passes(builder)  # as between the passes of `multiply`
            made += multiply(builder, kernel, vectors, rows, at, panel)
        return made

    made = _parts(counted_loop(builder, steps, first, step_of_k), tile.panels)
    sums = [rows_of(builder, kernel, vectors, panel, mr) for panel in made]
    builder.cbranch(builder.icmp_unsigned("==", y, ir.Constant(POINTER, None)), keep, finish)
    builder.position_at_end(keep)
    for value, p in zip(chain(*sums), chain(*c_at), strict=True):
        builder.store(value, p, align=4)
    builder.ret_void()
    builder.position_at_end(finish)
    for i, panel in enumerate(sums):
        _finish(builder, tile, panel, function.args[10:15], i)
    builder.ret_void()
    return function


def _parts(values: list[Any], n: int) -> list[list[Any]]:
    """A list in n equal parts."""
    size = len(values) // n
    return [values[i * size : (i + 1) * size] for i in range(n)]


def _panels_at(builder: ir.IRBuilder, tile: TileFunction, first: Any, step: Any) -> list[Any]:
    """Where each of the panels is, or what belongs to it."""
    return [first] if tile.panels == 1 else [first, builder.gep(first, [step])]


def _vectors_at(builder: ir.IRBuilder, first: Any, vector: ir.VectorType, n: int) -> list[Any]:
    """The addresses of n vectors."""
    pointer = builder.bitcast(first, vector.as_pointer())
    return [builder.gep(pointer, [ir.Constant(I64, i)]) for i in range(n)]


class RowDistances:
    """Where the rows of A are, in few registers: lda, 3*lda, 5*lda, 7*lda and 9*lda.

    An address is a register and another one times 1, 2, 4 or 8, so these reach 9 rows from the first. A pointer to each
    row would not fit into the registers beside all else, and one that goes from row to row is an instruction each. LLVM
    would do either, so it does not get to see that the distances are multiples of each other.
    """

    _ROWS_OF_ONE = 9

    def __init__(self, builder: ir.IRBuilder, lda: Any, mr: int) -> None:
        self._mr = mr
        self._times = {1: lda}
        for odd in range(3, min(mr, self._ROWS_OF_ONE + 1), 2):
            times = builder.mul(lda, ir.Constant(I64, odd))
            self._times[odd] = builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [times], side_effect=False)

    def rows(self, builder: ir.IRBuilder, first: Any) -> list[Any]:
        """The addresses of all rows, of which the first is at `first`."""
        rows = [first]
        for i in range(1, self._mr):
            n = i % self._ROWS_OF_ONE or self._ROWS_OF_ONE
            from_row = i - n
            shift = (n & -n).bit_length() - 1
            distance = builder.shl(self._times[n >> shift], ir.Constant(I64, shift))
            rows.append(builder.gep(rows[from_row], [distance]))
        return rows


def _prefetch(builder: ir.IRBuilder, address: Any, n_bytes: int, locality: Any) -> None:
    """`prefetch` for a locality that is known when the code runs."""
    behind = builder.append_basic_block("prefetched")
    switch = builder.switch(locality, behind)
    for each in (ONCE, IN_L2, IN_L1):
        block = builder.append_basic_block(f"prefetch{each}")
        switch.add_case(ir.Constant(I64, each), block)
        builder.position_at_end(block)
        prefetch(builder, address, n_bytes, each)
        builder.branch(behind)
    builder.position_at_end(behind)


def _finish(builder: ir.IRBuilder, tile: TileFunction, sums: list[Any], output: list[Any], panel: int) -> None:
    """Scales, rounds and stores the sums of a panel; `output` are y, ldy, row_scale, col_scale and offset."""
    isa, vectors = tile.isa, tile.vectors
    y, ldy, row_scale, col_scale, offset = output
    y = builder.gep(y, [ir.Constant(I64, panel * isa.nr * (2 if tile.store == I16 else 4))])
    if tile.kernel.is_int8:
        col_scale, offset = (builder.gep(p, [ir.Constant(I64, panel * isa.nr * 4)]) for p in (col_scale, offset))
        sums = _scaled(builder, vectors, sums, row_scale, col_scale, offset)
    for i, row in enumerate(_parts(sums, len(sums) // vectors.n)):
        _store_row(builder, tile, row, builder.gep(y, [builder.mul(ldy, ir.Constant(I64, i))]))


def _scaled(
    builder: ir.IRBuilder, vectors: Vectors, sums: list[Any], row_scale: Any, col_scale: Any, offset: Any
) -> list[Any]:
    """(float32(sum + offset) * row_scale) * col_scale."""
    n, n_bytes = vectors.n, vectors.lanes * 4
    offsets = [load(builder, offset, v * n_bytes, vectors.words, 4) for v in range(n)]
    columns = [load(builder, col_scale, v * n_bytes, vectors.floats, 4) for v in range(n)]
    scaled = []
    for i in range(len(sums) // n):
        row = vectors.splat(builder, load(builder, row_scale, i * 4, F32, 4))
        for v in range(n):
            value = builder.sitofp(builder.add(sums[i * n + v], offsets[v]), vectors.floats)
            scaled.append(builder.fmul(builder.fmul(value, row), columns[v]))
    return scaled


def _store_row(builder: ir.IRBuilder, tile: TileFunction, values: list[Any], at: Any) -> None:
    """A row's float32 vectors, rounded to bf16: as their bits, or as float32 again."""
    kernel, vectors = tile.kernel, tile.vectors
    if kernel.round_two is not None and tile.store == I16:
        for v in range(0, vectors.n, 2):
            bits = kernel.round_two(builder, vectors, values[v], values[v + 1])
            here = builder.gep(at, [ir.Constant(I64, v * vectors.lanes * 2)])
            builder.store(bits, builder.bitcast(here, bits.type.as_pointer()), align=2)
        return
    for v, value in enumerate(values):
        rounded = _round_bf16(builder, vectors, value)
        if tile.store == I16:
            upper = builder.lshr(rounded, vectors.filled(16))
            rounded = builder.trunc(upper, ir.VectorType(I16, vectors.lanes))
            here = builder.gep(at, [ir.Constant(I64, v * vectors.lanes * 2)])
        else:
            rounded = builder.and_(rounded, vectors.filled(0xFFFF0000))
            here = builder.gep(at, [ir.Constant(I64, v * vectors.lanes * 4)])
        builder.store(rounded, builder.bitcast(here, rounded.type.as_pointer()), align=2)


def _round_bf16(builder: ir.IRBuilder, vectors: Vectors, value: Any) -> Any:
    """Words whose upper halves are the bf16 nearest to float32, ties to even; a NaN becomes a quiet one."""
    bits = builder.bitcast(value, vectors.words)
    odd = builder.and_(builder.lshr(bits, vectors.filled(16)), vectors.filled(1))
    rounded = builder.add(builder.add(bits, vectors.filled(0x7FFF)), odd)
    quiet = builder.or_(bits, vectors.filled(0x400000))
    return builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
