"""What the loops need and Numba lacks: bf16 as bits, and views without checks.

Each is a plain Python function, whose overload gives compiled code an intrinsic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from .jit.callee import by_dtype, callee, overload_callee
from .kinds import F32, Bits, Index, Int32, Real, Scalar, Typed, Values, Word, Words


def window(array: Values, start: Index, n: Index) -> Values:
    """Elements start..start+n of a C-contiguous array, taken as flat, for 0 <= start and start + n <= size.

    A loop `for j in range(n)` over windows vectorises: an index `start + j` into the array itself does not, since Numba
    has to allow for a negative one. And unlike a slice or a row `array[i]` it clamps nothing and counts no reference,
    which would be an atomic operation on a line that all threads share. The array has to outlive its windows.
    """
    return array.reshape(-1)[start : start + n]


def pair_window(array: Bits, start: Index, n: Index) -> Words:
    """Elements start..start+2*n of a flat uint16 array as n uint32, the first of two in the lower half."""
    return array[start : start + 2 * n].view(np.uint32)


def _define_window(result_dtype: Any) -> Any:
    """An intrinsic that lays an array of `result_dtype` (None: the source's) over part of another."""

    @intrinsic
    def view_of(_typingctx: Any, array: Typed, start: Typed, n: Typed) -> Any:
        result = types.Array(result_dtype or array.dtype, 1, "C")

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source = make_array(sig.args[0])(context, builder, args[0])
            view = make_array(result)(context, builder)
            data = builder.bitcast(builder.gep(source.data, [args[1]]), view.data.type)
            itemsize = context.get_constant(types.intp, result.dtype.bitwidth // 8)
            populate_array(view, data=data, shape=[args[2]], strides=[itemsize], itemsize=itemsize, meminfo=None)
            return view._getvalue()

        return result(array, types.int64, types.int64), codegen

    return view_of


_window_intrinsic = _define_window(None)
_pair_window_intrinsic = _define_window(types.uint32)


@overload_callee(window)
def _window(array: Typed, start: Typed, n: Typed) -> Any:
    def view(array: Values, start: Index, n: Index) -> Any:
        return _window_intrinsic(array, np.int64(start), np.int64(n))

    return view


@overload_callee(pair_window)
def _pair_window(array: Typed, start: Typed, n: Typed) -> Any:
    def view(array: Values, start: Index, n: Index) -> Any:
        return _pair_window_intrinsic(array, np.int64(start), np.int64(n))

    return view


@callee
def row_of(array: Values, i: Index) -> Values:
    """Row i of a C-contiguous array of rows, all leading axes taken as one."""
    n = array.shape[array.ndim - 1]
    return window(array, i * n, n)


@callee
def unowned(array: Values) -> Values:
    """All of a C-contiguous array, taken as flat: to hand it on, in a tuple too, counts no reference."""
    return window(array, 0, array.size)


def f32_of_bits(bits: Word) -> Real:
    """The float32 whose bits are the uint32 `bits`."""
    return np.uint32(bits).view(np.float32)


def bits_of_f32(value: Real) -> Word:
    """The bits of a float32 as uint32."""
    return np.float32(value).view(np.uint32)


def _bitcast(result: Any) -> Any:
    @intrinsic
    def cast(_typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(result))

        return result(value), codegen

    return cast


_to_f32 = _bitcast(types.float32)
_to_u32 = _bitcast(types.uint32)


@overload_callee(f32_of_bits)
def _f32_of_bits(bits: Typed) -> Any:
    def cast(bits: Word) -> Real:
        return _to_f32(np.uint32(bits))

    return cast


@overload_callee(bits_of_f32)
def _bits_of_f32(value: Typed) -> Any:
    def cast(value: Real) -> Word:
        return _to_u32(np.float32(value))

    return cast


@callee
def widen(bits: Word) -> Real:
    """The float32 of a bf16 given as uint16 bits."""
    return f32_of_bits(np.uint32(bits) << np.uint32(16))


@callee
def _of_number(value: Scalar) -> Real:
    return np.float32(value)


@by_dtype("value", {np.uint16: widen}, otherwise=_of_number)
def as_f32(value: Scalar) -> Real:
    """A float32: of bf16 bits (uint16), of an int8 code, or of a float32."""


@callee
def round_bf16(value: Real) -> Word:
    """The uint16 bits of the bf16 nearest to a float32, ties to even; a NaN stays a (quiet) NaN."""
    bits = bits_of_f32(value)
    if value != value:
        return np.uint16(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))


@callee
def round_row(values: F32, out: Bits) -> None:
    """out[j] = the bf16 nearest to values[j], as bits."""
    for j in range(len(out)):
        out[j] = round_bf16(values[j])


NONE_NONZERO = np.int32(0x7FFF)  # what `min_magnitude` gives for zeros alone


@callee
def _min_bits(bits: Bits) -> Index:
    least = NONE_NONZERO
    for j in range(len(bits)):
        size = np.int32(np.int32(bits[j]) & np.int32(0x7FFF))
        least = min(least, NONE_NONZERO if size == np.int32(0) else size)
    return np.int32(least)


@callee
def _nothing_asked(values: Values) -> Index:
    return NONE_NONZERO


@by_dtype("values", {np.uint16: _min_bits}, otherwise=_nothing_asked)
def min_magnitude(values: Values) -> Index:
    """The bits of the smallest |value| other than 0 among bf16 bits (uint16).

    Of float32 `values` nothing is asked: they are multiplied by multiply-adds, which flush nothing.
    """


@callee
def min_of(values: Int32) -> Index:
    """The smallest of some rows' `min_magnitude` (int32)."""
    least = NONE_NONZERO
    for i in range(len(values)):
        least = min(least, values[i])
    return np.int32(least)


@callee
def sums_stay_normal(min_a: Index, min_b: Index) -> bool:
    """Whether no operand, product or sum of products is subnormal, given both operands' `min_magnitude`.

    With exponents ea and eb (biased by 127) of the smallest operands, each product is a multiple of
    g = 2**(ea - 127 - 7 + eb - 127 - 7), each sum of products, rounded or not, is one too, and so is 0 or at least g.
    """
    ea, eb = min_a >> 7, min_b >> 7
    return ea > 0 and eb > 0 and ea + eb >= 2 * 127 + 2 * 7 - 126


@callee
def round_f16(value: Real) -> Word:
    """The uint16 bits of the fp16 nearest to a float32, ties to even; Inf from 65520 on."""
    bits = bits_of_f32(value)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if size > np.uint32(0x7F800000):
        return np.uint16(sign | np.uint32(0x7E00))
    if size >= np.uint32(0x477FF000):
        return np.uint16(sign | np.uint32(0x7C00))
    if size < np.uint32(0x38800000):  # subnormal: beside 0.5, a float32's last bit is fp16's smallest number
        aligned = bits_of_f32(np.float32(f32_of_bits(size) + np.float32(0.5)))
        return np.uint16(sign | np.uint32(aligned - np.uint32(0x3F000000)))
    odd = np.uint32(np.uint32(size >> np.uint32(13)) & np.uint32(1))
    rounded = np.uint32(size + np.uint32(odd + np.uint32(0xFFF)))
    return np.uint16(sign | np.uint32(np.uint32(rounded - np.uint32(0x38000000)) >> np.uint32(13)))


@callee
def _store_f16(scales: Values, at: Index, value: Real) -> None:
    scales[at] = round_f16(value)


@callee
def _store_f32(scales: Values, at: Index, value: Real) -> None:
    scales[at] = value


@by_dtype("scales", {np.uint16: _store_f16}, otherwise=_store_f32)
def store_scale(scales: Values, at: Index, value: Real) -> None:
    """scales[at] = value, for float32 scales or for the uint16 bits of fp16 ones."""


@callee
def widen_f16(bits: Word) -> Real:
    """The float32 of an fp16 given as uint16 bits; no operand or result is a subnormal float32."""
    size = np.uint32(np.uint32(bits) & np.uint32(0x7FFF))
    sign = np.uint32(np.uint32(np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16))
    shifted = np.uint32(size << np.uint32(13))
    normal = np.uint32(shifted + np.uint32(0x38000000))
    infinite = np.uint32(shifted + np.uint32(0x70000000))
    subnormal = bits_of_f32(np.float32(np.float32(size) * np.float32(2.0**-24)))
    magnitude = normal if size >= np.uint32(0x0400) else subnormal
    magnitude = infinite if size >= np.uint32(0x7C00) else magnitude
    return f32_of_bits(np.uint32(sign | magnitude))
