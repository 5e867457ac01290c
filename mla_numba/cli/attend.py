"""The command `mla-numba attend`: time the stages of a step of sparse attention, compare them with the reference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich import box
from rich.table import Column, Table

from tiling import Rates, Work, least_seconds

from .._version import __version__
from ..call.planning import this_machine
from ..oracle import bits as verify
from ..prolog import MlaProlog
from ..tuning.conditions import Conditions
from ..tuning.interval import Interval, median_interval
from ..tuning.limit import Share, share_of
from ..tuning.rates import Probes, rates_as_dict
from ..tuning.turns import quiet
from ..tuning.watch import Watch, mean_rates
from ..weights.indexer import IndexerWeights
from ..weights.plain import MlaWeights
from .attend_check import check_step, tokens_to_check
from .attend_step import AttendOptions, Results, Step, random_caches
from .compiling import counting_kernels, parts_of_a_step
from .faults import blame
from .indexer_options import check_quant_of_indexer
from .layer import Layer, arrays_of
from .progress import Steps
from .shown import no_share, print_wide, share_text

__all__ = ["attend"]

_PROBE_S = 0.2


@dataclass(frozen=True, slots=True)
class Stage:
    """Seconds of a stage, one a step, what it moves and computes, and the bytes that it works in."""

    name: str
    work: Work
    memory_bytes: int
    times_s: tuple[float, ...]
    least_s: float
    cold: bool

    @property
    def median_ms(self) -> Interval:
        """The median with its interval."""
        return median_interval([seconds * 1e3 for seconds in self.times_s])

    @property
    def share(self) -> Share:
        """The share of the limit at the median."""
        return share_of(self.least_s * 1e3, self.median_ms.median, self.cold)

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "bytes": self.work.total_bytes,
            "flops": self.work.flops,
            "int8_ops": self.work.int8_ops,
            "memory_bytes": self.memory_bytes,
            "times_s": list(self.times_s),
            "min_ms": min(self.times_s) * 1e3,
            "median_ms": self.median_ms._asdict(),
            "least_ms": self.least_s * 1e3,
            "share": self.share.value,
            "share_reason": self.share.reason,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The results of the command. `checked` are the tokens that were compared with the reference, of `n_tokens`."""

    stages: list[Stage]
    conditions: Conditions
    rates: Rates
    n_tokens: int
    checked: list[int]
    mismatches: list[verify.Mismatch]
    seconds: dict[str, float]

    @property
    def exact(self) -> bool | None:
        """Whether every bit that was compared is the reference's, None where none was."""
        return not self.mismatches if self.checked else None

    @property
    def verdict(self) -> str:
        """A sentence on the bits, or the mismatches."""
        if not self.checked:
            return "not checked against the reference"
        if self.mismatches:
            return "\n".join(map(str, self.mismatches))
        if len(self.checked) == self.n_tokens:
            return f"exact: every bit of all {self.n_tokens} tokens and of the caches equals the reference"
        tokens = " and ".join(map(str, self.checked))
        return (
            f"exact: every bit of tokens {tokens} of {self.n_tokens}, and of their rows in the caches, equals the "
            "reference (--check all compares every token)"
        )


def attend(ctx: click.Context, **given: Any) -> None:
    """Runs, shows the report, and ends with status 1 where a bit differs."""
    options = AttendOptions(**given)
    options.check_dims()
    check_quant_of_indexer("attend", options.quant)
    options.check_model()
    if options.tokens > options.n_keys:
        raise click.UsageError(f"--tokens: expected at most the {options.n_keys} of --context, got {options.tokens}")
    with Steps() as steps:
        report, step = run_steps(options, steps)
    if options.as_json:
        click.echo(json.dumps(_as_dict(ctx, options, step, report), indent=2))
    else:
        _show(options, step, report)
    if report.exact is False:
        ctx.exit(1)


def run_steps(given: AttendOptions, steps: Steps) -> tuple[Report, Step]:
    """Times steps and compares what the last one left with the reference."""
    step = _made(given, steps)
    n_parts = parts_of_a_step(given.threads)
    with steps.step("first step", n_parts) as advance, counting_kernels(advance):
        _run(step)
    with steps.step("measuring what the machine reaches", timed=True):
        watch = Watch(Probes(given.threads), _PROBE_S)
    verify.poison(*arrays_of(step.out), step.latent)
    before = step.caches.copy()
    with steps.step(f"timing {given.repeats} steps", given.repeats, timed=True) as advance, quiet():
        results, times = _timed(step, given.repeats, advance)
    with steps.step("measuring it again", timed=True):
        seen = watch.end()
    checked, mismatches = tokens_to_check(step.t, given.check), []
    if checked:
        with steps.step("comparing with the reference", len(checked)) as advance:
            mismatches = check_step(step, before, results, checked, advance)
    rates, work, memory = mean_rates(seen.before, seen.after), step.work, step.memory
    # From one turn of a stage to the next the others go through the caches.
    cold = sum(of.total_bytes for of in work.values()) >= 4 * this_machine().l3_bytes
    work["step"], memory["step"] = sum(work.values(), Work(0)), max(memory.values())
    least = {name: least_seconds(of, rates) for name, of in work.items()}
    least["step"] = sum(least[name] for name in least if name != "step")  # one after the other
    stages = [Stage(name, of, memory[name], times[name], least[name], cold) for name, of in work.items()]
    return Report(stages, seen.conditions, rates, step.t, checked, mismatches, dict(steps.seconds)), step


def _made(given: AttendOptions, steps: Steps) -> Step:
    with steps.step("making weights"):
        with blame("--dims"):
            weights = MlaWeights.random(given.sizes, given.seed, given.quant)
        with blame("--indexer-head-dim"):
            layer = Layer(weights, IndexerWeights.random(given.sizes, given.seed, *given.of_indexer))
    with steps.step("filling caches"), blame("--cache-mode"):
        caches = random_caches(given, layer)
    with steps.step("packing weights"):
        prolog = MlaProlog(weights, n_threads=given.threads, indexer=layer.indexer)
    return Step.random(given, layer, caches, prolog)


def _run(step: Step) -> Results:
    out = step.project()
    index = step.choose(out)
    return Results(out, index, step.attend(out, index))


def _timed(step: Step, repeats: int, advance: Callable[[], None]) -> tuple[Results, dict[str, tuple[float, ...]]]:
    """What the last step returned, and the seconds of each stage and of the whole."""
    rounds = []
    for _ in range(repeats):
        marks = [time.perf_counter()]
        out = step.project()
        marks.append(time.perf_counter())
        index = step.choose(out)
        marks.append(time.perf_counter())
        latent = step.attend(out, index)
        marks.append(time.perf_counter())
        rounds.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2], marks[3] - marks[0]))
        advance()
    return Results(out, index, latent), dict(zip((*step.work, "step"), zip(*rounds, strict=True), strict=True))


def _as_dict(ctx: click.Context, options: AttendOptions, step: Step, report: Report) -> dict[str, Any]:
    unsaid = ("model", "as_json")
    settings = {name: value for name, value in ctx.params.items() if name not in unsaid}
    assert step.layer.indexer is not None
    return {
        "version": __version__,
        "machine": asdict(this_machine()),
        "options": settings | {"context": options.n_keys, "k": options.n_selected},
        "dims": asdict(options.sizes),
        "indexer_dims": asdict(step.layer.indexer.dims),
        "softmax_scale": step.softmax_scale,
        "exact": report.exact,
        "checked_tokens": report.checked,
        "mismatches": [asdict(mismatch) for mismatch in report.mismatches],
        "conditions": report.conditions.as_dict(),
        "rates": rates_as_dict(report.rates),
        "stages": {stage.name: stage.as_dict() for stage in report.stages},
        "seconds": report.seconds,
    }


_HEADINGS = ("min ms", "median ms (95 %)", "MB", "Gop", "least ms", "of the limit", "works in MB")


def _show(options: AttendOptions, step: Step, report: Report) -> None:
    """What speaks against the times, the machine, the step, the table and the verdict."""
    if report.conditions.is_busy:
        click.echo(report.conditions)
    n_heads, head_dim, _ = options.of_indexer
    click.echo(
        f"{this_machine()}\n{options.sequences} x {options.tokens} tokens, {options.n_keys} keys a sequence, "
        f"{options.n_selected} of them for each token, quant {options.quant}, indexer {n_heads} x {head_dim}, "
        f"softmax scale {step.softmax_scale:.6g}, {step.prolog.n_threads} threads"
    )
    table = Table("stage", *(Column(heading, justify="right") for heading in _HEADINGS), box=box.SIMPLE)
    for stage in report.stages:
        if stage.name == "step":
            table.add_section()
        table.add_row(
            stage.name, f"{min(stage.times_s) * 1e3:.3f}", str(stage.median_ms), f"{stage.work.total_bytes / 1e6:.2f}",
            f"{stage.work.n_ops / 1e9:.2f}", f"{stage.least_s * 1e3:.3f}", share_text(stage.share.value),
            f"{stage.memory_bytes / 1e6:.2f}",
        )  # fmt: skip
    reasons = [stage.share.reason for stage in report.stages if stage.share.value is None]
    if reasons:
        table.caption = no_share(reasons)
    print_wide(table, 125)
    click.echo(report.verdict)
