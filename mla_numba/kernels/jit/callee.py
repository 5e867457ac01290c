"""How functions are compiled that only kernels call: without the wrappers by which C would call them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

__all__ = ["by_dtype", "callee", "field_type", "inlined", "overload_callee"]

_NO_WRAPPER = {"no_cfunc_wrapper": True}  # each would be a second copy for LLVM to optimise
_INLINED = _NO_WRAPPER | {"forceinline": True}


def callee(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function known to compiled code; called from Python it runs as it is."""
    known: Callable[..., Any] = register_jitable(**_NO_WRAPPER)(fn)
    return known


def inlined(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`callee` whose code goes into its callers: for what is small, takes arrays and runs often.

    Called, it would count references to each of its arrays, which takes longer than the work on a few hundred elements.
    """
    known: Callable[..., Any] = register_jitable(**_INLINED)(fn)
    return known


def overload_callee(fn: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Numba's `overload`: what compiled code calls in place of `fn`, by the types of its arguments.

    Not strict: Numba would compare the annotations, too, of both functions.
    """
    made: Callable[[Callable[..., Any]], Callable[..., Any]] = overload(fn, jit_options=dict(_NO_WRAPPER), strict=False)
    return made


def field_type(kind: Any, path: str) -> Any:
    """The Numba type of a field of a NamedTuple, "sums"; of a field of that, "c.sums"."""
    for name in path.split("."):
        kind = kind.types[kind.fields.index(name)]
    return kind


def by_dtype(
    of: str, cases: Mapping[Any, Callable[..., Any]], otherwise: Callable[..., Any], inline: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes of a function without a body one that calls what its argument's dtype chooses.

    `of` names the argument, "sums", or a field of it, "c.sums": an array or a scalar. `cases` are functions by dtype;
    all take the same arguments, and compiled code and Python alike call them. With `inline` they are as `inlined`.
    """
    argument, _, path = of.partition(".")
    chosen = {np.dtype(dtype): fn for dtype, fn in cases.items()}

    def make(fn: Callable[..., Any]) -> Callable[..., Any]:
        position = list(inspect.signature(fn).parameters).index(argument)

        @functools.wraps(fn)
        def choose(*args: Any) -> Any:
            value = functools.reduce(getattr, path.split("."), args[position]) if path else args[position]
            return chosen.get(value.dtype, otherwise)(*args)

        def typed(*args: Any) -> Callable[..., Any]:
            kind = field_type(args[position], path) if path else args[position]
            return chosen.get(as_dtype(kind.dtype if isinstance(kind, types.Array) else kind), otherwise)

        overload(choose, jit_options=dict(_INLINED if inline else _NO_WRAPPER), strict=False)(typed)
        return choose

    return make
