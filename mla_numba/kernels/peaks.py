"""Probes of the machine: how fast memory is read and how fast the cores multiply, in the microkernels' own vector code.

    read_stream:  sums[w] = sum of the words that worker w read
    fma_peak:     acc = acc + x * y, again and again, in registers; on the portable instruction set acc * x + y
    bf16_peak:    acc = acc + dot(x's pairs, y's pairs), likewise, with the instruction for pairs of bf16
    dot_peak:     acc = acc + dot(acc's pieces, x's pieces), likewise; on the portable instruction set as fma_peak

| array    | shape                       | dtype                | notes                                               |
|----------|-----------------------------|----------------------|-----------------------------------------------------|
| words    | [n]                         | uint32               | n a multiple of READ_WORDS                          |
| sums     | [n_workers]                 | int64                | each piece modulo 2**32; may be uninitialised       |
| acc      | [n_workers][CHAINS * LANES] | float32 or DOT_DTYPE | each worker's accumulators, read and written        |
| operands | [2 * LANES]                 | acc's                | x, then y; of bf16_peak uint32, a pair of bf16      |
|          |                             |                      | each, of x the same in all lanes                    |
| counters | see `tasks.draw`            | int64                | zeros                                               |

`dot` is what the int8 microkernel does with two vectors: on AVX-512 VNNI it takes each 32-bit lane apart into four
u8 x s8 products, on AVX2 into two int16 x int16, with smmla it multiplies two rows of eight codes by two columns; int32
wraps. The portable microkernel multiplies int8 codes as float32, and has no fused multiply-add.

Every accumulator is a chain of its own, loaded at the begin and stored at the end, whose steps need the one before: no
compiler can drop or hoist any. Workers share tasks as those of the prolog do, so cores of unlike speed all count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.extending import intrinsic

from .jit.callee import overload_callee
from .kinds import Index, Int64, Typed, Values, Word, Words
from .launch import kernel
from .llvm_ir import AHEAD_L2_BYTES, F32, I8, I32, I64, IN_L2, counted_loop, declare, internal_function, load, prefetch
from .micro.table import ISA
from .scalars import row_of, window
from .threads.tasks import block_of, ceil_div, draw

LANES = ISA.lanes
# As many as a microkernel has sums: they hide the latency of its multiply-adds, and leave registers for both operands.
CHAINS = 12 if ISA.int8 is None else ISA.mr * ISA.vectors.n
DOT_DTYPE = np.float32 if ISA.int8 is None else np.int32
FMA_OPS = 2 * CHAINS * LANES  # operations of a step; a multiply-add is two
BF16_OPS = 2 * FMA_OPS  # a lane takes a pair of products
DOT_K = 1 if ISA.int8 is None else ISA.kr_int8 // ISA.int8.passes  # products that a lane takes
DOT_OPS = FMA_OPS * DOT_K
# What a microkernel has to complement it subtracts (`neon`, a surplus of 1): the probe's operands are subtracted too.
_SIGNS = np.array([-1 if ISA.int8 and ISA.int8.surplus[r : r + 1] == (1,) else 1 for r in range(DOT_K)], np.int32)

READ_CHAINS = 8  # independent sums, a vector each, so that additions never wait for each other
READ_WORDS = READ_CHAINS * LANES  # what one step reads
PIECE_WORDS = 2**16  # a reader's task: 256 KiB, a multiple of READ_WORDS
COMPILED = not config.DISABLE_JIT


def sum_words(words: Words, start: Index, n: Index) -> Word:
    """The sum of words[start:start+n] modulo 2**32. `n` is a multiple of READ_WORDS."""
    return np.sum(words[start : start + n], dtype=np.uint32)


@overload_callee(sum_words)
def _sum_words(words: Typed, start: Typed, n: Typed) -> Any:
    def emitted(words: Words, start: Index, n: Index) -> Word:
        return _sum_words_simd(window(words, start, n), np.int64(n // READ_WORDS))

    return emitted


def fma_chain(acc: Values, operands: Values, steps: Index) -> None:
    """acc = acc + x * y, `steps` times, with one rounding, or acc * x + y where there is no fused multiply-add.

    AArch64 has only multiply-adds that add to the register they change. A product apart would leave the loop.
    """
    x, y = operands.reshape(2, LANES)
    chains = acc.reshape(CHAINS, LANES)
    for _ in range(steps):
        chains[...] = chains * x + y if ISA.int8 is None else chains + x * y


@overload_callee(fma_chain)
def _fma_chain(acc: Typed, operands: Typed, steps: Typed) -> Any:
    def emitted(acc: Values, operands: Values, steps: Index) -> None:
        _fma_chain_simd(acc, operands, np.int64(steps))

    return emitted


def bf16_chain(acc: Values, operands: Values, steps: Index) -> None:
    """acc = (acc + x1 * y1) + x0 * y0, `steps` times, of pairs (0 low, 1 high) whose products float32 holds exactly."""
    high = (operands & np.uint32(0xFFFF0000)).view(np.float32).reshape(2, LANES)
    low = (operands << np.uint32(16)).view(np.float32).reshape(2, LANES)
    chains = acc.reshape(CHAINS, LANES)
    for _ in range(steps):
        chains[...] = (chains + high[0] * high[1]) + low[0] * low[1]


@overload_callee(bf16_chain)
def _bf16_chain(acc: Typed, operands: Typed, steps: Typed) -> Any:
    def emitted(acc: Values, operands: Values, steps: Index) -> None:
        _bf16_chain_simd(acc, operands, np.int64(steps))

    return emitted


def _pieces(words: Values, signed: bool) -> Values:
    """Vectors of int32 as what an int8 microkernel multiplies: (n vectors, squares, rows of a square, DOT_K) int32."""
    assert ISA.int8 is not None
    dtype = np.int16 if ISA.a_int8_bytes == 2 else np.int8 if signed else np.uint8
    pieces = words.reshape(-1, LANES).view(dtype).astype(np.int32)
    if ISA.int8.square == 1:  # a lane is a column of B, whose steps of k lie where a packed weight has them
        places = [[ISA.int8_order.place(LANES, DOT_K, r, j) for r in range(DOT_K)] for j in range(LANES)]
        pieces = pieces[:, places]
    return pieces.reshape(len(pieces), -1, ISA.int8.square, DOT_K)


def dot_chain(acc: Values, operands: Values, steps: Index) -> None:
    """acc = acc + dot(acc's pieces, x's pieces), `steps` times, in the pieces of the instruction set."""
    if ISA.int8 is None:
        fma_chain(acc, operands, steps)
        return
    x = _pieces(operands[:LANES], signed=True)
    chains = acc.reshape(CHAINS, LANES)
    for _ in range(steps):
        rows = _pieces(chains, signed=not ISA.a_offset) * _SIGNS
        chains += np.einsum("cgik,gjk->cgij", rows, x[0], dtype=np.int32).reshape(CHAINS, LANES)


@overload_callee(dot_chain)
def _dot_chain(acc: Typed, operands: Typed, steps: Typed) -> Any:
    if ISA.int8 is None:

        def portable(acc: Values, operands: Values, steps: Index) -> None:
            _fma_chain_simd(acc, operands, np.int64(steps))

        return portable

    def emitted(acc: Values, operands: Values, steps: Index) -> None:
        _dot_chain_simd(acc, operands, np.int64(steps))

    return emitted


def _read_function(module: ir.Module) -> ir.Function:
    """The sum of `steps` * READ_WORDS words from an address on."""
    name = f"mla_numba_sum_words_{ISA.name}"
    existing = module.globals.get(name)
    if existing is not None:
        return existing
    vector = ISA.vectors.words
    function = internal_function(module, ir.FunctionType(I32, [I8.as_pointer(), I64]), name)
    address, steps = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))

    def step(number: Any, sums: list[Any]) -> list[Any]:
        here = builder.gep(address, [builder.mul(number, ir.Constant(I64, READ_WORDS * 4))])
        prefetch(builder, builder.gep(here, [ir.Constant(I64, AHEAD_L2_BYTES)]), READ_WORDS * 4, IN_L2)
        return [builder.add(s, load(builder, here, i * LANES * 4, vector, 4)) for i, s in enumerate(sums)]

    sums = counted_loop(builder, steps, [ir.Constant(vector, None)] * READ_CHAINS, step)
    total = sums[0]
    for value in sums[1:]:
        total = builder.add(total, value)
    builder.ret(builder.call(declare(builder, f"llvm.vector.reduce.add.v{LANES}i32", I32, [vector]), [total]))
    return function


@intrinsic
def _sum_words_simd(_typingctx: Any, words: Any, steps: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = _read_function(builder.module)
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.call(function, [builder.bitcast(data, I8.as_pointer()), args[1]])

    return types.uint32(words, steps), codegen


def _chain_function(module: ir.Module, name: str, element: ir.Type, emit_step: Callable[..., Any]) -> ir.Function:
    """CHAINS vectors loaded from `acc`, taken through `steps` steps and stored again."""
    name = f"mla_numba_{name}_{ISA.name}"
    existing = module.globals.get(name)
    if existing is not None:
        return existing
    vector = ir.VectorType(element, LANES)
    pointer = I8.as_pointer()
    fnty = ir.FunctionType(ir.VoidType(), [pointer, pointer, I64])
    function = internal_function(module, fnty, name, ISA.attributes)
    acc, operands, steps = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    x, y = (load(builder, operands, i * LANES * 4, vector, 4) for i in range(2))
    first = [load(builder, acc, i * LANES * 4, vector, 4) for i in range(CHAINS)]
    chains = counted_loop(builder, steps, first, lambda _step, held: [emit_step(builder, c, x, y) for c in held])
    stored = builder.bitcast(acc, vector.as_pointer())
    for i, chain in enumerate(chains):
        builder.store(chain, builder.gep(stored, [ir.Constant(I64, i)]), align=4)
    builder.ret_void()
    return function


def _define_chain(name: str, element: ir.Type, emit_step: Callable[..., Any]) -> Any:
    @intrinsic
    def call(_typingctx: Any, acc: Any, operands: Any, steps: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            function = _chain_function(builder.module, name, element, emit_step)
            arrays = [context.make_array(sig.args[p])(context, builder, args[p]).data for p in range(2)]
            builder.call(function, [*(builder.bitcast(data, I8.as_pointer()) for data in arrays), args[2]])
            return context.get_dummy_value()

        return types.void(acc, operands, steps), codegen

    return call


def _step_fma(builder: ir.IRBuilder, acc: Any, x: Any, y: Any) -> Any:
    if ISA.int8 is None:
        return builder.fadd(builder.fmul(acc, x), y)
    return builder.call(declare(builder, f"llvm.fma.v{LANES}f32", acc.type, [acc.type] * 3), [x, y, acc])


def _step_bf16(builder: ir.IRBuilder, acc: Any, x: Any, y: Any) -> Any:
    assert ISA.bf16 is not None
    return ISA.bf16.multiply(builder, ISA.vectors, acc, x, y)


def _step_dot(builder: ir.IRBuilder, acc: Any, x: Any, _y: Any) -> Any:
    """`acc` is multiplied too: a product of x and y would be the same in each step, and leave the loop."""
    assert ISA.int8 is not None
    return ISA.int8.multiply(builder, ISA.vectors, acc, acc, x)


_fma_chain_simd = _define_chain("fma_chain", F32, _step_fma)
_bf16_chain_simd = _define_chain("bf16_chain", F32, _step_bf16)
_dot_chain_simd = _define_chain("dot_chain", I32, _step_dot)


@kernel
def fill_words(worker: Index, words: Words, n_workers: Index) -> None:
    """Writes words[i] = i, each worker what it begins to read with: memory is placed near who touches it first."""
    piece, n_own = block_of(ceil_div(words.size, PIECE_WORDS), n_workers, worker)
    first = piece * PIECE_WORDS
    n = min(n_own * PIECE_WORDS, words.size - first)
    share = window(words, first, n)
    for i in range(n):
        share[i] = np.uint32(first + i)


@kernel
def read_stream(worker: Index, words: Words, sums: Int64, counters: Int64, n_workers: Index) -> None:
    """Each worker reads its even share front to back, and then what others have left."""
    n_pieces = ceil_div(words.size, PIECE_WORDS)
    total = np.int64(0)
    piece, end = draw(counters, 0, worker, n_workers, n_pieces, 1)
    while piece < end:
        first = piece * PIECE_WORDS
        total += np.int64(sum_words(words, first, min(np.int64(PIECE_WORDS), words.size - first)))
        piece, end = draw(counters, 0, worker, n_workers, n_pieces, 1)
    sums[worker] = total


@kernel
def fma_peak(
    worker: Index, acc: Values, operands: Values, steps: Index, counters: Int64, n_tasks: Index, n_workers: Index
) -> None:
    """`n_tasks` times FMA_OPS * steps operations."""
    task, end = draw(counters, 0, worker, n_workers, n_tasks, 1)
    while task < end:
        fma_chain(row_of(acc, worker), operands, steps)
        task, end = draw(counters, 0, worker, n_workers, n_tasks, 1)


@kernel
def bf16_peak(
    worker: Index, acc: Values, operands: Values, steps: Index, counters: Int64, n_tasks: Index, n_workers: Index
) -> None:
    """`n_tasks` times BF16_OPS * steps operations; only where `ISA.bf16_dot`."""
    task, end = draw(counters, 0, worker, n_workers, n_tasks, 1)
    while task < end:
        bf16_chain(row_of(acc, worker), operands, steps)
        task, end = draw(counters, 0, worker, n_workers, n_tasks, 1)


@kernel
def dot_peak(
    worker: Index, acc: Values, operands: Values, steps: Index, counters: Int64, n_tasks: Index, n_workers: Index
) -> None:
    """`n_tasks` times DOT_OPS * steps operations."""
    task, end = draw(counters, 0, worker, n_workers, n_tasks, 1)
    while task < end:
        dot_chain(row_of(acc, worker), operands, steps)
        task, end = draw(counters, 0, worker, n_workers, n_tasks, 1)
