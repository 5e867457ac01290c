"""Codes of keys to operands of the products, in vector code: bf16(float32(code) * scale).

`row_of_codes` makes a row of A, `step_of_codes` a step of some panels of B. Either is for scales that are `tame`: the
instructions that round two vectors at once take subnormal numbers for 0, and rounding by integers knows no NaN.
`row_of_bits` makes of bf16 that is a key's rope part the rest of such a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..isa import BY_COLUMN_REVERSED
from ..jit.callee import callee, inlined, overload_callee
from ..kinds import Bits, Codes, Index, Real, Typed, Values, Words
from ..llvm_ir import I8, I16, I32, I64, POINTER, counted_loop, load
from ..micro.table import ISA
from ..micro.ukernel import A_BF16_DTYPE, KR_BF16, NR
from ..scalars import NONE_NONZERO, bits_of_f32, round_bf16, widen
from .rounding import pairs_of_words, rounded_words

__all__ = [
    "HAS_ROWS", "HAS_STEPS", "N_SMALLEST", "ROW_RUN", "WILD",
    "least_of_tame", "row_of_bits", "row_of_codes", "step_of_codes",
]  # fmt: skip

_VECTORS = ISA.vectors
_LANES = ISA.lanes
_ROUND_TWO = ISA.bf16.round_two if ISA.bf16 is not None else None
_PLACES = ISA.places(is_int8=False)
_IN_PAIRS = ISA.bf16_order is BY_COLUMN_REVERSED and KR_BF16 == 2

ROW_RUN = 2 * _LANES  # codes that `row_of_codes`, and bits that `row_of_bits` takes at a time
N_SMALLEST = _LANES  # words of the smallest magnitudes that `row_of_bits` finds
HAS_ROWS = ISA.bf16 is not None and KR_BF16 == 2 and (not ISA.bf16_dot or _ROUND_TWO is not None)


def _sources() -> list[list[tuple[int, int]]]:
    """For each vector of 16-bit words of a step of a panel, which vectors (k, v) of the rows are in it."""
    n = 2 * _LANES
    held = [
        {(r, j // _LANES) for r in range(KR_BF16) for j in range(NR) if _PLACES[r, j] // n == at}
        for at in range(KR_BF16 * NR // n)
    ]
    return [sorted(each) for each in held]


HAS_STEPS = KR_BF16 == 2 and (_IN_PAIRS or (_ROUND_TWO is not None and all(len(each) == 2 for each in _sources())))

WILD = np.int32(-1)  # in place of a magnitude: a scale that is not tame
_SIZE, _NORMAL, _INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x00800000), np.uint32(0x7F800000)


@inlined
def least_of_tame(scale: Real) -> Index:
    """At most the `min_magnitude` of codes times a tame scale, 0 or a normal number; WILD for any other.

    No product of a code with a tame scale is subnormal or NaN. A code is 0 or at least 1.
    """
    size = np.uint32(bits_of_f32(scale) & _SIZE)
    if size >= _NORMAL and size < _INFINITE:
        return np.int32(size >> np.uint32(16))
    return NONE_NONZERO if size == np.uint32(0) else WILD


@callee
def _rounded(code: Any, scale: Real) -> Any:
    return round_bf16(np.float32(np.float32(code) * scale))


def row_of_codes(codes: Codes, scale: Real, out: Values) -> None:
    """out (n,) = codes (n,) * scale as elements of a row of A, n a multiple of ROW_RUN: see `operand`."""
    for j in range(len(codes)):
        if A_BF16_DTYPE is np.uint16:
            out[j ^ 1] = _rounded(codes[j], scale)
        else:
            out[j] = widen(_rounded(codes[j], scale))


def step_of_codes(even: Codes, of_even: Real, odd: Codes, of_odd: Real, panels: Bits, at: Index, stride: Index) -> None:
    """A step of B, whose first k are codes (n,) times `of_even`, n a multiple of NR, and whose second `odd`.

    The NR columns of a panel go to panels[at:], those of the next `stride` behind.
    """
    for j in range(len(even)):
        first = at + j // NR * stride
        panels[first + _PLACES[0, j % NR]] = _rounded(even[j], of_even)
        panels[first + _PLACES[1, j % NR]] = _rounded(odd[j], of_odd)


def row_of_bits(bits: Bits, out: Values, smallest: Words) -> None:
    """out (n,) = bits (n,) as elements of a row of A, n a multiple of ROW_RUN.

    smallest (N_SMALLEST,), at the begin ones in all bits: halves are the least magnitudes so far but 0, less one.
    """
    for j in range(len(bits)):
        if A_BF16_DTYPE is np.uint16:
            out[j ^ 1] = bits[j]
        else:
            out[j] = widen(bits[j])
        at, shift = j % ROW_RUN // 2, 16 * (j % 2)
        before, size = int(smallest[at]), ((int(bits[j]) & 0x7FFF) - 1) & 0xFFFF
        kept = before & (0xFFFF0000 >> shift)
        smallest[at] = np.uint32(kept | min(before >> shift & 0xFFFF, size) << shift)


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return builder.bitcast(context.make_array(kind)(context, builder, value).data, POINTER)


def _products(builder: Any, codes: Any, at: int, scale: Any) -> Any:
    """Codes at..at+lanes, times a scale."""
    narrow = load(builder, codes, at, ir.VectorType(I8, _LANES), 1)
    return builder.fmul(builder.sitofp(builder.sext(narrow, _VECTORS.words), _VECTORS.floats), scale)


def _store(builder: Any, value: Any, base: Any, offset: Any, align: int) -> None:
    builder.store(value, builder.bitcast(builder.gep(base, [offset]), value.type.as_pointer()), align=align)


@intrinsic
def _row_intrinsic(_typingctx: Any, codes: Any, scale: Any, out: Any) -> Any:
    each = out.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target = (_data(context, builder, sig.args[i], args[i]) for i in (0, 2))
        n = context.make_array(sig.args[0])(context, builder, args[0]).nitems
        factor = _VECTORS.splat(builder, args[1])

        def run(number: Any, _values: list[Any]) -> list[Any]:
            first = builder.mul(number, ir.Constant(I64, ROW_RUN))
            here, to = builder.gep(source, [first]), builder.gep(target, [builder.mul(first, ir.Constant(I64, each))])
            low, high = (_products(builder, here, v * _LANES, factor) for v in range(2))
            if each == 2:
                pairs = builder.bitcast(_ROUND_TWO(builder, _VECTORS, low, high), _VECTORS.words)  # type: ignore[misc]
                up, down = builder.shl(pairs, _VECTORS.filled(16)), builder.lshr(pairs, _VECTORS.filled(16))
                _store(builder, builder.or_(up, down), to, ir.Constant(I64, 0), 2)
            else:
                for v, value in enumerate((low, high)):
                    words = builder.and_(rounded_words(builder, value), _VECTORS.filled(0xFFFF0000))
                    _store(builder, words, to, ir.Constant(I64, v * _LANES * 4), 4)
            return []

        counted_loop(builder, builder.udiv(n, ir.Constant(I64, ROW_RUN)), [], run)
        return context.get_dummy_value()

    return types.void(codes, types.float32, out), codegen


@intrinsic
def _bits_intrinsic(_typingctx: Any, bits: Any, out: Any, smallest: Any) -> Any:
    each = out.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, least = (_data(context, builder, kind, arg) for kind, arg in zip(sig.args, args, strict=True))
        n = context.make_array(sig.args[0])(context, builder, args[0]).nitems
        halves = _VECTORS.halves
        sizes, one = (ir.Constant(halves, [value] * halves.count) for value in (0x7FFF, 1))

        def run(number: Any, held: list[Any]) -> list[Any]:
            first = builder.mul(number, ir.Constant(I64, ROW_RUN))
            here = builder.gep(source, [builder.mul(first, ir.Constant(I64, 2))])
            to = builder.gep(target, [builder.mul(first, ir.Constant(I64, each))])
            words = load(builder, here, 0, _VECTORS.words, 2)
            if each == 2:
                up, down = builder.shl(words, _VECTORS.filled(16)), builder.lshr(words, _VECTORS.filled(16))
                _store(builder, builder.or_(up, down), to, ir.Constant(I64, 0), 2)
            else:
                for v in range(2):
                    wide = builder.zext(load(builder, here, v * _LANES * 2, ir.VectorType(I16, _LANES), 2), words.type)
                    _store(builder, builder.shl(wide, _VECTORS.filled(16)), to, ir.Constant(I64, v * _LANES * 4), 4)
            less = builder.sub(builder.and_(builder.bitcast(words, halves), sizes), one)
            return [builder.select(builder.icmp_unsigned("<", less, held[0]), less, held[0])]

        before = load(builder, least, 0, halves, 2)
        (made,) = counted_loop(builder, builder.udiv(n, ir.Constant(I64, ROW_RUN)), [before], run)
        _store(builder, made, least, ir.Constant(I64, 0), 2)
        return context.get_dummy_value()

    return types.void(bits, out, smallest), codegen


def _step_vectors(builder: Any, products: list[list[Any]]) -> list[Any]:
    """The vectors of a step of a panel from those of its rows, products[k][v]."""
    if _ROUND_TWO is None:
        made = []
        for even, odd in zip(*products, strict=True):
            made.append(pairs_of_words(builder, rounded_words(builder, even), rounded_words(builder, odd)))
        return made
    made, n = [], 2 * _LANES
    for at, sources in enumerate(_sources()):
        (k0, v0), (k1, v1) = sources
        bits = _ROUND_TWO(builder, _VECTORS, products[k0][v0], products[k1][v1])
        bits = builder.bitcast(bits, _VECTORS.halves)
        order = [0] * n
        for half, (k, v) in enumerate(sources):
            for lane in range(_LANES):
                order[_PLACES[k, v * _LANES + lane] - at * n] = half * _LANES + lane
        made.append(builder.shuffle_vector(bits, bits, ir.Constant(ir.VectorType(I32, n), order)))
    return made


@intrinsic
def _step_intrinsic(
    _typingctx: Any, even: Any, of_even: Any, odd: Any, of_odd: Any, panels: Any, at: Any, stride: Any
) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows = [_data(context, builder, sig.args[i], args[i]) for i in (0, 2)]
        target = builder.gep(_data(context, builder, sig.args[4], args[4]), [builder.mul(args[5], ir.Constant(I64, 2))])
        n = context.make_array(sig.args[0])(context, builder, args[0]).nitems
        scales = [_VECTORS.splat(builder, args[i]) for i in (1, 3)]

        def panel(number: Any, _values: list[Any]) -> list[Any]:
            first = builder.mul(number, ir.Constant(I64, NR))
            to = builder.gep(target, [builder.mul(number, builder.mul(args[6], ir.Constant(I64, 2)))])
            here = [builder.gep(row, [first]) for row in rows]
            products = [
                [_products(builder, row, v * _LANES, scale) for v in range(_VECTORS.n)]
                for row, scale in zip(here, scales, strict=True)
            ]
            for v, made in enumerate(_step_vectors(builder, products)):
                _store(builder, made, to, ir.Constant(I64, v * _LANES * 4), 2)
            return []

        counted_loop(builder, builder.udiv(n, ir.Constant(I64, NR)), [], panel)
        return context.get_dummy_value()

    return types.void(even, types.float32, odd, types.float32, panels, types.int64, types.int64), codegen


@overload_callee(row_of_codes)
def _row_of_codes(codes: Typed, scale: Typed, out: Typed) -> Any:
    if not HAS_ROWS:
        return row_of_codes

    def emitted(codes: Codes, scale: Real, out: Values) -> None:
        _row_intrinsic(codes, np.float32(scale), out)

    return emitted


@overload_callee(row_of_bits)
def _row_of_bits(bits: Typed, out: Typed, smallest: Typed) -> Any:
    if not HAS_ROWS:
        return row_of_bits

    def emitted(bits: Bits, out: Values, smallest: Words) -> None:
        _bits_intrinsic(bits, out, smallest)

    return emitted


@overload_callee(step_of_codes)
def _step_of_codes(
    even: Typed, of_even: Typed, odd: Typed, of_odd: Typed, panels: Typed, at: Typed, stride: Typed
) -> Any:
    if not HAS_STEPS:
        return step_of_codes

    def emitted(even: Codes, of_even: Real, odd: Codes, of_odd: Real, panels: Bits, at: Index, stride: Index) -> None:
        _step_intrinsic(even, np.float32(of_even), odd, np.float32(of_odd), panels, np.int64(at), np.int64(stride))

    return emitted
