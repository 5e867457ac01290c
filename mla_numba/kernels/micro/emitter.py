"""The microkernels' vector code: for each row count a loop over k that keeps its tile of C in registers.

    f(mr, steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset)

See `ukernel` for what it computes. Here lda, a_step, ahead_step and ldy count bytes. a_step, what a step of KR takes of a
row, is always the same; but where LLVM sees that, it keeps a pointer to each row and moves all of them in each step,
which takes half as long again. Where y is null the sums go to c, else, as bf16, to y. In step s the lines at
ahead + s*ahead_step and behind it are prefetched; locality is ONCE, IN_L2 or IN_L1 of `llvm_ir`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ..isa import ISA
from ..llvm_ir import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    IN_L1,
    IN_L2,
    LANES,
    ONCE,
    POINTER,
    BFloat,
    declare,
    dot_operand_type,
    internal_function,
    load,
    prefetch,
    splat,
)

__all__ = ["BF16_PAIRS", "BF16_STEPS", "INT8", "MicroKernel", "declare_tile_function", "define_tile_function"]

MR, NR = ISA.mr, ISA.nr
N_VECTORS = NR // LANES
_FLOATS = ir.VectorType(F32, LANES)
_WORDS = ir.VectorType(I32, LANES)

Emit = Callable[[ir.IRBuilder, Any, Any, Any, list[Any]], list[Any]]


@dataclass(frozen=True)
class MicroKernel:
    """One way to multiply: `emit_step(builder, a_rows, a_at, b, acc)` gives the accumulators after KR steps of k.

    `a_rows` are the addresses of the tile's rows of A, `a_at` the step's place in each. With `short_round` no sum that
    it is used for is subnormal, and one instruction rounds two vectors.
    """

    name: str
    kr: int
    is_int8: bool
    emit_step: Emit
    short_round: bool = False

    @property
    def a_bytes(self) -> int:
        """Bytes of a row of A that a step of KR takes."""
        return self.kr * (ISA.a_int8_bytes if self.is_int8 else ISA.a_bf16_bytes)

    @property
    def b_bytes(self) -> int:
        """Bytes of B that a step of KR takes."""
        return NR * self.kr * (1 if self.is_int8 else 2)


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
    body = _rows_function(function, 1, kernel, store)
    entry, loop, done = (function.append_basic_block(s) for s in ("entry", "loop", "done"))
    builder = ir.IRBuilder(entry)
    mr, steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset = (
        function.args
    )
    stores = builder.icmp_unsigned("!=", y, ir.Constant(POINTER, None))
    builder.branch(loop)
    builder.position_at_end(loop)
    row = builder.phi(I64)
    row.add_incoming(ir.Constant(I64, 0), entry)
    a_here = builder.gep(a, [builder.mul(row, lda)])
    c_here = builder.gep(c, [builder.mul(row, ir.Constant(I64, NR * 4))])
    y_here = builder.select(stores, builder.gep(y, [builder.mul(row, ldy)]), y)
    scale_here = builder.gep(row_scale, [builder.mul(row, ir.Constant(I64, 4))])
    operands = [steps, a_here, lda, a_step, b, ahead, ahead_step, locality, c_here, carry, y_here, ldy, scale_here]
    builder.call(body, [*operands, col_scale, offset])
    following = builder.add(row, ir.Constant(I64, 1))
    row.add_incoming(following, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, mr), loop, done)
    builder.position_at_end(done)
    builder.ret_void()


def _rows_function(parent: ir.Function, mr: int, kernel: MicroKernel, store: ir.Type) -> ir.Function:
    """The loop over k for exactly `mr` rows: MR x NR/LANES accumulators in registers from first to last step."""
    vector = _WORDS if kernel.is_int8 else _FLOATS
    function = internal_function(parent.module, ir.FunctionType(ir.VoidType(), _ARGUMENTS), f"{parent.name}_{mr}")
    steps, a, lda, a_step, b, ahead, ahead_step, locality, c, carry, y, ldy, row_scale, col_scale, offset = (
        function.args
    )
    names = ("entry", "load", "loop", "done", "keep", "finish")
    entry, load_c, loop, done, keep, finish = (function.append_basic_block(s) for s in names)
    builder = ir.IRBuilder(entry)
    c_vectors = builder.bitcast(c, vector.as_pointer())
    c_at = [builder.gep(c_vectors, [ir.Constant(I64, i)]) for i in range(mr * N_VECTORS)]
    rows = [builder.gep(a, [builder.mul(lda, ir.Constant(I64, i))]) for i in range(mr)]
    zero = ir.Constant(vector, None)
    builder.cbranch(carry, load_c, loop)
    builder.position_at_end(load_c)
    held = [builder.load(p, align=4) for p in c_at]
    builder.branch(loop)

    builder.position_at_end(loop)
    step = builder.phi(I64)
    step.add_incoming(ir.Constant(I64, 0), entry)
    step.add_incoming(ir.Constant(I64, 0), load_c)
    acc = []
    for value in held:
        phi = builder.phi(vector)
        phi.add_incoming(zero, entry)
        phi.add_incoming(value, load_c)
        acc.append(phi)
    b_here = builder.gep(b, [builder.mul(step, ir.Constant(I64, kernel.b_bytes))])
    ahead_here = builder.gep(ahead, [builder.mul(step, ahead_step)])
    _prefetch(builder, ahead_here, kernel.b_bytes, locality)
    loop_end = builder.block
    new = kernel.emit_step(builder, rows, builder.mul(step, a_step), b_here, list(acc))
    following = builder.add(step, ir.Constant(I64, 1))
    step.add_incoming(following, loop_end)
    for phi, value in zip(acc, new, strict=True):
        phi.add_incoming(value, loop_end)
    builder.cbranch(builder.icmp_unsigned("<", following, steps), loop, done)

    builder.position_at_end(done)
    builder.cbranch(builder.icmp_unsigned("==", y, ir.Constant(POINTER, None)), keep, finish)
    builder.position_at_end(keep)
    for value, p in zip(new, c_at, strict=True):
        builder.store(value, p, align=4)
    builder.ret_void()
    builder.position_at_end(finish)
    if kernel.is_int8:
        new = _scaled(builder, new, row_scale, col_scale, offset)
    for i in range(mr):
        at = builder.gep(y, [builder.mul(ldy, ir.Constant(I64, i))])
        _store_row(builder, new[i * N_VECTORS : (i + 1) * N_VECTORS], at, store, kernel.short_round)
    builder.ret_void()
    return function


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
    offsets = [load(builder, offset, v * LANES * 4, _WORDS, 4) for v in range(N_VECTORS)]
    columns = [load(builder, col_scale, v * LANES * 4, _FLOATS, 4) for v in range(N_VECTORS)]
    scaled = []
    for i in range(len(sums) // N_VECTORS):
        row = splat(builder, load(builder, row_scale, i * 4, F32, 4))
        for v in range(N_VECTORS):
            value = builder.sitofp(builder.add(sums[i * N_VECTORS + v], offsets[v]), _FLOATS)
            scaled.append(builder.fmul(builder.fmul(value, row), columns[v]))
    return scaled


def _store_row(builder: ir.IRBuilder, values: list[Any], at: Any, store: ir.Type, short_round: bool) -> None:
    """A row's float32 vectors, rounded to bf16: as their bits, or as float32 again."""
    if short_round and store == I16:
        # One instruction for two vectors; it flushes subnormal numbers, of which `short_round` says there are none.
        pairs = ir.VectorType(BFloat(), 2 * LANES)
        convert = declare(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", pairs, [_FLOATS, _FLOATS])
        for v in range(0, N_VECTORS, 2):
            bits = builder.call(convert, [values[v + 1], values[v]])
            here = builder.gep(at, [ir.Constant(I64, v * LANES * 2)])
            builder.store(bits, builder.bitcast(here, pairs.as_pointer()), align=2)
        return
    for v, value in enumerate(values):
        rounded = _round_bf16(builder, value)
        if store == I16:
            rounded = builder.trunc(builder.lshr(rounded, ir.Constant(_WORDS, [16] * LANES)), ir.VectorType(I16, LANES))
            here = builder.gep(at, [ir.Constant(I64, v * LANES * 2)])
        else:
            rounded = builder.and_(rounded, ir.Constant(_WORDS, [0xFFFF0000] * LANES))
            here = builder.gep(at, [ir.Constant(I64, v * LANES * 4)])
        builder.store(rounded, builder.bitcast(here, rounded.type.as_pointer()), align=2)


def _round_bf16(builder: ir.IRBuilder, value: Any) -> Any:
    """Words whose upper halves are the bf16 nearest to float32, ties to even; a NaN becomes a quiet one."""
    bits = builder.bitcast(value, _WORDS)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_WORDS, [16] * LANES)), ir.Constant(_WORDS, [1] * LANES))
    rounded = builder.add(builder.add(bits, ir.Constant(_WORDS, [0x7FFF] * LANES)), odd)
    quiet = builder.or_(bits, ir.Constant(_WORDS, [0x400000] * LANES))
    return builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)


def _bf16_by_steps(builder: ir.IRBuilder, rows: list[Any], a_at: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Two k by multiply-adds: of the pair in each 32-bit lane a mask gives the even k and a shift the odd one."""
    fma = declare(builder, f"llvm.fma.v{LANES}f32", _FLOATS, [_FLOATS] * 3)
    shift, mask = ir.Constant(_WORDS, [16] * LANES), ir.Constant(_WORDS, [0xFFFF0000] * LANES)

    def half(pairs: Any, k: int) -> Any:
        return builder.bitcast(builder.shl(pairs, shift) if k else builder.and_(pairs, mask), _FLOATS)

    loaded = [load(builder, b, v * LANES * 4, _WORDS, 4) for v in range(N_VECTORS)]
    for k in range(2):
        columns = [half(pairs, k) for pairs in loaded]
        for i, row in enumerate(rows):
            here = builder.gep(row, [a_at])
            if ISA.bf16_dot:
                value = half(splat(builder, load(builder, here, 0, I32, 4)), k)
            else:
                value = splat(builder, load(builder, here, k * 4, F32, 4))
            for v in range(N_VECTORS):
                acc[i * N_VECTORS + v] = builder.call(fma, [value, columns[v], acc[i * N_VECTORS + v]])
    return acc


def _bf16_by_pairs(builder: ir.IRBuilder, rows: list[Any], a_at: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Two k: vdpbf16ps adds the second pair's product to each float32 lane, rounds, then the first's, and rounds."""
    pairs = ir.VectorType(BFloat(), 2 * LANES)
    dot = declare(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, [_FLOATS, pairs, pairs])
    columns = [load(builder, b, v * LANES * 4, pairs, 4) for v in range(N_VECTORS)]
    for i, row in enumerate(rows):
        value = builder.bitcast(splat(builder, load(builder, builder.gep(row, [a_at]), 0, I32, 4)), pairs)
        for v in range(N_VECTORS):
            acc[i * N_VECTORS + v] = builder.call(dot, [acc[i * N_VECTORS + v], value, columns[v]])
    return acc


def _int8_avx512(builder: ir.IRBuilder, rows: list[Any], a_at: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Four k: vpdpbusd adds four u8 x s8 products to each int32 lane, without saturation."""
    operand = dot_operand_type()
    dot = declare(builder, "llvm.x86.avx512.vpdpbusd.512", _WORDS, [_WORDS, operand, operand])
    columns = [load(builder, b, v * LANES * 4, operand, 1) for v in range(N_VECTORS)]
    for i, row in enumerate(rows):
        value = builder.bitcast(splat(builder, load(builder, builder.gep(row, [a_at]), 0, I32, 1)), operand)
        for v in range(N_VECTORS):
            acc[i * N_VECTORS + v] = builder.call(dot, [acc[i * N_VECTORS + v], value, columns[v]])
    return acc


def _int8_avx2(builder: ir.IRBuilder, rows: list[Any], a_at: Any, b: Any, acc: list[Any]) -> list[Any]:
    """Two k: vpmaddwd adds two int16 products in each int32 lane; vpmaddubsw would saturate."""
    halves = ir.VectorType(I16, 2 * LANES)
    madd = declare(builder, "llvm.x86.avx2.pmadd.wd", _WORDS, [halves, halves])
    codes = ir.VectorType(I8, 2 * LANES)
    columns = [builder.sext(load(builder, b, v * LANES * 2, codes, 1), halves) for v in range(N_VECTORS)]
    for i, row in enumerate(rows):
        value = builder.bitcast(splat(builder, load(builder, builder.gep(row, [a_at]), 0, I32, 2)), halves)
        for v in range(N_VECTORS):
            acc[i * N_VECTORS + v] = builder.add(acc[i * N_VECTORS + v], builder.call(madd, [value, columns[v]]))
    return acc


BF16_STEPS = MicroKernel("ukernel_bf16_steps", ISA.kr_bf16, is_int8=False, emit_step=_bf16_by_steps)
BF16_PAIRS = MicroKernel("ukernel_bf16", ISA.kr_bf16, is_int8=False, emit_step=_bf16_by_pairs, short_round=True)
INT8 = MicroKernel(
    "ukernel_int8", ISA.kr_int8, is_int8=True, emit_step=_int8_avx2 if ISA.name == "avx2" else _int8_avx512
)
