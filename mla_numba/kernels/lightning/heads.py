"""Register tiles of the lightning index: products of a block of heads with a panel of keys, and their weighted sum.

`Prompt` adds up a block behind its products. `Lagging` leaves dot products in memory, and adds them up in the midst of
the next block: a CPU that multiplies in two of its ports and has others for the rest does both at once, but behind a
block it finds no products to do beside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from ..isa import Isa
from ..llvm_ir import F32, I64, POINTER, Vectors, counted_loop, internal_function, load, store
from ..micro.emitter import RowDistances
from ..micro.multiply_adds import multiply_add
from ..micro.step import multiply, rows_of, squares_of

__all__ = ["BLOCK", "Heads", "Lagging", "Prompt", "lags"]

BLOCK = 8  # heads of a lagging block: a divisor of how many models have
_EXPONENT = 0x7F800000
_DROPPED = 13  # of float32's 24 bits, to leave the 11 of fp16
_PARTS = 4  # of a block's steps; behind each some heads of the block before are added
_OF_BLOCK = [I64, POINTER, I64, I64, POINTER, POINTER]  # steps, a, lda, a_step, b, offset


def lags(isa: Isa) -> bool:
    """Whether `Lagging` is faster: with one instruction a product, and registers for more than its operands."""
    return isa.lanes == 16 and isa.a_offset != 0


class Heads(NamedTuple):
    """Rows of queries from `a` on, `lda` bytes apart and of `steps` steps of k, each `a_step`; their weights."""

    steps: Any
    a: Any
    lda: Any
    a_step: Any
    weights: Any

    @property
    def rows(self) -> tuple[Any, ...]:
        """What products need of them."""
        return self[:4]


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

    def nothing_pending(self, _weights: Any, _scores: Any) -> list[Any]:
        """What the first block finds."""
        return []

    def add(
        self, builder: ir.IRBuilder, at: tuple[Any, Any], heads: Heads, keys: tuple[Any, ...], _pending: list[Any]
    ) -> tuple[Any, list[Any]]:
        """Adds a block, at a panel and a number, to the scores; how many rows it has, and what is still pending."""
        rows = builder.add(self._few, builder.zext(builder.icmp_unsigned("<", at[1], self._n_more), I64))
        done = self._parent.append_basic_block("done")
        switch = builder.switch(rows, done)
        for n, function in enumerate(self._by_rows, 1):
            case = self._parent.append_basic_block(f"heads{n}")
            switch.add_case(ir.Constant(I64, n), case)
            builder.position_at_end(case)
            builder.call(function, [*heads.rows, *keys[:2], heads.weights, keys[2]])
            builder.branch(done)
        builder.position_at_end(done)
        return rows, []

    def end(self, _builder: ir.IRBuilder, _pending: list[Any]) -> None:
        """Adds what is pending."""

    def _define(self, n_rows: int) -> ir.Function:
        """`block(..., weights, scores)` of so many heads."""
        isa = self._isa
        builder, arguments = _function(isa, self._parent, str(n_rows), [*_OF_BLOCK, POINTER, POINTER])
        products = _Products(builder, isa, n_rows, arguments[:6])
        dots = products.rows(products.added(products.first(), ir.Constant(I64, 0), arguments[0]))
        _add_heads(builder, isa, dots, *arguments[6:])
        builder.ret_void()
        return builder.function


class Lagging:
    """Blocks of BLOCK heads; where the last one has fewer, there are rows with weight 0."""

    def __init__(self, isa: Isa, parent: ir.Function) -> None:
        self._isa = isa
        self._first, self._next = (self._define(parent, name) for name in ("first", "next"))
        builder, arguments = _function(isa, parent, "last", [POINTER] * 3)
        self._add(builder, range(BLOCK), *arguments)
        builder.ret_void()
        self._last = builder.function

    def begin(self, builder: ir.IRBuilder, n_heads: Any) -> Any:
        """As `Prompt`."""
        memory = builder.alloca(ir.ArrayType(self._isa.vectors.words, BLOCK * self._isa.vectors.n))
        memory.align = self._isa.lanes * 4
        self._dots = builder.bitcast(memory, POINTER)
        return _in_blocks(builder, n_heads, BLOCK)

    def nothing_pending(self, weights: Any, scores: Any) -> list[Any]:
        """As `Prompt`: weights and scores of the block before, which for the first one are not used."""
        return [weights, scores]

    def add(
        self, builder: ir.IRBuilder, at: tuple[Any, Any], heads: Heads, keys: tuple[Any, ...], pending: list[Any]
    ) -> tuple[Any, list[Any]]:
        """As `Prompt`."""
        operands = [*heads.rows, *keys[:2], self._dots, *pending]
        is_first = builder.icmp_signed("==", builder.or_(*at), ir.Constant(I64, 0))
        with builder.if_else(is_first) as (then, otherwise):
            with then:
                builder.call(self._first, operands)
            with otherwise:
                builder.call(self._next, operands)
        return ir.Constant(I64, BLOCK), [heads.weights, keys[2]]

    def end(self, builder: ir.IRBuilder, pending: list[Any]) -> None:
        """As `Prompt`."""
        builder.call(self._last, [self._dots, *pending])

    def _define(self, parent: ir.Function, name: str) -> ir.Function:
        """`block(..., dots, weights, scores)`: dots of a block, to memory; the "next" one adds those that are there."""
        isa = self._isa
        builder, arguments = _function(isa, parent, name, [*_OF_BLOCK, POINTER, POINTER, POINTER])
        products, dots = _Products(builder, isa, BLOCK, arguments[:6]), arguments[6]
        n_steps, sums = builder.udiv(arguments[0], ir.Constant(I64, _PARTS)), products.first()
        for part in range(_PARTS):
            sums = products.added(sums, builder.mul(n_steps, ir.Constant(I64, part)), n_steps)
            if name == "next":
                self._add(builder, range(BLOCK * part // _PARTS, BLOCK * (part + 1) // _PARTS), *arguments[6:])
        for i, row in enumerate(products.rows(sums)):
            store(builder, row, dots, i * isa.lanes * 4)
        builder.ret_void()
        return builder.function

    def _add(self, builder: ir.IRBuilder, heads: range, dots: Any, weights: Any, scores: Any) -> None:
        """Adds some heads of the block in memory."""
        vectors = self._isa.vectors
        places = range(heads.start * vectors.n, heads.stop * vectors.n)
        rows = [load(builder, dots, i * vectors.lanes * 4, vectors.words, 4) for i in places]
        _add_heads(builder, self._isa, rows, builder.gep(weights, [ir.Constant(I64, heads.start * 4)]), scores)


def _in_blocks(builder: ir.IRBuilder, n: Any, size: int) -> Any:
    return builder.udiv(builder.add(n, ir.Constant(I64, size - 1)), ir.Constant(I64, size))


def _function(isa: Isa, parent: ir.Function, name: str, kinds: list[ir.Type]) -> tuple[ir.IRBuilder, Any]:
    fnty = ir.FunctionType(ir.VoidType(), kinds)
    function = internal_function(parent.module, fnty, f"{parent.name}_{name}", isa.attributes)
    return ir.IRBuilder(function.append_basic_block("entry")), function.args


class _Products:
    """Dot products of some heads with a panel, in registers. `operands` are those of `_OF_BLOCK`."""

    def __init__(self, builder: ir.IRBuilder, isa: Isa, n_rows: int, operands: Any) -> None:
        assert isa.int8 is not None
        self._builder, self._isa, self._kernel, self._n_rows = builder, isa, isa.int8, n_rows
        _, self._a, lda, self._a_step, self._b, self._offset = operands
        self._distances = RowDistances(builder, lda, n_rows)

    def first(self) -> list[Any]:
        """The accumulators before any step."""
        builder, vectors = self._builder, self._isa.vectors
        sums = [ir.Constant(vectors.words, None)] * vectors.n
        if any(self._isa.surplus):
            sums = [load(builder, self._offset, v * vectors.lanes * 4, vectors.words, 4) for v in range(vectors.n)]
        return squares_of(builder, self._kernel, vectors, sums * self._n_rows)

    def added(self, sums: list[Any], first: Any, n: Any) -> list[Any]:
        """The accumulators after steps first..first + n, at least one."""
        builder, b_bytes = self._builder, ir.Constant(I64, self._isa.b_bytes(self._kernel))

        def one_step(number: Any, acc: list[Any]) -> list[Any]:
            step = builder.add(first, number)
            b_here = builder.gep(self._b, [builder.mul(step, b_bytes)])
            rows = self._distances.rows(builder, builder.gep(self._a, [builder.mul(step, self._a_step)]))
            return multiply(builder, self._kernel, self._isa.vectors, rows, b_here, acc)

        return counted_loop(builder, n, sums, one_step)

    def rows(self, sums: list[Any]) -> list[Any]:
        """Accumulators after the last step as rows of vectors."""
        return rows_of(self._builder, self._kernel, self._isa.vectors, sums, self._n_rows)


def _add_heads(builder: ir.IRBuilder, isa: Isa, dots: list[Any], weights: Any, scores: Any) -> None:
    """Adds heads, whose dot products are rows of vectors, to the scores of a panel."""
    vectors = isa.vectors
    multiply_and_add = multiply_add if isa.bf16 is not None else _multiply_then_add
    totals = [load(builder, scores, v * vectors.lanes * 4, vectors.floats, 4) for v in range(vectors.n)]
    for i in range(len(dots) // vectors.n):
        weight = vectors.splat(builder, load(builder, weights, i * 4, F32, 4))
        for v in range(vectors.n):
            value = _rounded(builder, vectors, dots[i * vectors.n + v])
            # Both have at most 11 bits, so the product is exact, and the sum is rounded as one of its own.
            totals[v] = multiply_and_add(builder, vectors, totals[v], weight, value)
    for v, total in enumerate(totals):
        store(builder, total, scores, v * vectors.lanes * 4)


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
