"""The main job of the command line: make weights, plan, time the sweeps, compare with the reference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tiling import MlaTileConfig, PassOptions, PrologPlan, ceil_div

from ..base.dims import MlaDims
from ..cache import PagedCache
from ..call.trace import PHASES, Trace
from ..oracle import bits as verify
from ..oracle.inputs import Inputs, random_inputs
from ..prolog import MlaProlog, PrologOutput
from ..weights.plain import MlaWeights
from .report import Steps, SweepTimes

__all__ = ["Job", "Report", "allocate_cache", "run_job", "time_sweeps"]


@dataclass(frozen=True, slots=True)
class Job:
    """What to run on given weights: `t` tokens, timed `repeats` times; the inputs come from `seed`."""

    dims: MlaDims
    t: int
    phase: str
    tile_config: MlaTileConfig | str | None
    options: PassOptions | None
    n_threads: int
    seed: int
    repeats: int
    numerics: str
    check: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a job. `seconds` are those of its steps; `mismatches` is None where nothing was compared.

    `trace` is that of the last call.
    """

    plan: PrologPlan
    sweeps: list[SweepTimes]
    trace: Trace
    seconds: dict[str, float]
    n_arrays: int
    mismatches: list[verify.Mismatch] | None

    @property
    def exact(self) -> bool | None:
        """Whether every bit is the reference's, None where that was not checked."""
        return None if self.mismatches is None else not self.mismatches

    @property
    def verdict(self) -> str:
        """A sentence on it, or the mismatches."""
        if self.mismatches is None:
            return "not checked against the reference"
        if self.mismatches:
            return "\n".join(map(str, self.mismatches))
        return f"exact: every bit of {self.n_arrays} outputs and caches equals the reference"

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "exact": self.exact,
            "mismatches": [asdict(mismatch) for mismatch in self.mismatches or []],
            "sweeps": {sweep.name: sweep.as_dict() for sweep in self.sweeps},
            "last_call_busy_s": {phase: self.trace.busy_s(phase) for phase in PHASES},
            "seconds": self.seconds,
            "plan": json.loads(self.plan.to_json()),
        }


def allocate_cache(dims: MlaDims, t: int, quant: str, block_size: int, cache_mode: str) -> PagedCache:
    """A cache of one block more than `t` tokens need, so that there are rows that no call may touch."""
    return PagedCache.allocate(dims, ceil_div(t, block_size) + 1, block_size, cache_mode, quantized="b" in quant)


def run_job(job: Job, weights: MlaWeights, cache: PagedCache, steps: Steps) -> Report:
    """Times the job and compares what its last repeat left with the reference. `cache` is written to."""
    inputs = random_inputs(job.dims, job.t, job.seed, cache.capacity)
    with steps.step("packing weights"):
        prolog = MlaProlog(
            weights,
            job.phase,
            tile_config=job.tile_config,
            options=job.options,
            n_threads=job.n_threads,
            numerics=job.numerics,
        )
    plan = prolog.plan(job.t)
    out = prolog.allocate_output(job.t)
    with steps.step("first call"):
        prolog(*inputs, cache, out)
    verify.poison(*out, *cache.arrays().values())
    before = cache.copy()
    with steps.step(f"timing {job.repeats} calls", job.repeats) as advance:
        sweeps, trace = time_sweeps(prolog, inputs, cache, out, job.repeats, advance)
    mismatches = None
    if job.check:
        with steps.step("computing the reference"):
            reference = verify.reference_run(weights, *inputs, before, numerics=job.numerics)
        with steps.step("comparing"):
            mismatches = verify.check_output(out, cache, reference)
    n_arrays = len(cache.arrays()) + sum(array is not None for array in out)
    return Report(plan, sweeps, trace, dict(steps.seconds), n_arrays, mismatches)


def time_sweeps(
    prolog: MlaProlog,
    inputs: Inputs,
    cache: PagedCache,
    out: PrologOutput,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[SweepTimes], Trace]:
    """Times of each sweep and, under "total", of the whole call, and the trace of the last of at least one call.

    `advance` is called between calls.
    """
    trace = Trace()
    plan = prolog.plan(inputs.x.shape[0])
    work = plan.sweep_work | {"total": plan.work}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        begin = time.perf_counter()
        _, trace = prolog.profile(*inputs, cache, out)
        spent = trace.seconds | {"total": time.perf_counter() - begin}
        for name, seconds in spent.items():
            times[name].append(seconds)
        advance()
    return [SweepTimes(name, w.total_bytes, w.n_ops, tuple(times[name])) for name, w in work.items()], trace
