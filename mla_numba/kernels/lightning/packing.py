"""How keys, rows of a cache, come into the order in which a microkernel reads panels of int8: a transpose of words.

A vector takes as many words of a key as it has lanes, and as many keys are transposed at once: first quads of words
with those of four keys, then the quads. With loads of a quad, or of half a vector, it takes twice as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..isa import Isa
from ..llvm_ir import I16, I32, I64, add_attributes, counted_loop, load, store

__all__ = ["RUN", "define_pack"]

RUN = 32  # codes of a key that lie side by side in any cache, and at which packed keys are padded
_WORD = 4  # codes
_WORDS = RUN // _WORD
_QUAD = 4  # words that are transposed with those of as many keys


def define_pack(isa: Isa, function: ir.Function) -> None:
    """`pack(codes, places, n_runs, run_stride, panel)`, see `emitter`."""
    isa = isa.of_keys
    add_attributes(function, isa.attributes)
    codes, places, n_runs, run_stride, panel = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    at_once = 1 if _is_plain(isa) else isa.vectors.n  # more would not fit into the registers

    def some_keys(number: Any, _values: list[Any]) -> list[Any]:
        of_words = builder.mul(number, ir.Constant(I64, isa.lanes * _WORD))
        keys = _Keys(
            codes, builder.gep(places, [builder.mul(number, ir.Constant(I64, isa.lanes * 8))]), run_stride,
            builder.gep(panel, [of_words]),
        )  # fmt: skip
        _pack_runs(_Pack(builder, isa, at_once, keys), n_runs)
        return []

    counted_loop(builder, ir.Constant(I64, isa.vectors.n // at_once), [], some_keys)
    builder.ret_void()


def _is_plain(isa: Isa) -> bool:
    """Whether a panel has word after word of all keys."""
    words = (isa.int8_order.place(isa.nr, isa.kr_int8, r, j) for j in range(isa.nr) for r in range(isa.kr_int8))
    return isa.kr_int8 == _WORD and all(place == i for i, place in enumerate(words))


class _Keys(NamedTuple):
    """Keys that are packed at once: where they lie, and where they come to."""

    codes: Any
    places: Any
    run_stride: Any
    panel: Any


def _pack_runs(pack: _Pack, n_runs: Any) -> None:
    """Packs all runs, two at once where a vector has room for them."""
    builder, zero, one = pack.builder, ir.Constant(I64, 0), ir.Constant(I64, 1)
    if pack.isa.lanes <= _WORDS:
        pack.runs(zero, n_runs, 1)
        return
    n_pairs = builder.lshr(n_runs, one)
    with builder.if_then(builder.icmp_unsigned(">", n_pairs, zero)):
        in_a_row = builder.icmp_signed("==", pack.keys.run_stride, ir.Constant(I64, RUN))
        with builder.if_else(in_a_row) as (then, otherwise):
            with then:
                pack.runs(zero, n_pairs, 2, in_a_row=True)
            with otherwise:
                pack.runs(zero, n_pairs, 2)
    with builder.if_then(builder.icmp_unsigned("==", builder.and_(n_runs, one), one)):
        pack.runs(builder.sub(n_runs, one), one, 1)


class _Pack:
    """Packs the keys of `n_vectors` vectors."""

    def __init__(self, builder: ir.IRBuilder, isa: Isa, n_vectors: int, keys: _Keys) -> None:
        self.builder, self.isa, self.keys, self._n_vectors = builder, isa, keys, n_vectors

    def runs(self, first: Any, n: Any, at_once: int, in_a_row: bool = False) -> None:
        """Packs `n` times, at least once, `at_once` runs, from run `first` on; in_a_row if one load takes them."""
        builder, isa, vectors, keys = self.builder, self.isa, self.isa.vectors, self.keys

        def some(number: Any, _values: list[Any]) -> list[Any]:
            run = builder.add(first, builder.mul(number, ir.Constant(I64, at_once)))
            words = self._words(builder.gep(keys.codes, [builder.mul(run, keys.run_stride)]), at_once, in_a_row)
            to = builder.gep(keys.panel, [builder.mul(run, ir.Constant(I64, RUN * isa.nr))])
            in_panel = [[row[0]] for row in words] if self._n_vectors == 1 else _in_panel(builder, isa, words)
            for w, row in enumerate(in_panel):
                for v, value in enumerate(row):
                    store(builder, value, to, w * isa.nr * _WORD + v * vectors.lanes * _WORD)
            return []

        counted_loop(builder, n, [], some)

    def _words(self, here: Any, at_once: int, in_a_row: bool) -> list[list[Any]]:
        """The words of some runs: word w of all keys as a row of vectors, w after w."""
        builder, lanes = self.builder, self.isa.lanes
        columns = []
        for v in range(self._n_vectors):
            keys = range(v * lanes, (v + 1) * lanes)
            starts = [builder.gep(here, [load(builder, self.keys.places, j * 8, I64, 8)]) for j in keys]
            words: list[Any] = []
            for first in range(0, at_once * _WORDS, lanes):
                n = min(at_once * _WORDS - first, lanes)
                words += _transposed(builder, [self._row(start, first, n, in_a_row) for start in starts])[:n]
            columns.append(words)
        return [list(row) for row in zip(*columns, strict=True)]

    def _row(self, start: Any, first: int, n: int, in_a_row: bool) -> Any:
        """Words first..first + n of a key, and maybe others."""
        builder, lanes = self.builder, self.isa.lanes
        if n <= _WORDS or in_a_row:
            row = load(builder, start, first * _WORD, ir.VectorType(I32, n), 1)
        else:
            runs = (start, builder.gep(start, [self.keys.run_stride]))
            row = _side_by_side(builder, *(load(builder, run, 0, ir.VectorType(I32, _WORDS), 1) for run in runs))
        row = _flipped(builder, self.isa, row)
        return row if row.type.count == lanes else _side_by_side(builder, row, row)


def _flipped(builder: ir.IRBuilder, isa: Isa, row: Any) -> Any:
    """Words of a key with the bits flipped that its products ask for."""
    flips = isa.flips(is_int8=True)
    if not flips.any():
        return row
    assert isa.kr_int8 == _WORD
    word = int.from_bytes(flips.astype(np.uint8).tobytes(), "little")
    return builder.xor(row, ir.Constant(row.type, [word] * row.type.count))


def _side_by_side(builder: ir.IRBuilder, low: Any, high: Any) -> Any:
    return _shuffled(builder, low, high, range(2 * low.type.count))


def _shuffled(builder: ir.IRBuilder, a: Any, b: Any, order: Any) -> Any:
    places = list(order)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), places))


def _transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """n vectors of n words."""
    n = len(rows)
    groups = [_quads_transposed(builder, rows[first : first + _QUAD]) for first in range(0, n, _QUAD)]
    # Vector i of a group has, quad by quad, the words i, 4 + i, 8 + i and so on of its four keys.
    by_word = [_quarters(builder, [group[i] for group in groups]) for i in range(_QUAD)]
    return [by_word[w % _QUAD][w // _QUAD] for w in range(n)]


def _quarters(builder: ir.IRBuilder, vectors: list[Any]) -> list[Any]:
    """Quad j of each vector, side by side, for every j: as many vectors as there are quads in one."""
    n = len(vectors)
    if n == 1:
        return vectors

    def taken(a: Any, b: Any, order: list[int]) -> Any:
        return _shuffled(builder, a, b, [quad * _QUAD + place for quad in order for place in range(_QUAD)])

    if n == 2:
        return [taken(vectors[0], vectors[1], order) for order in ([0, 2], [1, 3])]
    low = [taken(vectors[i], vectors[i + 1], [0, 1, 4, 5]) for i in (0, 2)]
    high = [taken(vectors[i], vectors[i + 1], [2, 3, 6, 7]) for i in (0, 2)]
    return [taken(half[0], half[1], order) for half in (low, high) for order in ([0, 2, 4, 6], [1, 3, 5, 7])]


def _quads_transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """Four vectors of quads of words: each quad of the results has the words of the four quads at its place."""
    n = rows[0].type.count
    quads = range(0, n, _QUAD)

    def shuffled(a: Any, b: Any, quad: tuple[int, ...]) -> Any:
        return _shuffled(builder, a, b, [q + place % _QUAD + n * (place // _QUAD) for q in quads for place in quad])

    low = [shuffled(rows[i], rows[i + 1], (0, 4, 1, 5)) for i in (0, 2)]
    high = [shuffled(rows[i], rows[i + 1], (2, 6, 3, 7)) for i in (0, 2)]
    return [shuffled(a, b, half) for a, b in (low, high) for half in ((0, 1, 4, 5), (2, 3, 6, 7))]


def _in_panel(builder: ir.IRBuilder, isa: Isa, words: list[list[Any]]) -> list[list[Any]]:
    """Words as the vectors that a panel has there, as many in a row."""
    n_words = isa.kr_int8 // _WORD
    steps = [words[first : first + n_words] for first in range(0, len(words), n_words)]
    values = [value for step in steps for value in _in_order(builder, isa, [word for row in step for word in row])]
    return [values[first : first + isa.vectors.n] for first in range(0, len(values), isa.vectors.n)]


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
