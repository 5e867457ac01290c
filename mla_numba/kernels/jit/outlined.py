"""Functions that kernels call by name, each compiled once whoever calls it.

Numba links a callee's code into each caller and optimises it there again. An outlined function stays a library of its
own, kept beside the kernels, and its callers' code knows its name only. So whoever loads a caller from the cache has to
`provide` first what it calls: a compiled function is kept with the list of those (`KernelCache`). That list is made
while the caller is emitted, so only kernels and outlined functions themselves call outlined functions, no callee does.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from llvmlite import binding as llvm
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin

from .cache import note_need, providers, run_releasing

__all__ = ["Outlined"]


class Outlined:
    """A function without a result that compiled code calls by name; from Python `body` runs as it is.

    `make_dispatcher` is called when the first kernel needs it.
    """

    def __init__(self, body: Callable[..., None], make_dispatcher: Callable[[], Any]) -> None:
        self.body = body
        self._make_dispatcher = make_dispatcher
        self._dispatcher: Any = None
        self._names: dict[tuple[Any, ...], str] = {}
        providers[body] = self.provide
        _teach(self)

    def provide(self, args: tuple[Any, ...]) -> str:
        """Compiles the function for arguments of these types, or loads it; returns the name by which it is called."""
        name = self._names.get(args)
        if name is None:
            if self._dispatcher is None:
                self._dispatcher = self._make_dispatcher()
            run_releasing(self._dispatcher, self._dispatcher.compile, (args,))
            result = self._dispatcher.overloads[args]
            name = f"mla_numba_{self.body.__name__}_{sha256(repr(args).encode()).hexdigest()[:16]}"
            llvm.add_symbol(name, result.library.get_pointer_to_function(result.fndesc.llvm_func_name))
            self._names[args] = name
        note_need(self.body, args)
        return name


def _teach(function: Outlined) -> None:
    """Tells Numba how to type and how to emit a call of the function."""

    class _Template(AbstractTemplate):
        key = function.body

        def generic(self, args: Any, _kws: Any) -> Any:
            return signature(types.none, *args)

    infer_global(function.body, types.Function(_Template))

    @lower_builtin(function.body, types.VarArg(types.Any))
    def _call(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        convention = context.call_conv
        fnty = convention.get_function_type(types.none, sig.args)
        named = cgutils.get_or_insert_function(builder.module, fnty, function.provide(sig.args))
        status, _ = convention.call_function(builder, named, types.none, sig.args, args)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()
