"""One step of k: the products of KR values of each row of A with a block of B, in a microkernel's order.

Where an instruction multiplies squares, it also says how rows of sums become such accumulators, and rows again.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from llvmlite import ir

from ..isa import MicroKernel
from ..llvm_ir import I32, Vectors, load, no_load_passes

__all__ = ["multiply", "rows_of", "squares_of", "sums_begin"]


def multiply(
    builder: ir.IRBuilder, kernel: MicroKernel, vectors: Vectors, rows: list[Any], b: Any, acc: list[Any]
) -> list[Any]:
    """The accumulators after KR steps of k; `rows` are the addresses of their values of A, `b` that of B."""
    n, square = kernel.square * vectors.n, kernel.square
    loaded = [kernel.load(builder, vectors, b, v) for v in range(n)]
    groups = [rows[i : i + square] if square > 1 else rows[i] for i in range(0, len(rows), square)]
    columns: dict[int, list[Any]] = {}
    values: dict[tuple[int, int], Any] = {}
    for k, i, v in _in_order(kernel, len(groups), n):
        if k not in columns:
            if columns and kernel.order == "passes":
                no_load_passes(builder)  # early ones would take registers from the sums
            columns[k] = [kernel.column(builder, vectors, raw, k) for raw in loaded]
        if (k, i) not in values:
            values[k, i] = kernel.value(builder, vectors, groups[i], k)
        at = i * n + v
        acc[at] = kernel.multiply(builder, vectors, acc[at], values[k, i], columns[k][v])
    return acc


def _in_order(kernel: MicroKernel, n_groups: int, n: int) -> list[tuple[int, int, int]]:
    """Every pass, group of rows and vector of columns, in the kernel's order of loops."""
    turns = list(product(range(kernel.passes), range(n_groups), range(n)))
    if kernel.order == "rows":
        turns.sort(key=lambda turn: (turn[1], turn[0], turn[2]))
    elif kernel.order == "columns":
        turns.sort(key=lambda turn: (turn[2], turn[0], turn[1]))
    return turns


def sums_begin(builder: ir.IRBuilder, kernel: MicroKernel, vectors: Vectors, a: Any, lda: Any, mr: int) -> list[Any]:
    """What the sums of each row from `a` on begin with, in all lanes: 0, or where a kernel `shifts` its end."""
    if not kernel.shifts:
        return [ir.Constant(vectors.words if kernel.is_int8 else vectors.floats, None)] * mr
    begins, end = [], a
    for _ in range(mr):
        end = builder.gep(end, [lda])
        begins.append(vectors.splat(builder, load(builder, end, -4, I32, 2)))
    return begins


def squares_of(builder: ir.IRBuilder, kernel: MicroKernel, vectors: Vectors, sums: list[Any]) -> list[Any]:
    """Rows of sums as accumulators of the kernel's squares; a row without a second one is taken twice."""
    if kernel.square == 1:
        return sums
    n = vectors.n
    rows = [sums[i : i + n] for i in range(0, len(sums), n)]
    squares: list[Any] = []
    for i in range(0, len(rows), 2):
        for pair in zip(rows[i], rows[min(i + 1, len(rows) - 1)], strict=True):
            squares += _halves_exchanged(builder, *pair)
    return squares


def rows_of(builder: ir.IRBuilder, kernel: MicroKernel, vectors: Vectors, squares: list[Any], mr: int) -> list[Any]:
    """`squares_of` undone, of `mr` rows."""
    if kernel.square == 1:
        return squares
    n = vectors.n
    rows: list[Any] = []
    for i in range(0, len(squares), 2 * n):
        pairs = [_halves_exchanged(builder, *squares[v : v + 2]) for v in range(i, i + 2 * n, 2)]
        rows += [first for first, _ in pairs] + [second for _, second in pairs]
    return rows[: mr * n]


def _halves_exchanged(builder: ir.IRBuilder, first: Any, second: Any) -> tuple[Any, Any]:
    """Both lower halves, and both upper ones."""
    half = first.type.count // 2
    kind = ir.VectorType(I32, 2 * half)
    lower = [*range(half), *range(2 * half, 3 * half)]
    masks = (ir.Constant(kind, lower), ir.Constant(kind, [lane + half for lane in lower]))
    low, high = (builder.shuffle_vector(first, second, mask) for mask in masks)
    return low, high
