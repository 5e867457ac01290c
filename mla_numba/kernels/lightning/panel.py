"""Panels of NR keys: how one is packed, and the scores of the keys of several.

    pack_panel:    panel = the codes of NR keys, in the order in which the microkernel reads them
    score_panels:  scores[j] += sum over heads i of weights[i] * half(max(dot(i, j), 0)),   ascending i
                   dot(i, j) = sum over k of a[i, k] * (code of key j + surplus)[k] + offsets[i]

What instructions multiply keys by may be more than their codes: see `MicroKernel`. What this adds is the same for all
keys, and the offset of a head takes it off.

`half` keeps the 11 significant bits of an fp16, ties to even. A weight has no more than 11 bits either. So products are
exact, and sums are rounded once for each head, whether by a fused multiply-add or not.

| array   | shape               | dtype        | notes                                                                |
|---------|---------------------|--------------|----------------------------------------------------------------------|
| codes   | flat                | int8         | a cache; a run of RUN codes of key j is at places[j] + run * distance |
| places  | [NR]                | int64        |                                                                      |
| panel   | [kp / KR][NR][KR]   | int8         | kp a multiple of RUN; see `isa.BlockOrder`; some bits are flipped    |
| a.rows  | [heads], [kp]       | QUERY_DTYPE  | codes of heads                                                       |
| weights | [heads]             | float32      |                                                                      |
| offsets | [heads]             | int32        | see `offset_of`                                                      |
| scores  | [NR]                | float32      |                                                                      |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from ..isa import Isa
from ..jit.callee import callee, overload_callee
from ..kinds import F32, Codes, Index, Int32, Int64, Real, Typed, Values
from ..micro.operands import A, B, C
from ..micro.portable import ukernel_int8_portable
from ..micro.table import ISA as ISA_OF_WEIGHTS
from ..micro.ukernel import KR_INT8, MR, NR
from ..scalars import window
from .emitter import declare_pack, declare_scores
from .heads import BLOCK
from .packing import RUN
from .vector_code import call_vector_code

__all__ = [
    "BLOCK",
    "QUERY_DTYPE",
    "RUN",
    "SPLIT",
    "Ahead",
    "HeadNumbers",
    "Panels",
    "Runs",
    "half_of",
    "offset_of",
    "pack_panel",
    "plain_dots",
    "score_panels",
]

ISA = ISA_OF_WEIGHTS.of_keys
QUERY_DTYPE = {2: np.int16, 1: np.int8}[ISA.a_int8_bytes]
SPLIT = 2.0**13 + 1  # of float32's 24 bits 13 are dropped, to leave the 11 of fp16
PLACES = ISA.places(is_int8=True)
_FLIPS = ISA.flips(is_int8=True).astype(np.int8)
_SURPLUS = np.array(ISA.surplus, np.int32)


class Runs(NamedTuple):
    """Runs of NR keys: `n` of each, `distance` elements apart, the first of key j at codes[places[at + j]]."""

    codes: Codes
    places: Int64
    at: Index
    n: Index
    distance: Index


class Panels(NamedTuple):
    """`n` packed panels from codes[at] on; the first one's keys are columns col..col+NR of scores."""

    codes: Codes
    at: Index
    scores: F32
    col: Index
    n: Index


class Ahead(NamedTuple):
    """Keys to be asked for meanwhile: `n` for each panel p, from places[p * NR] on.

    Of each, `n_lines` cache lines of `codes` that are `distance` elements apart.
    """

    codes: Codes
    places: Int64
    n: Index
    n_lines: Index
    distance: Index


class HeadNumbers(NamedTuple):
    """What a head has beside its query."""

    weights: F32
    offsets: Int32


@callee
def offset_of(codes: Codes) -> np.int32:
    """What the surplus of keys adds to the dot products of a query, negated."""
    offset = np.int32(0)
    for j in range(len(codes)):
        offset -= np.int32(codes[j]) * _SURPLUS[j % KR_INT8]
    return offset


def pack_panel(runs: Runs, panel: Codes) -> None:
    """Packs the runs of NR keys."""
    for run in range(runs.n):
        for j in range(NR):
            start = runs.places[runs.at + j] + run * runs.distance
            codes = runs.codes[start : start + RUN]
            for first in range(0, RUN, KR_INT8):
                panel[(run * RUN + first) * NR + PLACES[:, j]] = codes[first : first + KR_INT8] ^ _FLIPS


@callee
def _pack_portable(runs: Runs, panel: Codes) -> None:
    """KR is 1: a code of each key after the other."""
    for run in range(runs.n):
        for j in range(NR):
            codes = window(runs.codes, runs.places[runs.at + j] + run * runs.distance, RUN)
            packed = window(panel, run * RUN * NR, RUN * NR)
            for k in range(RUN):
                packed[k * NR + j] = codes[k]


@overload_callee(pack_panel)
def _pack_panel(runs: Typed, panel: Typed) -> Any:
    if ISA.name == "portable":
        return _pack_portable

    def simd(runs: Runs, panel: Codes) -> None:
        _pack_simd(runs.codes, window(runs.places, runs.at, NR), np.int64(runs.n), np.int64(runs.distance), panel)

    return simd


@callee
def half_of(value: Real) -> Real:
    """A float32 of at least 0, without fraction, with 11 significant bits.

    Veltkamp's split, whose ties go to even for all numbers that a dot product can be.
    """
    much = np.float32(SPLIT) * value
    return much - (much - value)


def plain_dots(isa: Isa, rows: Values, panel: Codes) -> Int32:
    """What an instruction set `of_keys` makes of queries (m, k) and a packed panel (k * NR,): (m, NR) int32."""
    codes = panel.reshape(-1, isa.kr_int8 * isa.nr)[:, isa.places(is_int8=True)]
    keys = (codes ^ isa.flips(is_int8=True)[:, None].astype(np.int8)) + np.array(isa.surplus, np.int32)[:, None]
    return rows.astype(np.int32) @ keys.reshape(-1, isa.nr)


def score_panels(n_heads: Index, k: Index, a: A, heads: HeadNumbers, panels: Panels, ahead: Ahead) -> None:
    """Adds all heads to the scores of all panels; k is a multiple of RUN.

    Behind the heads there are rows up to a multiple of BLOCK, with weight 0.
    """
    rows = a.rows.reshape(-1)[a.at + np.arange(n_heads)[:, None] * a.step + np.arange(k)]
    for p in range(panels.n):
        cols = slice(panels.col + p * NR, panels.col + (p + 1) * NR)
        dots = plain_dots(ISA, rows, panels.codes[panels.at + p * NR * k :][: NR * k])
        for i in range(n_heads):
            value = np.maximum(dots[i] + heads.offsets[i], 0).astype(np.float32)
            with np.errstate(all="ignore"):  # a weight that is NaN or Inf
                panels.scores[cols] += heads.weights[i] * half_of(value)


@callee
def _score_portable(n_heads: Index, k: Index, a: A, heads: HeadNumbers, panels: Panels, ahead: Ahead) -> None:
    dots = np.empty(MR * NR, np.int32)
    zero = np.int64(0)
    for p in range(panels.n):
        b = B(panels.codes, panels.at + p * NR * k, zero, zero, zero)
        scores = window(panels.scores, panels.col + p * NR, NR)
        for head in range(0, n_heads, MR):
            mr = min(np.int64(MR), n_heads - head)
            ukernel_int8_portable(mr, k, A(a.rows, a.at + head * a.step, a.step), b, C(dots, zero, False))
            for i in range(mr):
                row, weight = window(dots, i * NR, NR), heads.weights[head + i]
                for j in range(NR):
                    scores[j] += np.float32(weight * half_of(np.float32(max(row[j], np.int32(0)))))


@overload_callee(score_panels)
def _score_panels(n_heads: Typed, k: Typed, a: Typed, heads: Typed, panels: Typed, ahead: Typed) -> Any:
    if ISA.name == "portable":
        return _score_portable
    kr = ISA.kr_int8
    itemsize = np.int64(ISA.a_int8_bytes)

    def simd(n_heads: Index, k: Index, a: A, heads: HeadNumbers, panels: Panels, ahead: Ahead) -> None:
        n_keys = panels.n * NR
        counts = (np.int64(n_heads), np.int64(panels.n), np.int64(k // kr))
        rows = (window(a.rows, a.at, 1), np.int64(a.step * itemsize), np.int64(kr * itemsize))
        columns = (
            window(panels.codes, panels.at, n_keys * k), heads.weights, heads.offsets,
            window(panels.scores, panels.col, n_keys),
        )  # fmt: skip
        keys = (ahead.codes, ahead.places, np.int64(ahead.n), np.int64(ahead.n_lines), np.int64(ahead.distance))
        _scores_simd(counts, rows, columns, keys)

    return simd


@intrinsic
def _pack_simd(_typingctx: Any, codes: Any, places: Any, n: Any, distance: Any, panel: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_vector_code(context, builder, sig, args, declare_pack)

    return types.void(codes, places, types.int64, types.int64, panel), codegen


@intrinsic
def _scores_simd(_typingctx: Any, counts: Any, rows: Any, columns: Any, keys: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_vector_code(context, builder, sig, args, declare_scores)

    return types.void(counts, rows, columns, keys), codegen
