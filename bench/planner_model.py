"""Fit the planner's model to this machine, and test its choice against measurement.

`python bench/planner_model.py fit --write` measures candidates of both sweeps that have any, at several numbers of
tokens and threads, fits the model's constants to them, and writes those of this instruction set to
`tiling/choose/costs.json`.

`python bench/planner_model.py check` measures the planner's own plan against the best of its rivals: for each number of
tokens and threads, candidates spread over all that the planner lists are timed sweep by sweep, and plans of the fastest
are then paired with the planner's own, in alternating order.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from statistics import median

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table

import mla_numba as mla
from mla_numba.base.output_file import write_text
from mla_numba.base.threads import usual_threads
from mla_numba.call.planning import this_machine
from mla_numba.cli.options import token_list
from mla_numba.kernels import max_threads
from mla_numba.tuning.contest import Arena, Contender, Pairs
from mla_numba.tuning.rates import Probes
from mla_numba.tuning.turns import quiet
from tiling import Costs, CpuTiling
from tiling.choose.candidates import Chooser, SweepCandidate
from tiling.choose.costs import COSTS_FILE

MEASURED = ("memory_bytes_s", "core_bytes_s", "bf16_flops_s", "int8_ops_s", "row_s")
STEPS = (2.0, 1.4, 1.15, 1.05)


@dataclass(frozen=True)
class Sample:
    """Seconds of one sweep with a candidate's blocks."""

    chooser: Chooser
    candidate: SweepCandidate
    seconds: float

    def modelled(self, costs: Costs) -> float:
        """What the model says with other constants."""
        return modelled(replace(self.chooser, costs=costs), self.candidate)


def modelled(chooser: Chooser, candidate: SweepCandidate) -> float:
    return chooser.cost_of(candidate).seconds


def spread(candidates: list[SweepCandidate], n: int, rng: random.Random) -> list[SweepCandidate]:
    """The model's best candidate, the half of ``n`` that follow it, and random others."""
    ordered = sorted((c for c in candidates if c.cost), key=lambda c: c.cost.seconds)
    first, rest = ordered[: n // 2], ordered[n // 2 :]
    return first + rng.sample(rest, min(n - len(first), len(rest)))


def measure(arena: Arena, t: int, n_candidates: int, n_rounds: int, rng: random.Random) -> list[Sample]:
    """Candidates of both sweeps in pairs, shuffled anew each round; the fastest of each one's rounds."""
    plan = arena.baseline(t).plan
    if len(plan.tile_plans) != 1:
        raise click.UsageError(f"--tokens: expected numbers that are one tile, got {t}")
    chooser = plan.chooser(plan.tile_plans[0])
    listed = chooser.listed()
    rows = [spread([c for c in listed if c.sweep == sweep], n_candidates, rng) for sweep in ("down", "heads")]
    runs: list[tuple[Contender, tuple[SweepCandidate, ...]]] = []
    for i in range(max(map(len, rows))):
        both = tuple(of_sweep[i % len(of_sweep)] for of_sweep in rows)
        tiling = CpuTiling(unroll_list=(t,), **dict(both[0].values), **dict(both[1].values))
        runs.append((arena.contender(t, tiling), both))
    times: dict[SweepCandidate, list[float]] = {candidate: [] for _, both in runs for candidate in both}
    calls = count()  # the next weight set for each, so that none finds what the one before it has just read
    with quiet():
        for round_ in range(-1, n_rounds):
            for contender, both in rng.sample(runs, len(runs)):
                spent = arena.profile(contender, next(calls)).seconds
                if round_ >= 0:
                    for candidate in both:
                        times[candidate].append(spent[candidate.sweep])
    return [Sample(chooser, candidate, min(seconds)) for candidate, seconds in times.items()]


def row_seconds(arena: Arena, t: int, n_calls: int) -> float:
    """Seconds of one token's elementwise steps by one thread, in the planner's own plan."""
    traces = [arena.profile(arena.baseline(t), i) for i in range(n_calls)]
    return median(sum(trace.busy_s("query")) + sum(trace.busy_s("key")) for trace in traces) / t


def error(samples: Sequence[Sample], costs: Costs) -> float:
    """How far the logarithms of modelled and measured seconds lie apart: within groups, and a little as a whole.

    The choice is among candidates of one group (tokens, threads, sweep), so a factor common to a group matters little;
    those that were fast matter most.
    """
    groups: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    for sample in samples:
        key = sample.chooser.t, sample.chooser.n_workers, sample.candidate.sweep
        off = math.log(sample.modelled(costs) / sample.seconds)
        groups.setdefault(key, []).append((off, sample.seconds))
    total = 0.0
    for group in groups.values():
        fastest = min(seconds for _, seconds in group)
        weights = [(fastest / seconds) ** 4 for _, seconds in group]
        mean = sum(w * off for w, (off, _) in zip(weights, group, strict=True)) / sum(weights)
        spread_ = sum(w * (off - mean) ** 2 for w, (off, _) in zip(weights, group, strict=True)) / sum(weights)
        total += spread_ + 0.05 * mean**2
    return math.sqrt(total / len(groups))


def fit(samples: Sequence[Sample], costs: Costs) -> Costs:
    """Constants with the least error, one after the other in ever smaller steps; measured rates stay."""
    names = [f.name for f in fields(Costs) if f.name not in MEASURED]
    best = error(samples, costs)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for name in names:
                for factor in (step, 1 / step):
                    value = min(max(getattr(costs, name) * factor, LIMITS[name][0]), LIMITS[name][1])
                    trial = replace(costs, **{name: value})
                    found = error(samples, trial)
                    if found < best - 1e-6:
                        best, costs, improved = found, trial, True
    return costs


# What is still a plausible constant, so that one that the samples say little about does not run away.
LIMITS = {
    "l3_bytes_s": (2e9, 3e11),
    "l2_bytes_s": (5e9, 1e12),
    "c_bytes_s": (5e9, 1e12),
    "walk_s": (1e-9, 1e-5),
    "jump_s": (1e-9, 1e-5),
    "step_rows": (0.01, 12.0),
    "call_s": (1e-9, 1e-6),
    "element_s": (1e-11, 1e-8),
    "task_s": (1e-8, 1e-5),
    "launch_s": (1e-7, 2e-4),
    "overlap_loss": (0.01, 1.0),
}


def arena_of(tokens: Sequence[int], n_threads: int, weight_sets: int, dims: mla.MlaDims) -> Arena:
    return Arena(dims, "b", tokens, n_threads=n_threads, n_weight_sets=weight_sets)


def all_options(command: click.Command) -> click.Command:
    options = (
        click.option("--tokens", type=token_list, default="1,8,32,128,512", show_default=True, help="Tokens of calls."),
        click.option("--threads", type=token_list, help="Numbers of threads.  [default: 1 and NUMBA_NUM_THREADS]"),
        click.option("--candidates", type=click.IntRange(2), default=24, show_default=True, help="Of each sweep."),
        click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of timing candidates."),
        click.option("--dims", type=click.IntRange(1), nargs=6, help="Dimensions; by default DeepSeek-V3.2's."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the candidates' choice."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def sizes_of(dims: tuple[int, ...] | None) -> mla.MlaDims:
    return mla.MlaDims(*dims) if dims else mla.MlaDims.deepseek_v32()


def threads_of(threads: tuple[int, ...] | None) -> tuple[int, ...]:
    return threads or tuple(dict.fromkeys((1, usual_threads(max_threads()))))


def paired(arena: Arena, t: int, tiling: CpuTiling, n_pairs: int) -> Pairs:
    with quiet():
        return next(timed for timed in arena.pairs(arena.contender(t, tiling)) if len(timed.ours_s) == n_pairs)


def own_text(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


@click.group()
def main() -> None:
    """Fit the planner's model, or check its choice."""


@main.command("fit")
@all_options
@click.option("--write", is_flag=True, help="Write the constants to tiling/choose/costs.json.")
@click.option("--seconds", type=click.FloatRange(0), default=0.3, show_default=True, help="Of measuring each rate.")
def fit_command(
    tokens: tuple[int, ...],
    threads: tuple[int, ...] | None,
    candidates: int,
    rounds: int,
    dims: tuple[int, ...] | None,
    seed: int,
    write: bool,
    seconds: float,
) -> None:
    """Measure candidates and fit the model's constants to them."""
    progress, rng = Console(stderr=True), random.Random(seed)
    isa, sizes = this_machine().isa, sizes_of(dims)
    threads = threads_of(threads)
    probes = Probes(max(threads))
    all_rates = {n: probes.rates(n, seconds) for n in dict.fromkeys((1, *threads))}
    del probes
    most = all_rates[max(threads)]
    costs = replace(Costs.of_isa(isa).with_rates(most, max(threads)), core_bytes_s=all_rates[1].bandwidth_bytes_s)
    samples = []
    for n in threads:
        arena = arena_of(tokens, n, 2, sizes)
        costs = replace(costs, row_s=row_seconds(arena, max(tokens), 5))
        for t in tokens:
            progress.print(f"{t} tokens, {n} threads: timing candidates")
            samples += measure(arena, t, candidates, rounds, rng)
    before = error(samples, costs)
    costs = fit(samples, costs)
    costs = Costs(**{name: float(f"{value:.4g}") for name, value in asdict(costs).items()})
    progress.print(
        f"{len(samples)} samples: error {before:.3f} with the old constants, {error(samples, costs):.3f} now"
    )
    click.echo(json.dumps({isa: asdict(costs)}, indent=1))
    if write:
        table = json.loads(COSTS_FILE.read_text(encoding="utf-8"))
        write_text(COSTS_FILE, json.dumps(table | {isa: asdict(costs)}, indent=1) + "\n")


@main.command()
@all_options
@click.option("--pairs", type=click.IntRange(3), default=15, show_default=True, help="Paired calls of each rival.")
@click.option("--rivals", type=click.IntRange(1), default=4, show_default=True, help="Plans paired with the choice.")
def check(
    tokens: tuple[int, ...],
    threads: tuple[int, ...] | None,
    candidates: int,
    rounds: int,
    dims: tuple[int, ...] | None,
    seed: int,
    pairs: int,
    rivals: int,
) -> None:
    """Pair the planner's choice with the fastest measured candidates; fail where one is 5 % faster."""
    console, progress, rng = Console(), Console(stderr=True), random.Random(seed)
    headings = ("tokens", "threads", "choice ms", "rival ms", "rival / choice", "rival wins")
    table = Table(*(Column(heading, justify="right") for heading in headings), box=box.SIMPLE)
    notes = []
    worst = 1.0
    for n in threads_of(threads):
        arena = arena_of(tokens, n, 2, sizes_of(dims))
        for t in tokens:
            progress.print(f"{t} tokens, {n} threads")
            samples = measure(arena, t, candidates, rounds, rng)
            fastest = [
                sorted((s for s in samples if s.candidate.sweep == sweep), key=lambda s: s.seconds)
                for sweep in ("down", "heads")
            ]
            tilings = []
            for i in range(rivals):
                down, heads = (dict(of_sweep[min(i, len(of_sweep) - 1)].candidate.values) for of_sweep in fastest)
                tilings.append(CpuTiling(unroll_list=(t,), **down, **heads))
            best = min(tilings, key=lambda tiling: paired(arena, t, tiling, pairs).ratio)
            timed = paired(arena, t, best, 2 * pairs)  # anew: the pairs that chose it favour it
            worst = min(worst, timed.ratio)
            cells = (str(t), str(n), f"{timed.baseline_median_s * 1e3:.3f}", f"{timed.median_s * 1e3:.3f}")
            table.add_row(*cells, f"{timed.ratio:.3f}", f"{timed.wins:.0%}")
            own = arena.baseline(t).plan
            choice = own.chooser(own.tile_plans[0]).choose().values
            notes.append(f"T {t}, {n} threads\n  choice: {own_text(choice)}\n  rival:  {best}")
    console.print(table)
    click.echo("\n".join(notes))
    if worst < 0.95:
        raise click.ClickException(f"the planner's choice is {1 / worst - 1:.1%} slower than a rival")


if __name__ == "__main__":
    main()
