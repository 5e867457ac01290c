"""What `mla-numba sweep` tries: candidates, and a job for each of them and each T."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import click

from tiling import PRESETS, CpuTiling, PrologPlan, plan_prolog, preset

from ...base.modes import NpuArch, QuantMode
from ...call.planning import MICRO_TILES, this_machine
from ...tuning.space import MAX_CANDIDATES, Candidate, Grid, check_restriction, parse_values
from ...tuning.study import Job, list_jobs, reasons_of
from ..faults import blame
from ..progress import progress_bar
from .options import StudyOptions

__all__ = ["Choice", "own_plan"]

# What is varied where --set says nothing: k blocks and panels of the down sweep, then the tiles of tokens.
_DEFAULT = (
    {"down_kc": "256,512,896,1792,3584", "down_walk": "1,2,4,8"},
    {"unroll_list": "[512,256,128,64,32,16,8,4,2,1],[64,32,16,8,4,2,1],[32,16,8,4,2,1],[8,4,2,1]"},
)
_PLANNED_UNSEEN = 500  # about a second


class Choice(NamedTuple):
    """The candidates, each in a quant mode, and the restrictions on them."""

    candidates: list[tuple[Candidate, QuantMode]]
    restrictions: list[str]

    @classmethod
    def of(cls, options: StudyOptions) -> Choice:
        """What the options choose; an error naming the option that does not fit."""
        with blame("--set"):
            grids = [] if options.presets else _grids(options)
            candidates = (
                _presets(options.npuarch)
                if options.presets
                else [(candidate, options.quant) for grid in grids for candidate in grid.candidates()]
            )
        with blame("--where"):
            names = [name for grid in grids for name in grid.axes]
            restrictions = [check_restriction(text, names) for text in options.where]
        return cls(candidates, restrictions)

    def jobs(self, options: StudyOptions) -> tuple[list[Job], int]:
        """The jobs, and how many restrictions left out; an error where none is left that could be timed."""
        n = len(self.candidates) * len(options.tokens)
        if n > MAX_CANDIDATES:
            got = f"{len(self.candidates)} times {len(options.tokens)}"
            raise click.UsageError(f"--set, --tokens: expected at most {MAX_CANDIDATES} combinations in all, got {got}")
        shown = progress_bar("plan", n) if n > _PLANNED_UNSEEN else nullcontext(lambda note, by: None)
        with blame("--where"), shown as planned:
            jobs, n_left_out = list_jobs(
                self.candidates, options.tokens, self.restrictions, _planner(options), options.phase, options.npuarch,
                lambda: planned("", 1),
            )  # fmt: skip
        if not jobs:
            raise click.UsageError(f"--where: expected to leave a candidate, got none of {n_left_out}")
        if all(job.refused for job in jobs):
            reasons = "\n".join(reasons_of([job.refused for job in jobs]))
            raise click.ClickException(f"every candidate is refused, so nothing was timed\n{reasons}")
        return jobs, n_left_out


def _grids(options: StudyOptions) -> list[Grid]:
    """The given fields, or those that are varied by default."""
    if not options.axes:
        return [Grid({name: parse_values(v) for name, v in given.items()}, CpuTiling()) for given in _DEFAULT]
    if options.base is not None:
        return [Grid(options.axes, preset(options.base, options.npuarch))]
    return [Grid(options.axes, Grid.base_of(list(options.axes)))]


def _presets(npuarch: NpuArch) -> list[tuple[Candidate, QuantMode]]:
    """The reference operator's presets, each in the mode that it is made for."""
    return [
        (Candidate((("preset", name),), preset(name, npuarch)), "none" if name.endswith("_bf16") else "b")
        for name in PRESETS
    ]


def _planner(options: StudyOptions) -> Callable[[Job], PrologPlan]:
    """Plans a job's calls."""
    sizes, machine = options.sizes, this_machine()

    def plan(job: Job) -> PrologPlan:
        return plan_prolog(
            sizes, job.t, job.candidate.config, machine, micro=MICRO_TILES, phase=options.phase, quant=job.quant,
            n_threads=options.threads, options=job.options,
        )  # fmt: skip

    return plan


def own_plan(options: StudyOptions, t: int, quant: QuantMode) -> PrologPlan:
    """The planner's own plan, with which candidates are paired."""
    return plan_prolog(
        options.sizes, t, None, this_machine(), micro=MICRO_TILES, phase=options.phase, quant=quant,
        n_threads=options.threads,
    )  # fmt: skip
