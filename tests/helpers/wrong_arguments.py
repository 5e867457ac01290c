"""Arguments that no function expects, for the tests that try each of them in each place."""

import ctypes
from fractions import Fraction
from functools import partial

import numpy as np

HUGE = 10**30


class Subclass(np.ndarray):
    """An array that is one, and nothing more."""


def objects():
    """What is no array, by name."""
    return {
        "None": None,
        "str": "text",
        "bytes": b"bytes",
        "zero": 0,
        "minus one": -1,
        "minus two": -2,
        "huge int": HUGE,
        "huge negative int": -HUGE,
        "64 bits": 2**63,
        "float": 2.5,
        "whole float": 2.0,
        "NaN": float("nan"),
        "inf": float("inf"),
        "complex": 1j,
        "fraction": Fraction(1, 2),
        "True": True,
        "NumPy bool": np.True_,
        "NumPy float": np.float32(1.5),
        "NumPy NaN": np.float64("nan"),
        "list": [1.0, 2.0],
        "empty list": [],
        "nested list": [[1], [2, 3]],
        "tuple": (1, 2),
        "huge ints": [HUGE] * 6,
        "bools": [True] * 6,
        "floats": [1.0] * 6,
        "strings": ["1"] * 6,
        "dict": {},
        "dict of strings": {"a": "b"},
        "dict of bools": {-1: True},
        "dict of huge ints": {-1: -HUGE, HUGE: 1},
        "set": {1},
        "generator": (i for i in ()),
        "object": object(),
        "class": int,
        "function": len,
        "partial": partial(len, ""),
        "range": range(3),
        "slice": slice(3),
        "ellipsis": ...,
        "not implemented": NotImplemented,
        "memoryview": memoryview(b"abcd"),
        "ctypes array": (ctypes.c_float * 4)(),
        "0-d array": np.array(3),
        "empty array": np.zeros(0),
        "array of objects": np.array([None, "a"], object),
        "array of strings": np.array(["a", "b"]),
        "array of dates": np.array(["2020-01-01"], "M8[D]"),
        "structured array": np.zeros(2, [("a", "i4"), ("b", "f4")]),
    }


def arrays_like(array):
    """Arrays that differ from a right one in one respect, by name."""
    yield "object array", array.astype(object)
    for dtype in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u8", "?", "c8", "S4", "m8[s]", "V2"):
        if np.dtype(dtype) != array.dtype:
            is_int = array.dtype.kind in "iu" and np.dtype(dtype).kind in "iuf"
            yield f"dtype {dtype}", array.astype(dtype) if is_int else np.zeros(array.shape, dtype)
    if array.itemsize > 1:
        swapped = array.copy().view(array.dtype.newbyteorder())
        if not swapped.dtype.isnative:
            yield "byte order", swapped
    yield "one axis more", array[None]
    yield "one axis more behind", array[..., None]
    yield "0-d", array.reshape(-1)[:1].reshape(())
    yield "flat", array.reshape(-1)
    yield "one row fewer", array[:-1]
    yield "one row more", np.concatenate([array, array[:1]])
    yield "one column fewer", array[..., :-1].copy()
    yield "one column more", np.concatenate([array, array[..., :1]], axis=-1)
    yield "no rows", array[:0]
    yield "no columns", array[..., :0]
    yield "backwards", array[::-1]
    yield "columns backwards", array[..., ::-1]
    yield "every other column", np.repeat(array, 2, axis=-1)[..., ::2]
    yield "every other row", np.repeat(array, 2, axis=0)[::2]
    yield "Fortran", np.asfortranarray(array)
    yield "one row again and again", np.broadcast_to(array[:1], array.shape)
    yield "one element again and again", np.broadcast_to(array.reshape(-1)[0], array.shape)
    yield "transposed", array.T
    yield "not aligned", not_aligned(array)
    yield "masked", np.ma.masked_array(array.copy(), np.ones(array.shape, bool))
    if array.ndim == 2 and array.dtype.kind in "iuf":
        yield "matrix", array.copy().view(np.matrix)  # the constructor would warn
    yield "list of it", [array]
    yield "nested lists", array.tolist()
    yield "its memory", memoryview(array.view(np.uint8))
    yield "its bytes", array.tobytes()
    read_only = array.copy()
    read_only.setflags(write=False)
    yield "read-only", read_only
    yield "subclass", array.copy().view(Subclass)


def not_aligned(array):
    """An equal array whose elements lie at odd addresses."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    placed = raw[1:].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed
