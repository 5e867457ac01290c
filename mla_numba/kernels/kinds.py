"""The kinds of values that kernels are written of, by name.

Numba infers every type from the arguments; these names are for the reader, and for the type checker.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["F32", "Bits", "Codes", "Index", "Int32", "Int64", "Real", "Scalar", "Typed", "Values", "Word", "Words"]

Bits: TypeAlias = NDArray[np.uint16]  # of bf16 or fp16 numbers
Codes: TypeAlias = NDArray[np.int8]
F32: TypeAlias = NDArray[np.float32]
Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
Words: TypeAlias = NDArray[np.uint32]
Values: TypeAlias = NDArray[Any]  # of one of two types, by which code is chosen
Index: TypeAlias = Any  # an int64: a position, a count, a distance in elements; int where a body runs as Python
Real: TypeAlias = Any  # a float32
Word: TypeAlias = Any  # a uint16 or uint32, the bits of a number
Scalar: TypeAlias = Any  # a number of one of several types
Typed: TypeAlias = Any  # in an overload, the Numba type of an argument
