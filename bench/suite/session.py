"""What all benches of a session share: sizes, the machine's rates, and how a measurement is taken and described."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numba
from shared.contenders import OURS
from shared.held_to import limits_set

import mla_numba as mla
from mla_numba.base.threads import usual_threads
from mla_numba.call.planning import this_machine
from mla_numba.kernels import max_threads
from mla_numba.testing import copies_to_be_cold
from mla_numba.tuning.rates import Probes, rates_as_dict
from mla_numba.tuning.watch import mean_rates
from tiling import Rates, Work, least_seconds

from .rotation import rotate

__all__ = ["TOKENS", "Stopwatch", "Suite", "settings", "threading_layer", "token_id", "versions"]

TOKENS = (1, 8, 32, 128, 512)
FULL_SIZE = mla.MlaDims.deepseek_v32()
PROBE_SECONDS = 0.02  # of each rate
TINY_SIZE = mla.MlaDims(256, 4, 128, 128, 64, 64)


def token_id(t: int) -> str:
    """A number of tokens in the name of a bench."""
    return f"T{t}"


class Stopwatch:
    """A timer for pytest-benchmark that runs only while something says so: it advances by what is added."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Let it advance."""
        self._seconds += seconds

    def read(self) -> float:
        """Seconds added so far."""
        return self._seconds


class Suite:
    """The settings of a session, and how it measures.

    `tiny`: sizes at which the benches are tests of themselves, and rates that mean nothing. `max_seconds`: of each.
    `before_timing` is called when a bench is prepared and checked.
    """

    def __init__(self, *, tiny: bool, max_seconds: float, before_timing: Callable[[], None] = lambda: None) -> None:
        self.tiny = tiny
        self.max_seconds = max_seconds
        self._before_timing = before_timing
        self.dims = TINY_SIZE if tiny else FULL_SIZE
        self.n_threads = usual_threads(max_threads())

    @cached_property
    def _probes(self) -> Probes:
        return Probes(self.n_threads, buffer_bytes=2**20, steps=64) if self.tiny else Probes(self.n_threads)

    def _rates(self) -> Rates:
        return self._probes.rates(seconds=PROBE_SECONDS)

    def copies(self, weight_bytes: int) -> int:
        """Copies of weights of that size for the state "cold"."""
        return 2 if self.tiny else copies_to_be_cold(weight_bytes)

    def rounds(self, seconds: float) -> int:
        """Rounds of a call that takes so long, where pytest-benchmark cannot find out by itself."""
        return min(max(int(self.max_seconds / seconds), 5), 1000)

    def time_calls(
        self,
        benchmark: Any,
        group: str,
        implementation: str,
        calls: Sequence[Callable[[], Any]],
        state: str,
        work: Work,
        *,
        made_of: str,
        verified: str,
    ) -> None:
        """Time calls that were found right."""
        self.describe(benchmark, f"{group}, weights {state}", implementation, made_of=made_of, verified=verified)
        benchmark.extra_info["weights"] = f"cold, {len(calls)} sets in turns" if state == "cold" else "warm, one set"
        call = rotate(calls, state)
        call()
        self.between_probes(benchmark, work, lambda: benchmark(call))

    def between_probes(self, benchmark: Any, work: Work, run: Callable[[], Any]) -> None:
        """Take a measurement, and add its share of the roofline: least possible time over the fastest round.

        The least time follows from rates measured right before and after, for what a shared machine reaches changes by
        half from minute to minute.
        """
        benchmark.extra_info |= {"bytes": work.total_bytes, "flops": work.flops, "int8_ops": work.int8_ops}
        if not benchmark.enabled:
            run()
            return
        before = self._rates()
        run()
        after = self._rates()
        rates = mean_rates(before, after)
        least = least_seconds(work, rates)
        benchmark.extra_info |= {
            "rates": rates_as_dict(rates),
            "least_seconds": least,
            "share_of_roofline": least / benchmark.stats.stats.min,
        }

    def describe(self, benchmark: Any, group: str, implementation: str, *, made_of: str, verified: str) -> None:
        """Put a bench in its group, and say in `extra_info` what is timed, by whom and where."""
        machine = this_machine()
        benchmark.group = group
        benchmark.extra_info |= {
            "implementation": implementation,
            "made_of": made_of,
            "verified": verified,
            "threads": self.n_threads,
            "cpu": machine.name,
            "instruction_set": machine.isa,
            "dims": dims_text(self.tiny),
        }
        if implementation.startswith(OURS):
            benchmark.extra_info["threading_layer"] = threading_layer()
        self._before_timing()


def dims_text(tiny: bool) -> str:
    """The dimensions of a session, in a line."""
    return ", ".join(f"{name} {size}" for name, size in asdict(TINY_SIZE if tiny else FULL_SIZE).items())


def settings(tiny: bool) -> dict[str, Any]:
    """What two sessions have to share for their times to be compared."""
    return {
        "machine": str(this_machine()),
        "system": platform.system(),
        "threads": usual_threads(max_threads()),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "malloc": os.environ.get("GLIBC_TUNABLES", "not set"),
        "torch_limits": limits_set(dict(os.environ)) or "none",
        "dims": dims_text(tiny),
    }


def versions() -> dict[str, str]:
    """Of the libraries that are timed, and of what they stand on."""
    found = {"mla_numba": mla.__version__, "python": platform.python_version()}
    for name in ("numba", "llvmlite", "numpy", "torch", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def threading_layer() -> str:
    """Numba's threading layer, once a parallel kernel has run."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return "none started"
