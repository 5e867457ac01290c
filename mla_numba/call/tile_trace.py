"""One tile of tokens in a trace: what each thread did in it, phase by phase and product by product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tiling import GemmPlan, TilePlan

from ..base.checks import Array, check_choice
from ..base.short_repr import short_repr
from ..kernels.sweeps.phase import ALL_PHASES, LAP_BEGIN, LAP_END, LAP_FIELDS, LAP_MARKS, LAP_WORKER, PHASES

__all__ = [
    "STAGES",
    "SWEEPS",
    "Span",
    "StageSpan",
    "TileTrace",
    "new_laps",
    "spans_of",
    "stage_spans_of",
    "sweeps_text",
]

SWEEPS = ("down", "rows", "heads")
# The reference operator's names of what a phase does.
STAGES = {
    "pack": "x",
    "down": "Matmul_qa, Matmul_kva",
    "query": "RmsNorm_qa, Quant_qMnRes",
    "key": "RmsNorm_compressedkv, Quant_knope, RotaryPosEmb, ScatterUpdate",
    "heads": "QuantMatmul_qb, Dequant_qb, Rope_qRope, Matmul_qNope_wUk",
    "index_pack": "x",
    "index_down": "Matmul_indexK, Matmul_indexWeights",
    "index_key": "LayerNorm_indexK, Rope_indexK, Hadamard_indexK, Quant_indexK, Scatter_indexK, Scale_indexWeights",
    "index_heads": "QuantMatmul_indexQ, Dequant_indexQ, Rope_indexQ, Hadamard_indexQ, Quant_indexQ",
}


class Span(NamedTuple):
    """A worker's time in a phase, in nanoseconds of `time.perf_counter_ns`; waiting for the phase is not in it.

    It begins when the worker comes to the phase and ends with its last task there. A worker that comes late finds no
    task left: `n_tasks` is then 0, and `end_ns` equals `begin_ns`.
    """

    phase: str
    worker: int
    begin_ns: int
    end_ns: int
    n_tasks: int


class StageSpan(NamedTuple):
    """A worker's time in one product of one task, or in a step between two, in nanoseconds of `time.perf_counter_ns`.

    `stages` are the reference operator's names of what it computes, the product first.
    """

    stages: str
    phase: str
    worker: int
    task: int
    begin_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class TileTrace:
    """One tile of tokens: `t` from token `t0` on, between `begin_ns` and `end_ns` of `time.perf_counter_ns`.

    `plan` is the tile's plan, where it is known. `stages` are in the order of phases and tasks, and empty where nobody
    asked for them; an indexer's phases have none.
    """

    t0: int
    t: int
    begin_ns: int
    end_ns: int
    spans: tuple[Span, ...]
    plan: TilePlan | None = None
    stages: tuple[StageSpan, ...] = ()

    def products_of(self, phase: str) -> dict[str, int]:
        """Operations of the products that the tasks of a phase compute, by stage; empty where the plan is not known."""
        if self.plan is None:
            return {}
        qa, qb, kva, wuk = self.plan.gemms
        of_phases: dict[str, tuple[GemmPlan, ...]] = {"down": (qa, kva), "heads": (qb, wuk)}
        if self.plan.indexer is not None:
            k, query, weights, hadamard = self.plan.indexer.gemms
            of_phases |= {"index_down": (k, weights), "index_heads": (query, hadamard)}
        return {gemm.stage: gemm.ops for gemm in of_phases.get(phase, ())}

    def __repr__(self) -> str:
        total = f"{(self.end_ns - self.begin_ns) / 1e6:.3f} ms"
        return short_repr(self, f"{self.t} tokens from token {self.t0} on", total, sweeps_text(self.seconds))

    def end_of(self, phase: str) -> int:
        """When the last task of a phase was done; workers without a task there do not count."""
        check_choice("phase", phase, ALL_PHASES)
        ends = [span.end_ns for span in self.spans if span.phase == phase and span.n_tasks]
        return max(ends, default=self.begin_ns)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each sweep: to the end of the last task of x's products, then of the query's rows, then the rest.

        They add up to the time between `begin_ns` and `end_ns`. Key rows, which nothing waits for, are done in the
        second or in the third; an indexer's, too.
        """
        down = max(self.end_of("down"), self.end_of("index_down"))
        marks = [self.begin_ns, down, max(down, self.end_of("query")), self.end_ns]
        return {name: (marks[i + 1] - marks[i]) / 1e9 for i, name in enumerate(SWEEPS)}


def spans_of(spans: Array) -> tuple[Span, ...]:
    """Spans of begin, end and number of tasks (n_workers, phases, 3) int64, see `kernels.sweeps.arguments.Buffers`."""
    return tuple(
        Span(phase, worker, *map(int, spans[worker, i]))
        for worker in range(len(spans))
        for i, phase in enumerate(ALL_PHASES[: spans.shape[1]])
    )


def new_laps(plan: TilePlan) -> Array:
    """Zeros for what is noted of each task."""
    return np.zeros((len(PHASES), max(_n_tasks(plan).values()), LAP_FIELDS), np.int64)


def stage_spans_of(laps: Array, plan: TilePlan) -> Iterator[StageSpan]:
    """Spans of the times of each task (phases, tasks, LAP_FIELDS) int64, see `kernels.sweeps.arguments.Buffers`."""
    for phase, n_tasks in _n_tasks(plan).items():
        for task, lap in enumerate(laps[PHASES.index(phase), :n_tasks].tolist()):
            stages = _stages_of_task(phase, task, plan)
            moments = [lap[LAP_BEGIN], *lap[LAP_MARKS : LAP_MARKS + len(stages) - 1], lap[LAP_END]]
            for name, begin_ns, end_ns in zip(stages, moments[:-1], moments[1:], strict=True):
                yield StageSpan(name, phase, lap[LAP_WORKER], task, begin_ns, end_ns)


def _n_tasks(plan: TilePlan) -> dict[str, int]:
    """The tasks of each phase that has products."""
    return {"down": plan.down.n_tasks, "heads": plan.heads.n_tasks}


def _stages_of_task(phase: str, task: int, plan: TilePlan) -> tuple[str, ...]:
    """What a task computes, one behind the other: the tasks of q_a come before those of kv_a."""
    qa, qb, kva, wuk = plan.gemms
    if phase == "down":
        return (qa.stage if task % plan.down.n_relays < qa.n_tasks else kva.stage,)
    up = f"{qb.stage}, Dequant_qb" if qb.dtype == "int8" else qb.stage
    is_last_leg = task >= plan.heads.n_tasks - plan.heads.n_relays
    return (up, "Rope_qRope", wuk.stage) if is_last_leg else (up,)


def sweeps_text(seconds: Mapping[str, float]) -> str:
    """Each sweep with its milliseconds."""
    return ", ".join(f"{name} {time_s * 1e3:.3f} ms" for name, time_s in seconds.items())
