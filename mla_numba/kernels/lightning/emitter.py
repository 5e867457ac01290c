"""Vector code of the lightning index, for any instruction set that has some.

    scores(mr, n, steps, a, lda, a_step, b, offset, weights, scores, places, n_ahead, n_lines, distance)
    pack(codes, places, n_runs, run_stride, panel, offset)

`scores` has register tiles like a microkernel's: `mr` heads by NR keys, whose sums over k stay in registers until they
are added up over the heads; it goes through `n` panels, at least one. Meanwhile it asks for lines of the keys that come
next: `n_lines` of them, `distance` apart, at each address places[p * NR + i] for a panel p and i < n_ahead. See
`score_panels` and `pack_panel` for what both compute. Distances count bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..isa import Isa, MicroKernel
from ..llvm_ir import (
    F32,
    I16,
    I32,
    I64,
    IN_L2,
    POINTER,
    Vectors,
    counted_loop,
    internal_function,
    load,
    prefetch,
)
from ..micro.emitter import RowDistances
from ..micro.multiply_adds import multiply_add
from ..micro.step import multiply, rows_of, squares_of

__all__ = ["RUN", "SPLIT", "declare_pack", "declare_scores", "define_lightning"]

RUN = 32  # codes of a key that lie side by side in any cache, and at which packed keys are padded
_WORD = 4  # codes
_WORDS = RUN // _WORD
_QUAD = 4  # words that are transposed with those of as many keys
SPLIT = 2.0**13 + 1  # of float32's 24 bits 13 are dropped, to leave the 11 of fp16


def define_lightning(module: ir.Module, isa: Isa) -> None:
    """Both functions, defined in a module."""
    assert isa.int8 is not None
    _define_scores(isa, isa.int8, declare_scores(module, isa))
    _define_pack(isa, isa.int8, declare_pack(module, isa))


def declare_scores(module: ir.Module, isa: Isa) -> ir.Function:
    """`scores`, as it is known to who calls it."""
    return _declared(module, f"mla_numba_scores_{isa.name}", [I64, *_OF_ROWS])


def declare_pack(module: ir.Module, isa: Isa) -> ir.Function:
    """`pack`, as it is known to who calls it."""
    return _declared(module, f"mla_numba_pack_keys_{isa.name}", [POINTER, POINTER, I64, I64, POINTER, POINTER])


# n, steps, a, lda, a_step, b, offset, weights, scores, codes, places, n_ahead, n_lines, distance
_OF_ROWS = [I64, I64, POINTER, I64, I64, *[POINTER] * 6, I64, I64, I64]


def _declared(module: ir.Module, name: str, arguments: list[ir.Type]) -> ir.Function:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)


def _define_scores(isa: Isa, kernel: MicroKernel, function: ir.Function) -> None:
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    out = function.append_basic_block("out")
    switch = builder.switch(function.args[0], out)
    for mr in range(1, isa.mr + 1):
        block = function.append_basic_block(f"heads{mr}")
        switch.add_case(ir.Constant(I64, mr), block)
        builder.position_at_end(block)
        builder.call(_define_rows(isa, kernel, function, mr), function.args[1:])
        builder.branch(out)
    builder.position_at_end(out)
    builder.ret_void()


def _define_rows(isa: Isa, kernel: MicroKernel, parent: ir.Function, mr: int) -> ir.Function:
    """`scores` of exactly `mr` heads."""
    vectors = isa.vectors
    fnty = ir.FunctionType(ir.VoidType(), _OF_ROWS)
    function = internal_function(parent.module, fnty, f"{parent.name}_{mr}", isa.attributes)
    n, steps, a, lda, a_step, b, offset, weights, scores = function.args[:9]
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    distances = RowDistances(builder, lda, mr)
    panel_bytes = builder.mul(steps, ir.Constant(I64, isa.b_bytes(kernel)))

    def one_panel(number: Any, _values: list[Any]) -> list[Any]:
        b_panel = builder.gep(b, [builder.mul(number, panel_bytes)])
        column = builder.mul(number, ir.Constant(I64, isa.nr * 4))
        _ask_ahead(builder, builder.mul(number, ir.Constant(I64, isa.nr)), *function.args[9:])
        first = _first_sums(builder, isa, builder.gep(offset, [column]))

        def step_of_k(step: Any, acc: list[Any]) -> list[Any]:
            b_here = builder.gep(b_panel, [builder.mul(step, ir.Constant(I64, isa.b_bytes(kernel)))])
            rows = distances.rows(builder, builder.gep(a, [builder.mul(step, a_step)]))
            return multiply(builder, kernel, vectors, rows, b_here, acc)

        made = counted_loop(builder, steps, squares_of(builder, kernel, vectors, first * mr), step_of_k)
        dots = rows_of(builder, kernel, vectors, made, mr)
        _add_heads(builder, isa, dots, weights, builder.gep(scores, [column]))
        return []

    counted_loop(builder, n, [], one_panel)
    builder.ret_void()
    return function


def _ask_ahead(builder: ir.IRBuilder, first: Any, codes: Any, places: Any, n: Any, n_lines: Any, distance: Any) -> None:
    """Prefetches `n` keys, maybe none, from places[first] on."""

    def one_key(number: Any, _values: list[Any]) -> list[Any]:
        at = builder.gep(places, [builder.mul(builder.add(first, number), ir.Constant(I64, 8))])
        key = builder.gep(codes, [load(builder, at, 0, I64, 8)])

        def one_line(line: Any, _values: list[Any]) -> list[Any]:
            prefetch(builder, builder.gep(key, [builder.mul(line, distance)]), 1, IN_L2)
            return []

        counted_loop(builder, n_lines, [], one_line)
        return []

    with builder.if_then(builder.icmp_signed(">", n, ir.Constant(I64, 0))):
        counted_loop(builder, n, [], one_key)


def _first_sums(builder: ir.IRBuilder, isa: Isa, offset: Any) -> list[Any]:
    vectors = isa.vectors
    if not any(isa.surplus):
        return [ir.Constant(vectors.words, None)] * vectors.n
    return [load(builder, offset, v * vectors.lanes * 4, vectors.words, 4) for v in range(vectors.n)]


def _add_heads(builder: ir.IRBuilder, isa: Isa, dots: list[Any], weights: Any, scores: Any) -> None:
    """Adds heads, whose dot products are rows of vectors, to the scores of a panel."""
    vectors = isa.vectors
    totals = [load(builder, scores, v * vectors.lanes * 4, vectors.floats, 4) for v in range(vectors.n)]
    for i in range(len(dots) // vectors.n):
        weight = vectors.splat(builder, load(builder, weights, i * 4, F32, 4))
        for v in range(vectors.n):
            value = _rounded(builder, vectors, dots[i * vectors.n + v])
            # Both have at most 11 bits, so the product is exact, and the sum is rounded as one of its own.
            totals[v] = _multiply_add(isa)(builder, vectors, totals[v], weight, value)
    for v, total in enumerate(totals):
        _store(builder, total, scores, v * vectors.lanes * 4)


def _multiply_add(isa: Isa) -> Callable[..., Any]:
    return multiply_add if isa.bf16 is not None else _multiply_then_add


def _multiply_then_add(builder: ir.IRBuilder, _vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    return builder.fadd(acc, builder.fmul(value, column))


def _rounded(builder: ir.IRBuilder, vectors: Vectors, dot: Any) -> Any:
    """max(dot, 0) as float32 of 11 bits: Veltkamp's split, whose ties go to even for all numbers that a dot can be."""
    zero = ir.Constant(vectors.words, None)
    positive = builder.select(builder.icmp_signed(">", dot, zero), dot, zero)
    value = builder.sitofp(positive, vectors.floats)
    much = builder.fmul(value, ir.Constant(vectors.floats, [SPLIT] * vectors.lanes))
    return builder.fsub(much, builder.fsub(much, value))


def _store(builder: ir.IRBuilder, value: Any, base: Any, offset_bytes: int) -> None:
    address = builder.gep(base, [ir.Constant(I64, offset_bytes)])
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=1)


def _define_pack(isa: Isa, kernel: MicroKernel, function: ir.Function) -> None:
    vectors = isa.vectors
    set.update(function.attributes, {f'"{key}"="{value}"' for key, value in isa.attributes.items()})
    codes, places, n_runs, run_stride, panel, offset = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    sums = [ir.Constant(vectors.words, None)] * vectors.n if any(isa.surplus) else []
    run_bytes = ir.Constant(I64, RUN * isa.nr)

    def run(number: Any, held: list[Any]) -> list[Any]:
        here = builder.gep(codes, [builder.mul(number, run_stride)])
        words = _transposed(builder, vectors, here, places)
        to = builder.gep(panel, [builder.mul(number, run_bytes)])
        for step in range(RUN // isa.kr_int8):
            n_words = max(isa.kr_int8 // _WORD, 1)
            in_step = [word for row in words[step * n_words : (step + 1) * n_words] for word in row]
            for i, value in enumerate(_in_order(builder, isa, in_step)):
                _store(builder, value, to, step * isa.nr * isa.kr_int8 + i * vectors.lanes * 4)
        for row in words if held else []:
            held = [_with_surplus(builder, isa, total, word) for total, word in zip(held, row, strict=True)]
        return held

    for v, total in enumerate(counted_loop(builder, n_runs, sums, run)):
        before = load(builder, offset, v * vectors.lanes * 4, vectors.words, 4)
        _store(builder, builder.sub(before, total), offset, v * vectors.lanes * 4)
    builder.ret_void()


def _with_surplus(builder: ir.IRBuilder, isa: Isa, total: Any, word: Any) -> Any:
    """`total` and what A's surplus adds to the products of four codes of each key."""
    assert isa.int8 is not None
    assert isa.kr_int8 == _WORD
    if isa.a_offset:
        everywhere = isa.vectors.splat(builder, ir.Constant(I32, isa.a_offset * 0x01010101 - 2**32))
        return isa.int8.multiply(builder, isa.vectors, total, everywhere, word)
    for r, surplus in enumerate(isa.surplus):
        code = builder.ashr(builder.shl(word, isa.vectors.filled(24 - 8 * r)), isa.vectors.filled(24))
        total = builder.add(total, builder.mul(code, isa.vectors.filled(surplus)))
    return total


def _transposed(builder: ir.IRBuilder, vectors: Vectors, here: Any, places: Any) -> list[list[Any]]:
    """The words of a run: word w of all keys as a row of vectors, w after w."""
    columns = []
    for v in range(vectors.n):
        keys = range(v * vectors.lanes, (v + 1) * vectors.lanes)
        starts = [builder.gep(here, [load(builder, places, j * 8, I64, 8)]) for j in keys]
        columns.append(_of_quads(builder, starts) if vectors.lanes == _QUAD else _of_runs(builder, starts))
    return [list(row) for row in zip(*columns, strict=True)]


def _of_quads(builder: ir.IRBuilder, starts: list[Any]) -> list[Any]:
    """The words of a run of four keys: a vector holds half a run."""
    words = []
    for first in range(0, _WORDS, _QUAD):
        quads = [load(builder, start, first * _WORD, ir.VectorType(I32, _QUAD), 1) for start in starts]
        words += _quads_transposed(builder, quads)
    return words


def _of_runs(builder: ir.IRBuilder, starts: list[Any]) -> list[Any]:
    """The words of a run of as many keys as there are lanes: a vector holds whole runs, of every fourth key."""
    n = len(starts)
    halves = []
    for keys in (starts[: n // 2], starts[n // 2 :]):
        runs = [load(builder, start, 0, ir.VectorType(I32, _WORDS), 1) for start in keys]
        halves.append(_quads_transposed(builder, [_joined(builder, runs[m::_QUAD]) for m in range(_QUAD)]))
    # A vector now has word w of four keys, word w + 4 of them, and so on with the next four.
    orders = [
        [q * _QUAD + place for q in range(first, 2 * n // _QUAD, 2) for place in range(_QUAD)] for first in (0, 1)
    ]
    return [
        builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, n), order))
        for order in orders
        for low, high in zip(*halves, strict=True)
    ]


def _joined(builder: ir.IRBuilder, parts: list[Any]) -> Any:
    """Vectors side by side, a power of two of them."""
    while len(parts) > 1:
        n = 2 * parts[0].type.count
        order = ir.Constant(ir.VectorType(I32, n), list(range(n)))
        parts = [builder.shuffle_vector(parts[i], parts[i + 1], order) for i in range(0, len(parts), 2)]
    return parts[0]


def _quads_transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """Four vectors of quads of words: each quad of the results has the words of the four quads at its place."""
    n = rows[0].type.count
    quads = range(0, n, _QUAD)

    def shuffled(a: Any, b: Any, quad: tuple[int, ...]) -> Any:
        order = [q + place % _QUAD + (n if place >= _QUAD else 0) for q in quads for place in quad]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, n), order))

    low = [shuffled(rows[i], rows[i + 1], (0, 4, 1, 5)) for i in (0, 2)]
    high = [shuffled(rows[i], rows[i + 1], (2, 6, 3, 7)) for i in (0, 2)]
    return [shuffled(a, b, half) for a, b in (low, high) for half in ((0, 1, 4, 5), (2, 3, 6, 7))]


def _in_order(builder: ir.IRBuilder, isa: Isa, words: list[Any]) -> list[Any]:
    """The words of a step of KR, row after row, as vectors in the order in which the microkernel reads them."""
    vectors, kr = isa.vectors, isa.kr_int8
    halves = 2 * vectors.lanes
    source = {}
    for r in range(0, kr, 2):
        for j in range(isa.nr):
            of = (r // _WORD) * vectors.n + j // vectors.lanes
            source[isa.int8_order.place(isa.nr, kr, r, j) // 2] = (of, j % vectors.lanes * 2 + r % _WORD // 2)
    ordered = []
    for i in range(len(words)):
        places = [source[i * halves + half] for half in range(halves)]
        taken = sorted({of for of, _ in places})
        if places == [(taken[0], half) for half in range(halves)]:
            ordered.append(words[taken[0]])
            continue
        a, b = (builder.bitcast(words[of], ir.VectorType(I16, halves)) for of in (taken[0], taken[-1]))
        order = [half if of == taken[0] else halves + half for of, half in places]
        assert len(taken) <= 2, isa.name
        ordered.append(builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, halves), order)))
    return ordered
