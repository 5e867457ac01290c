"""How functions are compiled that only kernels call: without the wrappers by which C would call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import overload, register_jitable

__all__ = ["callee", "overload_callee"]

_NO_WRAPPER = {"no_cfunc_wrapper": True}  # each would be a second copy for LLVM to optimise


def callee(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function known to compiled code; called from Python it runs as it is."""
    known: Callable[..., Any] = register_jitable(**_NO_WRAPPER)(fn)
    return known


def overload_callee(fn: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Numba's `overload`: what compiled code calls in place of `fn`, by the types of its arguments."""
    made: Callable[[Callable[..., Any]], Callable[..., Any]] = overload(fn, jit_options=dict(_NO_WRAPPER))
    return made
