"""How kernels are compiled, cached and launched: one policy for all of them.

`@kernel` makes a kernel of a function `body(index, *args)`. Called as `kernel(n_threads, n, *args)` it runs the body
for each index below n: in turn, or in a parallel region of that many threads. The region is one function for all
kernels, compiled once, that calls a body by its address; so a kernel has one build, whatever number of threads runs it.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import prange
from numba.core import config, types
from numba.core.compiler_lock import global_compiler_lock

from .jit.body import call_region, call_worker, frame_maker, hold
from .jit.cache import make_cache, run_releasing
from .jit.callee import callee
from .jit.folder import log
from .jit.outlined import Outlined
from .micro.library import load_microkernels
from .micro.table import ISA, say_if_none_fits


def _compile(py_func: Callable[..., Any], build: str, **options: Any) -> Any:
    """A dispatcher that compiles on its first call. No fastmath: it would reorder sums.

    It is kept in a folder of its build and the instruction set: Numba's own key knows the CPU, not the choice.
    """
    # Under the lock, for which a fork waits: Numba makes its contexts with the first dispatcher, and imports numpy.ma
    # when it meets the first array.
    with global_compiler_lock:
        importlib.import_module("numpy.ma")
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(py_func)
        if config.DISABLE_JIT:
            return dispatcher
        say_if_none_fits()
        load_microkernels()
        dispatcher._cache = make_cache(py_func, f"{build}-{ISA.name}")
        return dispatcher


def outlined(body: Callable[..., None]) -> Callable[..., None]:
    """Makes a function, without a result, one that compiled code calls by name: see `jit.outlined`."""
    Outlined(body, lambda: _compile(body, "outlined", no_cpython_wrapper=True, no_cfunc_wrapper=True))
    return body


_get_num_threads = types.ExternalFunction("get_num_threads", types.intp())  # of that type in a `prange`, too
_set_num_threads = types.ExternalFunction("set_num_threads", types.void(types.int32))


def _region(n_threads: int, n: int, worker: int, frame: int) -> None:
    """A parallel region of so many threads: the body at address `worker` for each index below n.

    This thread's own count of threads is the same in the end. (Numba's functions for it cannot be kept.)
    """
    before = _get_num_threads()
    _set_num_threads(np.int32(n_threads))
    for index in prange(n):
        call_worker(worker, frame, index)
    _set_num_threads(np.int32(before))


@functools.cache
def _made_region() -> tuple[Any, int]:
    """The region's dispatcher, which holds the code, and the code's address."""
    signature = (types.int64,) * 4
    numba.get_num_threads()  # loads the threading layer and tells LLVM of its functions
    with global_compiler_lock:
        dispatcher = _compile(_region, "region", parallel=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        run_releasing(dispatcher, dispatcher.compile, (signature,))
        result = dispatcher.overloads[signature]
        return dispatcher, int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


def _entry(region: int, n_threads: int, n: int, *args: Any) -> None:
    """What Python calls, of each kernel: `make_frame` is another function in each. Serial where `region` is 0."""
    worker, frame = make_frame(args)  # type: ignore[name-defined]  # noqa: F821  # among the globals of each kernel's copy
    if region == 0:
        for index in range(n):
            call_worker(worker, frame, index)
    else:
        call_region(region, n_threads, n, worker, frame)


_forked = False
_launch_lock = threading.Lock()
_said_workqueue = False


def _say_workqueue() -> None:
    """Says, once, what can end a process that has other threads."""
    global _said_workqueue
    if not _said_workqueue and threading.active_count() > 1:
        _said_workqueue = True
        log.warning(
            "threading layer: workqueue ends the process when another thread is in a parallel function of Numba that "
            "is not of this library; NUMBA_THREADING_LAYER=omp, or tbb, lets threads meet"
        )


def _after_fork_in_child() -> None:
    """GNU OpenMP ends a forked child at its first parallel launch, so a child stays serial."""
    global _forked, _launch_lock
    _forked = True
    _launch_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def max_threads() -> int:
    """Threads that a parallel launch can have: `NUMBA_NUM_THREADS`, by default one for each CPU of the process."""
    return int(config.NUMBA_NUM_THREADS)


def threading_layer() -> str:
    """The threading layer in use, loaded if none is yet. Raises `ValueError` where Numba finds none."""
    numba.get_num_threads()
    return str(numba.threading_layer())


class Asked:
    """A function of arrays and numbers, or plain tuples of them, that returns a number; compiled as a kernel is."""

    def __init__(self, body: Callable[..., int]) -> None:
        self.body = body
        self.__name__, self.__doc__ = body.__name__, body.__doc__
        self._made: Any = None

    def __call__(self, *args: Any) -> int:
        """The body's result, on this thread."""
        dispatcher = self._made
        if dispatcher is None:
            if config.DISABLE_JIT:
                return self.body(*args)
            with global_compiler_lock:
                dispatcher = self._made = self._made or _compile(self.body, "launch")
        result: int = run_releasing(dispatcher, dispatcher, args)
        return result


def asked(body: Callable[..., int]) -> Asked:
    """Makes an `Asked` of a function; nothing is compiled before the first call."""
    return Asked(body)


def plain(thing: Any) -> Any:
    """A named tuple as a kernel takes it: plain tuples, made ahead for what is the same in many calls.

    What is a plain tuple already stays as it is.
    """
    if config.DISABLE_JIT or not isinstance(thing, tuple) or type(thing) is tuple:
        return thing
    return tuple([plain(field) if isinstance(field, tuple) else field for field in thing])


def held(thing: Any) -> Any:
    """A named tuple of C-contiguous arrays and numbers as a kernel takes it in many calls: see `jit.body.hold`.

    Its arrays have to live as long as that is used. Of a class, fields have the same types each time.
    """
    return thing if config.DISABLE_JIT else hold(thing)


class Kernel:
    """A body that runs for each index of a range; compiled when it is first called with arguments of new types."""

    def __init__(self, body: Callable[..., None]) -> None:
        self.body = callee(body)
        self.__name__, self.__doc__ = body.__name__, body.__doc__
        self._may_overlap = False
        self._made: Any = None

    @property
    def _dispatcher(self) -> Any:
        if self._made is None:
            with global_compiler_lock:  # of two threads that are here at once, both get the same dispatcher
                self._made = self._made or self._make_dispatcher()
        return self._made

    def _make_dispatcher(self) -> Any:
        names = {"__name__": self.body.__module__, "make_frame": frame_maker(self.body)}
        names |= {"call_worker": call_worker, "call_region": call_region, "__builtins__": __builtins__}
        return _compile(FunctionType(_entry.__code__, names, self.__name__), "kernels")

    def __call__(self, n_threads: int, n: int, *args: Any) -> None:
        """Runs the body for each index below `n` on `n_threads` threads. In a forked child, or for one, in turn."""
        if config.DISABLE_JIT:
            for index in range(n):
                self.body(index, *args)
            return
        args = tuple([plain(arg) if isinstance(arg, tuple) else arg for arg in args])
        dispatcher = self._made or self._dispatcher
        region = 0 if n_threads == 1 or _forked else _made_region()[1]
        args = (region, n_threads, n, *args)
        # The workqueue layer aborts the process when two threads enter it at once (numba #8563). Which layer it is has
        # been known since the region was made.
        if region and not self._may_overlap:
            if numba.threading_layer() == "workqueue":
                _say_workqueue()
                with _launch_lock:
                    run_releasing(dispatcher, dispatcher, args)
                return
            self._may_overlap = True
        run_releasing(dispatcher, dispatcher, args)


def kernel(body: Callable[..., None]) -> Kernel:
    """Makes a `Kernel` of a function; nothing is compiled before the first call."""
    return Kernel(body)
