"""A fork waits while another thread compiles, so that a child finds no lock that nobody will give back.

The child gets copies of all locks and of LLVM's memory, but not the threads that held the locks or were in LLVM. So
the thread that forks takes the compiler's locks before and gives them back in both processes. Where that takes too
long, the child's locks are made anew, and as LLVM may have been left amid its work, nothing more is compiled there.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import llvmlite.binding.ffi
import numba.np.ufunc.parallel
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["LONGEST_WAIT_S", "check_process"]

LONGEST_WAIT_S = 60.0  # several times what a kernel takes to compile

_left_amid_compiling = False


class _Holder(threading.local):
    """The locks that this thread took for its fork."""

    def __init__(self) -> None:
        self.locks: list[Any] = []


_holder = _Holder()


def _places() -> list[tuple[Any, str]]:
    """Objects and their attributes that are locks, in the order in which Numba takes them."""
    launching = numba.np.ufunc.parallel
    return [
        (global_compiler_lock, "_lock"),
        (launching, "_backend_init_thread_lock"),
        (llvmlite.binding.ffi.lib._lock, "_lock"),
    ]


def _before_fork() -> None:
    _holder.locks = []
    end = time.monotonic() + LONGEST_WAIT_S
    for owner, name in _places():
        lock = getattr(owner, name)
        if lock.acquire(timeout=max(0.0, end - time.monotonic())):
            _holder.locks.append(lock)


def _after_fork_in_parent() -> None:
    for lock in reversed(_holder.locks):
        lock.release()
    _holder.locks = []


def _after_fork_in_child() -> None:
    global _left_amid_compiling
    for owner, name in _places():
        if getattr(owner, name) not in _holder.locks:
            _left_amid_compiling = True
            setattr(owner, name, threading.RLock())
    _after_fork_in_parent()


def check_process() -> None:
    """Raises RuntimeError in a child in which nothing can be compiled or loaded."""
    if _left_amid_compiling:
        raise RuntimeError(
            "kernels: expected a process that was not forked while another thread compiled, got one whose parent "
            f"still did after {LONGEST_WAIT_S:.0f} s: make a first call before forking, or start processes by "
            "multiprocessing's 'spawn' or 'forkserver'"
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
