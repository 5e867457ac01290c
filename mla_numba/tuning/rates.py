"""Rates that this machine reaches, measured with the library's own vector code; a plan's least time follows from them.

- Read bandwidth: the bytes a second that the threads together take from memory into registers, each reading a part of
  one buffer front to back, with the loads of the microkernels and the prefetch of those with many rows. The buffer is
  several times as large as the last-level cache, and a run reads the quarter that was read longest ago. Nothing is
  written; a byte written costs at least as much as one read, so a least time that counts both at this rate stays one.
- FMA and dot peaks: the operations a second of the microkernels' multiply-adds, fp32, int8 and, where there is such an
  instruction, pairs of bf16, on registers alone. A multiply-add is two operations. A CPU without vector code of its own
  multiplies int8 codes as fp32.

Each rate is the best of many short runs, which take turns with those of the other rates, so the machine was seen to
reach it. Other programs and other tenants change it from minute to minute. So a share of the limit needs rates measured
right before and after the timed calls, as `bench/roofline.py` does. If many threads reach less than few, the machine
is busy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tiling import Rates, ceil_div, least_seconds, plan_prolog, round_up

from ..base.checks import check_int, check_number, check_threads
from ..base.dims import MlaDims
from ..base.memory import aligned_empty
from ..call.planning import MICRO_TILES, this_machine
from ..kernels import ISA, max_threads, peaks
from ..kernels.threads import tasks

__all__ = ["Probed", "Probes", "least_ms", "measure_all", "rates_as_dict", "slower_together"]

_MIN_BUFFER_BYTES = 2**28
_MAX_BUFFER_BYTES = 2**30
_MAX_PRESCRIBED_BYTES = 2**40
_MAX_STEPS = 2**31 - 1
_MAX_SECONDS = 3600.0
_QUARTERS = 4
_STEPS = 2**16  # of a task of either peak: 0.1 to 0.2 ms on a fast core
_TASKS = 16  # a thread
_MIN_RUNS = 3
_SLOWER = 0.95  # of what fewer threads reach; below it, it is no error of measurement

# Rates by their names in `rates_as_dict`.
_RATE_NAMES = {
    "read_gb_s": ("read", "GB/s"),
    "fma_gflop_s": ("multiply fp32 at", "GFLOP/s"),
    "dot_gop_s": ("multiply int8 at", "GOP/s"),
    "bf16_gflop_s": ("multiply bf16 at", "GFLOP/s"),
}


class Probed(NamedTuple):
    """Rates, and by how much the slowest quarter of the arithmetic runs was behind the fastest: 1 is twice as long."""

    rates: Rates
    spread: float


class Probes:
    """Buffers for measuring what threads reach, kept so that it may be measured again and again.

    `do_bench` has an example.

    Args:
        n_threads: The most threads to be measured; None is those that a call has by default.
        buffer_bytes: How much memory the read probe takes. None is four last-level caches a thread, for a cache may be
            shared by a few cores only, yet at least 256 MiB and at most 1 GiB.
        steps: Length of a task of the other probes; None suits the machine.

    Raises:
        TypeError: An argument is no integer.
        ValueError: It is out of range.
    """

    def __init__(
        self, n_threads: int | None = None, *, buffer_bytes: int | None = None, steps: int | None = None
    ) -> None:
        self.n_threads = check_threads("n_threads", n_threads, max_threads())
        if buffer_bytes is None:
            wanted = 4 * this_machine().l3_bytes * self.n_threads
            buffer_bytes = min(max(wanted, _MIN_BUFFER_BYTES), _MAX_BUFFER_BYTES) if peaks.COMPILED else 1
        if steps is None:
            steps = _STEPS if peaks.COMPILED else 1
        self._steps = check_int("steps", steps, 1, _MAX_STEPS)
        n_words = round_up(
            ceil_div(check_int("buffer_bytes", buffer_bytes, 1, _MAX_PRESCRIBED_BYTES), 4 * _QUARTERS), peaks.READ_WORDS
        )
        self._quarters = deque(aligned_empty((_QUARTERS, n_words), np.uint32))
        for quarter in self._quarters:
            peaks.fill_words(self.n_threads, self.n_threads, quarter, self.n_threads)
        self._sums = np.empty(self.n_threads, np.int64)
        self._counters = np.zeros(tasks.n_counters(self.n_threads), np.int64)
        shape = (self.n_threads, peaks.CHAINS * ISA.lanes)
        # x = 1/2, y = 1: every float32 chain goes up, or to 2 where it is multiplied, through no denormal number.
        self._fma = self._dot = aligned_empty(shape, np.float32)
        self._fma[...] = np.linspace(0, 4, self._fma.size, dtype=np.float32).reshape(shape)
        self._bf16_operands = np.repeat(np.array([0x3F803F80, 0xBF803F80], np.uint32), ISA.lanes)  # (1, 1), (1, -1)
        self._fma_operands = self._dot_operands = np.repeat(np.array([0.5, 1], np.float32), ISA.lanes)
        if peaks.DOT_DTYPE is np.int32:
            rng = np.random.default_rng(0)
            self._dot = aligned_empty(shape, np.int32)
            self._dot.view(np.uint8)[...] = rng.integers(0, 256, (shape[0], 4 * shape[1]), np.uint8)
            self._dot_operands = rng.integers(0, 256, 8 * ISA.lanes, np.uint8).view(np.int32)

    def rates(self, n_threads: int | None = None, seconds: float = 0.3) -> Rates:
        """What threads reach together.

        Args:
            n_threads: How many; None is all of them.
            seconds: How long each rate is measured, 3600 at most.

        Returns:
            The rates, each the best of many short runs.

        Raises:
            TypeError: An argument is no number.
            ValueError: It is out of range.
        """
        return self.measure(n_threads, seconds).rates

    def measure(self, n_threads: int | None = None, seconds: float = 0.3) -> Probed:
        """The same, and how far the runs were apart.

        Args:
            n_threads: How many; None is all of them.
            seconds: How long each rate is measured, 3600 at most.

        Returns:
            The rates, and the spread of the runs.

        Raises:
            TypeError: An argument is no number.
            ValueError: It is out of range.
        """
        n = self.n_threads if n_threads is None else check_int("n_threads", n_threads, 1)
        if n > self.n_threads:
            raise ValueError(f"n_threads: expected at most the {self.n_threads} of these probes, got {n}")
        if not 0 <= check_number("seconds", seconds) <= _MAX_SECONDS:
            raise ValueError(f"seconds: expected a number from 0 to {_MAX_SECONDS:.0f}, got {seconds}")
        runs = [self._read, self._multiply_fp32, self._multiply_int8]
        if ISA.bf16_dot:
            runs.append(self._multiply_bf16)
        times = _time_in_turns([partial(run, n) for run in runs], seconds)
        read, fma, dot, *bf16 = map(min, times)
        n_steps = n * _TASKS * self._steps
        rates = Rates(
            bandwidth_bytes_s=self._quarters[0].nbytes / read,
            flops_s=n_steps * peaks.FMA_OPS / fma,
            ops_s=n_steps * peaks.DOT_OPS / dot,
            bf16_flops_s=n_steps * peaks.BF16_OPS / bf16[0] if bf16 else None,
        )
        return Probed(rates, max(sorted(runs)[3 * len(runs) // 4] / min(runs) - 1 for runs in times[1:3]))

    def _read(self, n: int) -> None:
        self._quarters.rotate()  # to the one that was read longest ago
        self._counters.fill(0)
        peaks.read_stream(n, n, self._quarters[0], self._sums, self._counters, n)

    def _multiply_fp32(self, n: int) -> None:
        self._counters.fill(0)
        peaks.fma_peak(n, n, self._fma, self._fma_operands, self._steps, self._counters, n * _TASKS, n)

    def _multiply_bf16(self, n: int) -> None:
        self._counters.fill(0)
        peaks.bf16_peak(n, n, self._fma, self._bf16_operands, self._steps, self._counters, n * _TASKS, n)

    def _multiply_int8(self, n: int) -> None:
        self._counters.fill(0)
        peaks.dot_peak(n, n, self._dot, self._dot_operands, self._steps, self._counters, n * _TASKS, n)


def measure_all(
    n_threads: int | None = None, seconds: float = 0.3, finished: Callable[[], None] = lambda: None
) -> dict[int, Rates]:
    """What 1 to `n_threads` threads reach; `finished` is called after each of these."""
    probes = Probes(n_threads)
    rates = {}
    for n in range(1, probes.n_threads + 1):
        rates[n] = probes.rates(n, seconds)
        finished()
    return rates


def slower_together(by_threads: Mapping[int, Rates]) -> list[str]:
    """A sentence for each rate at which some number of threads reaches less than fewer do: the machine is busy."""
    found = []
    counts = sorted(by_threads)
    shown = {n: rates_as_dict(by_threads[n]) for n in counts}
    for name, (verb, unit) in _RATE_NAMES.items():
        for few, many in pairwise(counts):
            if name in shown[many] and shown[many][name] < _SLOWER * shown[few][name]:
                told = f"{shown[many][name]:.1f} {unit}, slower than {_threads(few)} ({shown[few][name]:.1f})"
                found.append(f"{_threads(many)} {verb} {told}")
    return found


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def least_ms(dims: MlaDims, tokens: Iterable[int], n_threads: int, rates: Rates) -> dict[int, float]:
    """The least possible milliseconds of a decode call, quant mode "b", by number of tokens."""
    plans = {
        t: plan_prolog(dims, t, None, this_machine(), micro=MICRO_TILES, quant="b", n_threads=n_threads) for t in tokens
    }
    return {t: least_seconds(plan, rates) * 1e3 for t, plan in plans.items()}


def rates_as_dict(rates: Rates) -> dict[str, float]:
    """Rates in the units that are shown: 10^9 a second."""
    return {
        "read_gb_s": rates.bandwidth_bytes_s / 1e9,
        "fma_gflop_s": rates.flops_s / 1e9,
        "dot_gop_s": rates.ops_s / 1e9,
    } | ({} if rates.bf16_flops_s is None else {"bf16_gflop_s": rates.bf16_flops_s / 1e9})


def _time_in_turns(runs: list[Callable[[], None]], seconds: float) -> list[list[float]]:
    """Seconds of each function's runs, until it has taken `seconds` in all; a first run of each does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    while waiting := [i for i, spent in enumerate(times) if len(spent) < _MIN_RUNS or sum(spent) < seconds]:
        for i in waiting:
            begin = time.perf_counter()
            runs[i]()
            times[i].append(time.perf_counter() - begin)
    return times
