"""What workers of a parallel region say to each other, and what time it is.

Each is a plain Python function, whose overload gives compiled code an intrinsic.
"""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..jit.callee import overload_callee
from ..kinds import Index, Int64, Typed
from ..llvm_ir import I32, I64, declare

_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_IS_AARCH64 = platform.machine() in ("aarch64", "arm64")


def fetch_add(counter: Int64, step: Index) -> Index:
    """Adds `step` to counter[0] (int64) atomically and returns what it held.

    What this thread wrote before is seen by whoever finds the sum in memory.
    """
    before = counter[0]
    counter[0] = before + step
    return before


@intrinsic
def _fetch_add_intrinsic(_typingctx: Any, counter: Any, step: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(counter, types.int64), codegen


@overload_callee(fetch_add)
def _fetch_add(counter: Typed, step: Typed) -> Any:
    def add(counter: Int64, step: Index) -> Index:
        return _fetch_add_intrinsic(counter, np.int64(step))

    return add


def load_acquire(counter: Int64) -> Index:
    """counter[0] (int64) as it is in memory now; no load behind it is moved before it. Made to be called in a loop."""
    return counter[0]


@intrinsic
def _load_acquire_intrinsic(_typingctx: Any, counter: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if _IS_X86:  # a core's other hardware thread goes on meanwhile
            builder.call(declare(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        if _IS_AARCH64:  # isb takes about as long; yield does nothing on most cores
            builder.call(declare(builder, "llvm.aarch64.isb", ir.VoidType(), [I32]), [ir.Constant(I32, 15)])
        pointer = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(counter), codegen


@overload_callee(load_acquire)
def _load_acquire(counter: Typed) -> Any:
    def load(counter: Int64) -> Index:
        return _load_acquire_intrinsic(counter)

    return load


def yield_core() -> None:
    """Lets another thread have this core: more of them may want to run than there are cores."""
    os.sched_yield()


@intrinsic
def _yield_core_intrinsic(_typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        builder.call(declare(builder, "sched_yield", I32, []), [])
        return context.get_dummy_value()

    return types.void(), codegen


@overload_callee(yield_core)
def _yield_core() -> Any:
    def give() -> None:
        _yield_core_intrinsic()

    return give


def now_ns() -> Index:
    """Nanoseconds of the clock of `time.perf_counter_ns`."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@intrinsic
def _now_ns_intrinsic(_typingctx: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        timespec = ir.LiteralStructType([I64, I64])
        function = declare(builder, "clock_gettime", I32, [I32, timespec.as_pointer()])
        with builder.goto_entry_block():
            place = builder.alloca(timespec)
        builder.call(function, [ir.Constant(I32, time.CLOCK_MONOTONIC), place])
        seconds, nanoseconds = (builder.extract_value(builder.load(place), i) for i in range(2))
        return builder.add(builder.mul(seconds, ir.Constant(I64, 10**9)), nanoseconds)

    return types.int64(), codegen


@overload_callee(now_ns)
def _now_ns() -> Any:
    def now() -> Index:
        return _now_ns_intrinsic()

    return now
