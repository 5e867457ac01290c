"""The microkernels' vector code: for each row count a loop over k that keeps its tile of C in registers.

    f(mr, steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset)

See `ukernel` for what it computes. Here lda, a_step, ahead_step and ldy count bytes. a_step, what a step of KR takes of
a row, is always the same; but where LLVM sees that, it keeps a pointer to each row and moves all of them in each step,
which takes half as long again. Where y is null the sums go to c, else, as bf16, to y. In step s the lines at
ahead + s*ahead_step and behind it are prefetched; locality is ONCE, IN_L2 or IN_L1 of `llvm_ir`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..isa import MicroKernel
from ..llvm_ir import (
    F32,
    I1,
    I16,
    I64,
    IN_L1,
    IN_L2,
    ONCE,
    POINTER,
    counted_loop,
    internal_function,
    load,
    prefetch,
)
from .table import ISA

__all__ = ["MicroKernel", "declare_tile_function", "define_tile_function"]

MR, NR = ISA.mr, ISA.nr
_V = ISA.vectors
N_VECTORS = _V.n


def define_tile_function(module: ir.Module, kernel: MicroKernel, store: ir.Type, by_row: bool = False) -> ir.Function:
    """`f(mr, ...)` of this file's head, defined in a module, that stores y as `store`, I16 or F32.

    With `by_row`, each row by itself: for what is rare, so that there is one loop over k to compile, not MR.
    """
    function = declare_tile_function(module, kernel, store)
    (_define_loop_over_rows if by_row else _define_switch)(function, kernel, store)
    return function


def declare_tile_function(module: ir.Module, kernel: MicroKernel, store: ir.Type) -> ir.Function:
    """The function as it is known to who calls it; see `library` on where it is."""
    name = f"mla_numba_{kernel.name}_{ISA.name}_{store}"
    existing = module.globals.get(name)
    return existing or ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, *_ARGUMENTS]), name)


# steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset
_ARGUMENTS = [
    I64, POINTER, I64, I64, POINTER, POINTER, I64, I64, POINTER, I1, POINTER, I64, POINTER, POINTER, POINTER
]  # fmt: skip


def _define_switch(function: ir.Function, kernel: MicroKernel, store: ir.Type) -> None:
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    out = function.append_basic_block("out")
    switch = builder.switch(function.args[0], out)
    for mr in range(1, MR + 1):
        block = function.append_basic_block(f"rows{mr}")
        switch.add_case(ir.Constant(I64, mr), block)
        builder.position_at_end(block)
        builder.call(_rows_function(function, mr, kernel, store), function.args[1:])
        builder.branch(out)
    builder.position_at_end(out)
    builder.ret_void()


def _define_loop_over_rows(function: ir.Function, kernel: MicroKernel, store: ir.Type) -> None:
    tile = _rows_function(function, 1, kernel, store)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    mr, steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset = (
        function.args
    )
    stores = builder.icmp_unsigned("!=", y, ir.Constant(POINTER, None))

    def one_row(row: Any, _values: list[Any]) -> list[Any]:
        a_here = builder.gep(a, [builder.mul(row, lda)])
        c_here = builder.gep(c, [builder.mul(row, ir.Constant(I64, NR * 4))])
        y_here = builder.select(stores, builder.gep(y, [builder.mul(row, ldy)]), y)
        scale_here = builder.gep(row_scale, [builder.mul(row, ir.Constant(I64, 4))])
        operands = [steps, a_here, lda, a_step, b, ahead, ahead_step, locality, c_here, carry, y_here, ldy, scale_here]
        builder.call(tile, [*operands, col_scale, offset])
        return []

    counted_loop(builder, mr, [], one_row)
    builder.ret_void()


def _rows_function(parent: ir.Function, mr: int, kernel: MicroKernel, store: ir.Type) -> ir.Function:
    """The loop over k for exactly `mr` rows: MR x N_VECTORS accumulators in registers from first to last step."""
    function = internal_function(parent.module, ir.FunctionType(ir.VoidType(), _ARGUMENTS), f"{parent.name}_{mr}")
    steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset = (
        function.args
    )
    names = ("entry", "load", "begin", "keep", "finish")
    entry, load_c, begin, keep, finish = (function.append_basic_block(s) for s in names)
    builder = ir.IRBuilder(entry)
    vector = _V.words if kernel.is_int8 else _V.floats
    c_vectors = builder.bitcast(c, vector.as_pointer())
    c_at = [builder.gep(c_vectors, [ir.Constant(I64, i)]) for i in range(mr * N_VECTORS)]
    rows = [builder.gep(a, [builder.mul(lda, ir.Constant(I64, i))]) for i in range(mr)]
    builder.cbranch(carry, load_c, begin)
    builder.position_at_end(load_c)
    held = [builder.load(p, align=4) for p in c_at]
    builder.branch(begin)
    builder.position_at_end(begin)
    first = []
    for value in held:
        first.append(builder.phi(vector))
        first[-1].add_incoming(ir.Constant(vector, None), entry)
        first[-1].add_incoming(value, load_c)

    def step_of_k(step: Any, acc: list[Any]) -> list[Any]:
        b_here = builder.gep(b, [builder.mul(step, ir.Constant(I64, ISA.b_bytes(kernel)))])
        ahead_here = builder.gep(ahead, [builder.mul(step, ahead_step)])
        _prefetch(builder, ahead_here, ISA.b_bytes(kernel), locality)
        return _multiply(builder, kernel, rows, builder.mul(step, a_step), b_here, acc)

    sums = counted_loop(builder, steps, first, step_of_k)
    builder.cbranch(builder.icmp_unsigned("==", y, ir.Constant(POINTER, None)), keep, finish)
    builder.position_at_end(keep)
    for value, p in zip(sums, c_at, strict=True):
        builder.store(value, p, align=4)
    builder.ret_void()
    builder.position_at_end(finish)
    if kernel.is_int8:
        sums = _scaled(builder, sums, row_scale, col_scale, offset)
    for i in range(mr):
        at = builder.gep(y, [builder.mul(ldy, ir.Constant(I64, i))])
        _store_row(builder, sums[i * N_VECTORS : (i + 1) * N_VECTORS], at, store, kernel)
    builder.ret_void()
    return function


def _multiply(builder: Any, kernel: MicroKernel, rows: list[Any], a_at: Any, b: Any, acc: list[Any]) -> list[Any]:
    """The accumulators after KR steps of k; `rows` are the addresses of A's rows, `a_at` the step's place in each."""
    loaded = [kernel.load(builder, _V, b, v) for v in range(N_VECTORS)]
    for k in range(kernel.passes):
        columns = [kernel.column(builder, _V, raw, k) for raw in loaded]
        for i, row in enumerate(rows):
            value = kernel.value(builder, _V, builder.gep(row, [a_at]), k)
            for v, column in enumerate(columns, start=i * N_VECTORS):
                acc[v] = kernel.multiply(builder, _V, acc[v], value, column)
    return acc


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


def _scaled(builder: ir.IRBuilder, sums: list[Any], row_scale: Any, col_scale: Any, offset: Any) -> list[Any]:
    """(float32(sum + offset) * row_scale) * col_scale."""
    offsets = [load(builder, offset, v * _V.lanes * 4, _V.words, 4) for v in range(N_VECTORS)]
    columns = [load(builder, col_scale, v * _V.lanes * 4, _V.floats, 4) for v in range(N_VECTORS)]
    scaled = []
    for i in range(len(sums) // N_VECTORS):
        row = _V.splat(builder, load(builder, row_scale, i * 4, F32, 4))
        for v in range(N_VECTORS):
            value = builder.sitofp(builder.add(sums[i * N_VECTORS + v], offsets[v]), _V.floats)
            scaled.append(builder.fmul(builder.fmul(value, row), columns[v]))
    return scaled


def _store_row(builder: ir.IRBuilder, values: list[Any], at: Any, store: ir.Type, kernel: MicroKernel) -> None:
    """A row's float32 vectors, rounded to bf16: as their bits, or as float32 again."""
    if kernel.round_two is not None and store == I16:
        for v in range(0, N_VECTORS, 2):
            bits = kernel.round_two(builder, _V, values[v], values[v + 1])
            here = builder.gep(at, [ir.Constant(I64, v * _V.lanes * 2)])
            builder.store(bits, builder.bitcast(here, bits.type.as_pointer()), align=2)
        return
    for v, value in enumerate(values):
        rounded = _round_bf16(builder, value)
        if store == I16:
            rounded = builder.trunc(builder.lshr(rounded, _V.filled(16)), ir.VectorType(I16, _V.lanes))
            here = builder.gep(at, [ir.Constant(I64, v * _V.lanes * 2)])
        else:
            rounded = builder.and_(rounded, _V.filled(0xFFFF0000))
            here = builder.gep(at, [ir.Constant(I64, v * _V.lanes * 4)])
        builder.store(rounded, builder.bitcast(here, rounded.type.as_pointer()), align=2)


def _round_bf16(builder: ir.IRBuilder, value: Any) -> Any:
    """Words whose upper halves are the bf16 nearest to float32, ties to even; a NaN becomes a quiet one."""
    bits = builder.bitcast(value, _V.words)
    odd = builder.and_(builder.lshr(bits, _V.filled(16)), _V.filled(1))
    rounded = builder.add(builder.add(bits, _V.filled(0x7FFF)), odd)
    quiet = builder.or_(bits, _V.filled(0x400000))
    return builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
