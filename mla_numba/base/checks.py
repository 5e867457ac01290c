"""Checks at the door. Each raises with the argument's name, what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tiling import check
from tiling.check import check_choice

from .threads import usual_threads

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "INT8",
    "MAX_K_INT8",
    "Array",
    "check_array",
    "check_choice",
    "check_disjoint",
    "check_epsilon",
    "check_finite",
    "check_flag",
    "check_indices",
    "check_int",
    "check_k_int8",
    "check_number",
    "check_shape",
    "check_slots",
    "check_threads",
    "check_vector",
    "check_writable",
    "dtype_text",
    "expect_array",
    "expect_type",
    "renamed",
    "usual_shape",
]

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
INT8 = np.dtype(np.int8)
FP32 = np.dtype(np.float32)
FP16 = np.dtype(np.float16)
_INT64, _INT32 = np.dtype(np.int64), np.dtype(np.int32)


def check_array(name: str, value: object, dtypes: Iterable[np.dtype[Any]], shape: tuple[int | None, ...]) -> Array:
    """`value` if it is an array of one of `dtypes` and of `shape` (None: any length), in C order.

    Raises `TypeError` for another type, dtype or byte order, `ValueError` for another shape or layout.
    """
    value = expect_array(name, value, dtypes)
    check_shape(name, value, shape)
    if not value.flags.c_contiguous:
        raise ValueError(f"{name}: expected a C-contiguous array, got strides {value.strides} for shape {value.shape}")
    return value


def usual_shape(value: object, dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """The shape of a writable, aligned array in C order of exactly that type and dtype; None for anything else.

    For a first look, which touches little: what comes as None may be right, too, and `check_array` says what is wrong.
    """
    if type(value) is np.ndarray and value.dtype is dtype and value.flags.carray:
        shape: tuple[int, ...] = value.shape
        return shape
    return None


def check_shape(name: str, value: Array, shape: tuple[int | None, ...]) -> Array:
    """`value` if it has this shape (None: any length)."""
    given = value.shape
    if given == shape:
        return value
    if len(given) == len(shape):
        for wanted, n in zip(shape, given, strict=True):
            if wanted is not None and wanted != n:
                break
        else:
            return value
    text = ", ".join("any" if n is None else str(n) for n in shape)
    raise ValueError(f"{name}: expected shape ({text}), got {given}")


def expect_array(name: str, value: object, dtypes: Iterable[np.dtype[Any]]) -> Array:
    """`value` if it is an array of one of `dtypes`, of any shape and strides, whose elements are aligned."""
    # An np.matrix stays two-dimensional when it is reshaped, and nothing here looks at the mask of a masked array.
    if not isinstance(value, np.ndarray) or (
        type(value) is not np.ndarray and isinstance(value, (np.matrix, np.ma.MaskedArray))
    ):
        raise TypeError(f"{name}: expected a NumPy array, got {type(value).__name__}")
    allowed = tuple(dtypes)
    if value.dtype not in allowed:
        raise TypeError(f"{name}: expected dtype {' or '.join(map(str, allowed))}, got {dtype_text(value.dtype)}")
    if not value.flags.aligned:
        at = f"address 0x{value.__array_interface__['data'][0]:x} and strides {value.strides}"
        raise ValueError(f"{name}: expected elements aligned to their {value.itemsize} bytes, got {at}")
    return value


def dtype_text(dtype: np.dtype[Any]) -> str:
    """A dtype as errors name it, its byte order where that is not the machine's."""
    return f"{dtype} in byte order '{dtype.byteorder}'" if not dtype.isnative else str(dtype)


def check_writable(name: str, value: Array) -> None:
    """Raises `ValueError` for a read-only array."""
    if not value.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")


def check_disjoint(written: Mapping[str, Array], read: Mapping[str, Array]) -> None:
    """Raises `ValueError` if an array that is written shares bytes with another written or read one.

    Arrays whose blocks are strided may interleave in one buffer, so extents that overlap are looked at exactly.
    """
    # By pairs, which are few: asking each array for its address takes longer when weights have swept the caches.
    others = [*written.items(), *read.items()]
    for i, (name, array) in enumerate(others[: len(written)]):
        for other_name, other in others[i + 1 :]:
            if np.may_share_memory(array, other) and np.shares_memory(array, other):
                raise ValueError(f"{name}: expected memory of its own, got an overlap with {other_name}")


def check_vector(name: str, value: object, dtype: np.dtype[Any], n: int) -> Array:
    """A vector of n elements given as (n,), (1, n) or (n, 1); returned as (n,)."""
    value = expect_array(name, value, (dtype,))
    if value.shape in ((1, n), (n, 1)):
        value = value.reshape(n) if value.flags.c_contiguous else np.ascontiguousarray(value).reshape(n)
    return check_array(name, value, (dtype,), (n,))


def check_indices(name: str, value: object, n: int | None) -> Array:
    """A copy, int64 (n,), of a contiguous int64 or int32 array, so that nobody changes it between check and use."""
    value = expect_array(name, value, (_INT64, _INT32))
    if value.ndim != 1 or n not in (None, len(value)):
        raise ValueError(f"{name}: expected shape ({'n' if n is None else n},), got {value.shape}")
    if not value.flags.c_contiguous:
        raise ValueError(f"{name}: expected a contiguous array, got strides {value.strides}")
    # Not np.array for all: it takes twice as long.
    return value.copy() if type(value) is np.ndarray and value.dtype == _INT64 else np.array(value, _INT64)


_FEW_SLOTS = 32


def check_slots(cache_index: object, t: int, capacity: int) -> Array:
    """A copy of cache_index, int64 (t,), every slot -1 (padding) or in [0, capacity)."""
    slots = check_indices("cache_index", cache_index, t)
    # Few slots as numbers of Python: where weights have swept the caches, a reduction of NumPy is 20 us of misses.
    values = slots.tolist() if t <= _FEW_SLOTS else (slots.min(), slots.max())
    if t and (min(values) < -1 or max(values) >= capacity):
        token = int(np.flatnonzero((slots < -1) | (slots >= capacity))[0])
        raise ValueError(
            f"cache_index[{token}]: expected -1 (no row) or a slot below the capacity {capacity}, got {slots[token]}"
        )
    return slots


def check_finite(name: str, value: Array) -> None:
    """Raises `ValueError` naming the first row of a bf16 array (t, k) that holds a NaN or an Inf."""
    exponent = np.uint16(0x7F80)
    bad = ((value.view(np.uint16) & exponent) == exponent).any(axis=1)
    if bad.any():
        raise ValueError(f"{name}: expected finite values, got NaN or Inf in token {int(bad.argmax())}")


def check_int(name: str, value: object, least: int, most: int | None = None) -> int:
    """`value` if it is an int, of Python or of NumPy, of at least `least`, and of at most `most` if that is given."""
    if type(value) is int and value >= least and (most is None or value <= most):
        return value
    return int(check.check_int(name, int(value) if isinstance(value, np.integer) else value, least, most))


def check_threads(name: str, value: object, available: int) -> int:
    """`value` if that many threads can be had; `usual_threads` where it is None."""
    n_threads = usual_threads(available) if value is None else check_int(name, value, 1)
    if n_threads > available:
        raise ValueError(
            f"{name}: expected at most Numba's {available} (NUMBA_NUM_THREADS), got {check.short_int(n_threads)}"
        )
    return n_threads


def check_number(name: str, value: object) -> float:
    """`value` if it is a real number."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that float64 holds, got a larger int") from None


def check_epsilon(name: str, value: object) -> np.float32:
    """A real number that is at least 0 and finite in float32, as float32."""
    value = check_number(name, value)
    if not 0 <= value <= float(np.finfo(np.float32).max):
        raise ValueError(f"{name}: expected a number of at least 0, finite in float32, got {value}")
    return np.float32(value)


def expect_type(name: str, value: object, cls: type) -> None:
    """Raises `TypeError` unless `value` is a `cls`."""
    if not isinstance(value, cls):
        raise TypeError(f"{name}: expected {cls.__name__}, got {type(value).__name__}")


def check_flag(name: str, value: object) -> bool:
    """`value` if it is a bool, of Python or of NumPy."""
    return check.check_flag(name, bool(value) if isinstance(value, np.bool_) else value)


MAX_K_INT8 = (2**31 - 1) // (127 * 128)  # K * 127 * 128 has to fit an int32


def check_k_int8(name: str, k: int) -> None:
    """Raises `ValueError` where a sum of k products of int8 codes may leave int32."""
    if k > MAX_K_INT8:
        raise ValueError(f"{name}: expected at most {MAX_K_INT8} rows, whose int8 sums fit int32, got {k}")


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Errors raised inside the block name the caller's own arguments: `names` maps our names to theirs."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name, colon, rest = str(error).partition(":")
        head, overlap, other = rest.rpartition(" overlap with ")
        if overlap:
            rest = head + overlap + names.get(other, other)
        argument, bracket, place = name.partition("[")
        raise type(error)(names.get(argument, argument) + bracket + place + colon + rest) from None
