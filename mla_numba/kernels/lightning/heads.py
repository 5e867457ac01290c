"""Register tiles of the lightning index: products of a block of heads with a panel of keys, and their weighted sum.

`Prompt` adds up a block behind its products. `Lagging` leaves dot products in memory, and adds them up in the midst of
the next block: a CPU that multiplies in two of its ports and has others for the rest does both at once, but behind a
block it finds no products to do beside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from ..isa import Isa
from ..llvm_ir import F32, I32, I64, POINTER, Vectors, counted_loop, internal_function, load, store
from ..micro.emitter import RowDistances
from ..micro.multiply_adds import multiply_add
from ..micro.step import multiply, rows_of, squares_of

__all__ = ["BLOCK", "Heads", "Lagging", "Prompt", "lags"]

BLOCK = 8  # heads of a lagging block: a divisor of how many models have
_EXPONENT = 0x7F800000
_DROPPED = 13  # of float32's 24 bits, to leave the 11 of fp16
_AT_ONCE = 4  # steps of a lagging block, of a number that is a multiple of it; others would run out of registers
_OF_BLOCK = [I64, POINTER, I64, I64, POINTER]  # steps, a, lda, a_step, b


def lags(isa: Isa) -> bool:
    """Whether `Lagging` is faster: with one instruction a product, and registers for more than its operands."""
    return isa.lanes == 16 and isa.int8 is not None and isa.int8.passes == 1


class Heads(NamedTuple):
    """Rows of queries from `a` on, `lda` bytes apart and of `steps` steps of k, each `a_step`; weights and offsets."""

    steps: Any
    a: Any
    lda: Any
    a_step: Any
    weights: Any
    offsets: Any

    def behind(self, builder: ir.IRBuilder, rows: Any) -> Heads:
        """The heads behind the first `rows`."""
        here = builder.gep(self.a, [builder.mul(rows, self.lda)])
        four = builder.mul(rows, ir.Constant(I64, 4))
        return self._replace(
            a=here, weights=builder.gep(self.weights, [four]), offsets=builder.gep(self.offsets, [four])
        )


class Prompt:
    """Blocks of up to MR heads, as even as can be."""

    def __init__(self, isa: Isa, parent: ir.Function) -> None:
        self._isa, self._parent = isa, parent
        self._by_rows = [self._define(rows) for rows in range(1, isa.mr + 1)]

    def begin(self, builder: ir.IRBuilder, n_heads: Any) -> Any:
        """How many blocks there are."""
        n_blocks = _in_blocks(builder, n_heads, self._isa.mr)
        self._few, self._n_more = builder.udiv(n_heads, n_blocks), builder.urem(n_heads, n_blocks)
        return n_blocks

    def nothing_pending(self, _heads: Heads, _scores: Any) -> list[Any]:
        """What the first block finds."""
        return []

    def add(
        self, builder: ir.IRBuilder, number: Any, heads: Heads, keys: tuple[Any, Any], _pending: list[Any]
    ) -> tuple[Any, list[Any]]:
        """Adds a block, of this number, to the scores of a panel of keys; gives its rows, and what is still pending."""
        rows = builder.add(self._few, builder.zext(builder.icmp_unsigned("<", number, self._n_more), I64))
        done = self._parent.append_basic_block("done")
        switch = builder.switch(rows, done)
        for n, function in enumerate(self._by_rows, 1):
            case = self._parent.append_basic_block(f"heads{n}")
            switch.add_case(ir.Constant(I64, n), case)
            builder.position_at_end(case)
            builder.call(function, [*heads[:4], keys[0], *heads[4:], keys[1]])
            builder.branch(done)
        builder.position_at_end(done)
        return rows, []

    def end(self, _builder: ir.IRBuilder, _pending: list[Any]) -> None:
        """Adds what is pending."""

    def _define(self, n_rows: int) -> ir.Function:
        """`block(..., weights, offsets, scores)` of so many heads."""
        isa, n = self._isa, self._isa.vectors.n
        builder, arguments = _function(isa, self._parent, str(n_rows), [*_OF_BLOCK, *[POINTER] * 3])
        weights, offsets, scores = arguments[5:]
        products = _Products(builder, isa, n_rows, arguments[:5], at_once=1)

        def some_steps(number: Any, sums: list[Any]) -> list[Any]:
            return products.added(sums, number)

        dots = products.rows(counted_loop(builder, products.n_turns, products.first(offsets), some_steps))
        totals = _load_totals(builder, isa.vectors, scores)
        for i in range(n_rows):
            totals = _with_head(builder, isa, totals, dots[i * n : (i + 1) * n], load(builder, weights, i * 4, F32, 4))
        _store_totals(builder, isa.vectors, totals, scores)
        builder.ret_void()
        return builder.function


class Lagging:
    """Blocks of BLOCK heads; where the last one has fewer, there are rows with weight 0."""

    def __init__(self, isa: Isa, parent: ir.Function) -> None:
        self._isa = isa
        self._block = self._define(parent)

    def begin(self, builder: ir.IRBuilder, n_heads: Any) -> Any:
        """As `Prompt`."""
        memory = builder.alloca(ir.ArrayType(self._isa.vectors.words, BLOCK * self._isa.vectors.n))
        memory.align = self._isa.lanes * 4
        self._dots = builder.bitcast(memory, POINTER)
        return _in_blocks(builder, n_heads, BLOCK)

    def nothing_pending(self, heads: Heads, scores: Any) -> list[Any]:
        """As `Prompt`: how many heads of the block before, and what is not used without any."""
        return [ir.Constant(I64, 0), heads.weights, heads.offsets, scores]

    def add(
        self, builder: ir.IRBuilder, _number: Any, heads: Heads, keys: tuple[Any, Any], pending: list[Any]
    ) -> tuple[Any, list[Any]]:
        """As `Prompt`."""
        builder.call(self._block, [*heads[:4], keys[0], self._dots, *pending])
        n = ir.Constant(I64, BLOCK)
        return n, [n, heads.weights, heads.offsets, keys[1]]

    def end(self, builder: ir.IRBuilder, pending: list[Any]) -> None:
        """As `Prompt`."""
        _, weights, offsets, scores = pending
        one_head = self._adds(builder, self._dots, weights, offsets)
        totals = _load_totals(builder, self._isa.vectors, scores)
        totals = counted_loop(builder, ir.Constant(I64, BLOCK), totals, one_head)
        _store_totals(builder, self._isa.vectors, totals, scores)

    def _define(self, parent: ir.Function) -> ir.Function:
        """`block(..., dots, n_pending, weights, offsets, scores)`: dots of a block, in place of those that were there.

        These are added first, to their scores: one head behind each few steps, and behind all steps what is left.
        """
        isa, vectors = self._isa, self._isa.vectors
        builder, arguments = _function(isa, parent, "block", [*_OF_BLOCK, POINTER, I64, *[POINTER] * 3])
        dots, n_pending, weights, offsets, scores = arguments[5:]
        products = _Products(builder, isa, BLOCK, arguments[:5], at_once=_AT_ONCE)
        n_sums, one_head = BLOCK * vectors.n, self._adds(builder, dots, weights, offsets)

        def some_steps(number: Any, held: list[Any]) -> list[Any]:
            is_pending = builder.icmp_unsigned("<", number, n_pending)
            totals = _if(builder, is_pending, held[n_sums:], lambda totals: one_head(number, totals))
            return [*products.added(held[:n_sums], number), *totals]

        held = [*products.first(), *_load_totals(builder, vectors, scores)]
        held = counted_loop(builder, products.n_turns, held, some_steps)

        def others(totals: list[Any]) -> list[Any]:
            n = builder.sub(n_pending, products.n_turns)
            return counted_loop(builder, n, totals, lambda i, held: one_head(builder.add(products.n_turns, i), held))

        are_left = builder.icmp_unsigned("<", products.n_turns, n_pending)
        _store_totals(builder, vectors, _if(builder, are_left, held[n_sums:], others), scores)
        for i, row in enumerate(products.rows(held[:n_sums])):
            store(builder, row, dots, i * isa.lanes * 4)
        builder.ret_void()
        return builder.function

    def _adds(self, builder: ir.IRBuilder, dots: Any, weights: Any, offsets: Any) -> Any:
        """What adds a head in memory, by its number, to the scores of a panel."""
        isa, vectors = self._isa, self._isa.vectors

        def one_head(number: Any, totals: list[Any]) -> list[Any]:
            row_bytes = ir.Constant(I64, vectors.n * vectors.lanes * 4)
            here = builder.gep(dots, [builder.mul(number, row_bytes)])
            weight, offset = (builder.gep(p, [builder.mul(number, ir.Constant(I64, 4))]) for p in (weights, offsets))
            row = [load(builder, here, v * vectors.lanes * 4, vectors.words, 4) for v in range(vectors.n)]
            every = vectors.splat(builder, load(builder, offset, 0, I32, 4))
            row = [builder.add(dot, every) for dot in row]
            return _with_head(builder, isa, totals, row, load(builder, weight, 0, F32, 4))

        return one_head


def _in_blocks(builder: ir.IRBuilder, n: Any, size: int) -> Any:
    return builder.udiv(builder.add(n, ir.Constant(I64, size - 1)), ir.Constant(I64, size))


def _function(isa: Isa, parent: ir.Function, name: str, kinds: list[ir.Type]) -> tuple[ir.IRBuilder, Any]:
    fnty = ir.FunctionType(ir.VoidType(), kinds)
    function = internal_function(parent.module, fnty, f"{parent.name}_{name}", isa.attributes)
    return ir.IRBuilder(function.append_basic_block("entry")), function.args


def _if(builder: ir.IRBuilder, condition: Any, values: list[Any], change: Any) -> list[Any]:
    """The values, changed if the condition holds."""
    before = builder.block
    then, done = (builder.append_basic_block(name) for name in ("then", "done"))
    builder.cbranch(condition, then, done)
    builder.position_at_end(then)
    changed = change(values)
    then = builder.block
    builder.branch(done)
    builder.position_at_end(done)
    made = []
    for old, new in zip(values, changed, strict=True):
        made.append(builder.phi(old.type))
        made[-1].add_incoming(old, before)
        made[-1].add_incoming(new, then)
    return made


class _Products:
    """Dot products of some heads with a panel, in registers, `at_once` steps a turn. `operands` are `_OF_BLOCK`'s."""

    def __init__(self, builder: ir.IRBuilder, isa: Isa, n_rows: int, operands: Any, at_once: int) -> None:
        assert isa.int8 is not None
        self._builder, self._isa, self._kernel = builder, isa, isa.int8
        self._n_rows, self._at_once = n_rows, at_once
        steps, self._a, lda, a_step, self._b = operands
        self._distances = RowDistances(builder, lda, n_rows)
        self.n_turns = builder.udiv(steps, ir.Constant(I64, at_once))
        self._a_bytes = builder.mul(a_step, ir.Constant(I64, at_once))

    def first(self, offsets: Any = None) -> list[Any]:
        """The accumulators before any step: zeros, or the offsets of rows, if there can be other ones than zeros.

        That many registers with equal values take longer than zeros where all are in use.
        """
        builder, vectors = self._builder, self._isa.vectors
        firsts: list[Any] = [ir.Constant(vectors.words, None)] * self._n_rows
        if offsets is not None and any(self._isa.surplus):
            firsts = [vectors.splat(builder, load(builder, offsets, i * 4, I32, 4)) for i in range(self._n_rows)]
        sums = [first for first in firsts for _ in range(vectors.n)]
        return squares_of(builder, self._kernel, vectors, sums)

    def added(self, sums: list[Any], turn: Any) -> list[Any]:
        """The accumulators after the steps of a turn."""
        builder, isa, kernel = self._builder, self._isa, self._kernel
        a_here = builder.gep(self._a, [builder.mul(turn, self._a_bytes)])
        b_here = builder.gep(self._b, [builder.mul(turn, ir.Constant(I64, self._at_once * isa.b_bytes(kernel)))])
        for step in range(self._at_once):
            rows = self._distances.rows(builder, builder.gep(a_here, [ir.Constant(I64, step * isa.a_bytes(kernel))]))
            b = builder.gep(b_here, [ir.Constant(I64, step * isa.b_bytes(kernel))])
            sums = multiply(builder, kernel, isa.vectors, rows, b, sums)
        return sums

    def rows(self, sums: list[Any]) -> list[Any]:
        """Accumulators after the last step as rows of vectors."""
        return rows_of(self._builder, self._kernel, self._isa.vectors, sums, self._n_rows)


def _load_totals(builder: ir.IRBuilder, vectors: Vectors, scores: Any) -> list[Any]:
    return [load(builder, scores, v * vectors.lanes * 4, vectors.floats, 4) for v in range(vectors.n)]


def _store_totals(builder: ir.IRBuilder, vectors: Vectors, totals: list[Any], scores: Any) -> None:
    for v, total in enumerate(totals):
        store(builder, total, scores, v * vectors.lanes * 4)


def _with_head(builder: ir.IRBuilder, isa: Isa, totals: list[Any], dots: list[Any], weight: Any) -> list[Any]:
    """The scores of a panel with one more head."""
    vectors = isa.vectors
    multiply_and_add = multiply_add if isa.bf16 is not None else _multiply_then_add
    weight = vectors.splat(builder, weight)
    # Both have at most 11 bits, so the product is exact, and the sum is rounded as one of its own.
    return [
        multiply_and_add(builder, vectors, total, weight, _rounded(builder, vectors, dot))
        for total, dot in zip(totals, dots, strict=True)
    ]


def _multiply_then_add(builder: ir.IRBuilder, _vectors: Vectors, acc: Any, value: Any, column: Any) -> Any:
    return builder.fadd(acc, builder.fmul(value, column))


def _rounded(builder: ir.IRBuilder, vectors: Vectors, dot: Any) -> Any:
    """max(dot, 0) as float32 of 11 bits, ties to even, as any addition rounds: to a power of two 2**13 times as large
    nothing can be added but multiples of what the 11th bit counts.
    """
    zero = ir.Constant(vectors.words, None)
    positive = builder.select(builder.icmp_signed(">", dot, zero), dot, zero)
    value = builder.sitofp(positive, vectors.floats)
    exponent = builder.and_(builder.bitcast(value, vectors.words), vectors.filled(_EXPONENT))
    large = builder.bitcast(builder.add(exponent, vectors.filled(_DROPPED << 23)), vectors.floats)
    return builder.fsub(builder.fadd(value, large), large)
