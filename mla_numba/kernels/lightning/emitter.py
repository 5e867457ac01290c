"""Vector code of the lightning index, for any instruction set that has some.

    scores(n_heads, n, steps, a, lda, a_step, b, offset, weights, scores, codes, places, n_ahead, n_lines, distance)
    pack(codes, places, n_runs, run_stride, panel, offset)

`scores` goes through `n` panels of NR keys and for each through all heads, at least one of each; see `heads`.
Meanwhile it asks for lines of the keys that come next: of `n_ahead` keys for each panel p, from places[p * NR] on. See
`score_panels` and `pack_panel` for what both compute. Distances count bytes. See `chosen` for another one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..isa import Isa
from ..llvm_ir import I64, IN_L1, POINTER, counted_loop, load, prefetch
from .chosen import can_append, define_append
from .heads import Heads, Lagging, Prompt, lags
from .packing import define_pack

__all__ = ["declare_pack", "declare_scores", "define_lightning"]


def define_lightning(module: ir.Module, isa: Isa) -> None:
    """The functions, defined in a module."""
    assert isa.int8 is not None
    isa = isa.of_keys
    _define_scores(isa, declare_scores(module, isa))
    define_pack(isa, declare_pack(module, isa))
    if can_append(isa):
        define_append(module, isa)


def declare_scores(module: ir.Module, isa: Isa) -> ir.Function:
    """`scores`, as it is known to who calls it."""
    arguments = [I64, I64, I64, POINTER, I64, I64, *[POINTER] * 6, I64, I64, I64]
    return _declared(module, f"mla_numba_scores_{isa.name}", arguments)


def declare_pack(module: ir.Module, isa: Isa) -> ir.Function:
    """`pack`, as it is known to who calls it."""
    return _declared(module, f"mla_numba_pack_keys_{isa.name}", [POINTER, POINTER, I64, I64, POINTER, POINTER])


def _declared(module: ir.Module, name: str, arguments: list[ir.Type]) -> ir.Function:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)


def _define_scores(isa: Isa, function: ir.Function) -> None:
    assert isa.int8 is not None
    n_heads, n, steps, a, lda, a_step, b, offset, weights, scores, codes, places, n_ahead, *lines = function.args
    blocks = (Lagging if lags(isa) else Prompt)(isa, function)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    panel_bytes = builder.mul(steps, ir.Constant(I64, isa.b_bytes(isa.int8)))
    n_blocks = blocks.begin(builder, n_heads)

    def one_panel(panel: Any, pending: list[Any]) -> list[Any]:
        column = builder.mul(panel, ir.Constant(I64, isa.nr * 4))
        keys = (
            builder.gep(b, [builder.mul(panel, panel_bytes)]), builder.gep(offset, [column]),
            builder.gep(scores, [column]),
        )  # fmt: skip
        places_here = builder.gep(places, [builder.mul(panel, ir.Constant(I64, isa.nr * 8))])

        def one_block(block: Any, held: list[Any]) -> list[Any]:
            _ask_ahead(builder, (n_ahead, n_blocks), block, codes, places_here, lines)
            heads = Heads(steps, held[0], lda, a_step, held[1])
            rows, pending = blocks.add(builder, (panel, block), heads, keys, held[2:])
            following = builder.gep(held[0], [builder.mul(rows, lda)])
            return [following, builder.gep(held[1], [builder.mul(rows, ir.Constant(I64, 4))]), *pending]

        return counted_loop(builder, n_blocks, [a, weights, *pending], one_block)[2:]

    blocks.end(builder, counted_loop(builder, n, blocks.nothing_pending(weights, scores), one_panel))
    builder.ret_void()


def _ask_ahead(builder: ir.IRBuilder, of: tuple[Any, Any], number: Any, codes: Any, places: Any, lines: Any) -> None:
    """Prefetches share `number` of `n` of the keys at `places`, their lines two by two and maybe one too many."""
    (n_keys, n_shares), (n_lines, distance), one = of, lines, ir.Constant(I64, 1)
    first, end = (builder.udiv(builder.mul(n_keys, i), n_shares) for i in (number, builder.add(number, one)))

    def one_key(key: Any, _values: list[Any]) -> list[Any]:
        at = builder.gep(places, [builder.mul(builder.add(first, key), ir.Constant(I64, 8))])
        start = builder.gep(codes, [load(builder, at, 0, I64, 8)])

        def two_lines(pair: Any, _values: list[Any]) -> list[Any]:
            line = builder.gep(start, [builder.mul(builder.shl(pair, one), distance)])
            for each in (line, builder.gep(line, [distance])):
                prefetch(builder, each, 1, IN_L1)
            return []

        counted_loop(builder, builder.lshr(builder.add(n_lines, one), one), [], two_lines)
        return []

    n = builder.sub(end, first)
    with builder.if_then(builder.icmp_signed(">", n, ir.Constant(I64, 0))):
        counted_loop(builder, n, [], one_key)
