"""How kernels are compiled, cached and launched: one policy for all of them.

`@kernel` wraps a function with `prange` loops. Called as `fn(n_threads, *args)` it runs the parallel build on that many
threads, or the serial build (the same body, `prange` as `range`) where there is one thread or where a parallel launch
would end the process.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
from numba.core import config, types

from .jit.cache import cache_folder, log, make_cache, run_releasing
from .jit.outlined import Outlined
from .micro.library import load_microkernels

_warned_no_cache = False


def _compile(py_func: Callable[..., Any], build: str, worker: Outlined | None = None, **options: Any) -> Any:
    """A dispatcher that compiles on its first call. No fastmath: it would reorder sums."""
    global _warned_no_cache
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(py_func)
    if config.DISABLE_JIT:
        return dispatcher
    load_microkernels()
    cache = make_cache(py_func, build, None if worker is None else lambda args: worker.provide((types.int64, *args)))
    if cache is not None:
        dispatcher._cache = cache
    elif not _warned_no_cache:
        _warned_no_cache = True
        log.warning("%s: not writable, so kernels are compiled anew in every process", cache_folder())
    return dispatcher


_forked = False
_launch_lock = threading.Lock()


def _after_fork_in_child() -> None:
    """GNU OpenMP ends a forked child at its first parallel launch, so a child stays serial."""
    global _forked, _launch_lock
    _forked = True
    _launch_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def max_threads() -> int:
    """Threads that a parallel launch can have: `NUMBA_NUM_THREADS`, by default the usable cores."""
    return int(config.NUMBA_NUM_THREADS)


def _run(dispatcher: Any, args: tuple[Any, ...]) -> Any:
    return run_releasing(dispatcher, dispatcher, args)


_get_num_threads = types.ExternalFunction("get_num_threads", types.int32())


def _threads() -> Any:
    return _get_num_threads()


@functools.cache
def _threads_dispatcher() -> Any:
    # Loads the threading layer and tells LLVM of its function, by whose name the compiled code calls it.
    numba.get_num_threads()
    return _compile(_threads, "serial")


def current_threads() -> int:
    """`numba.get_num_threads`, which in Python takes two locks and ctypes, a tenth of the time around the kernels."""
    return int(_run(_threads_dispatcher(), ()))


class Kernel:
    """A kernel body with its two builds, each compiled when first needed."""

    def __init__(self, body: Callable[..., Any], worker: Outlined | None = None) -> None:
        self.body = body
        self._worker = worker
        self.__name__, self.__doc__ = body.__name__, body.__doc__
        self._builds: dict[bool, Any] = {}
        self._may_overlap = False

    def build(self, parallel: bool) -> Any:
        """The dispatcher of the parallel or the serial build."""
        found = self._builds.get(parallel)
        # setdefault: of two threads that are here at once, both get the same dispatcher.
        if found is None:
            build = "parallel" if parallel else "serial"
            found = self._builds.setdefault(parallel, _compile(self.body, build, self._worker, parallel=parallel))
        return found

    def __call__(self, n_threads: int, *args: Any) -> None:
        """Runs the body on `n_threads` threads. In a forked child, or for one thread, the serial build."""
        if n_threads == 1 or _forked or config.DISABLE_JIT:
            _run(self.build(parallel=False), args)
            return
        before = current_threads()
        if before == n_threads:
            self._launch(args)
            return
        try:
            numba.set_num_threads(n_threads)
            self._launch(args)
        finally:
            try:
                numba.set_num_threads(before)
            except BaseException:  # Ctrl-C, before it has done anything
                numba.set_num_threads(before)
                raise

    def _launch(self, args: tuple[Any, ...]) -> None:
        dispatcher = self.build(parallel=True)
        if self._may_overlap:
            _run(dispatcher, args)
            return
        # The workqueue layer aborts the process when two threads enter it at once (numba #8563), and which layer it is
        # shows after a first launch.
        with _launch_lock:
            _run(dispatcher, args)
        self._may_overlap = numba.threading_layer() != "workqueue"


def kernel(body: Callable[..., Any]) -> Kernel:
    """Makes a `Kernel` of a function; nothing is compiled before the first call."""
    return Kernel(body)


def kernel_of(worker: Callable[..., None]) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a `Kernel` of a function whose body calls `worker(index, *args)`, index int64 and args its own arguments.

    The worker is outlined, see `jit.outlined`.
    """

    def dispatcher() -> Any:
        return _compile(worker, "worker", no_cpython_wrapper=True, no_cfunc_wrapper=True)

    outlined = Outlined(worker, dispatcher)
    return lambda body: Kernel(body, outlined)
