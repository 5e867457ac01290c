"""Measure what this machine reaches, and how much of it `MlaProlog` takes.

`python bench/roofline.py --tokens 1 8 32 128 512 --rounds 30 --threads 2 --weight-sets 4`

Without `--tokens` only the rates of 1 to `--threads` threads are measured. With them, each number of tokens is a block
of rounds, a whole call each, checked against the reference first. What the machine reaches changes from minute to
minute, so the limit of a block follows from rates measured right before and right after it: from their mean. Calls back
to back may find part of the weights in the last-level cache and so pass the limit of a read from memory; with several
weight sets each call takes the next one, as the layers of a model do.

Other programs that compute at the same time take more from threads that wait for each other than from one alone: a
block that was measured on a busy machine is named first, and has to be measured again. With Numba's OpenMP layer,
`OMP_WAIT_POLICY=PASSIVE` in the environment lets threads sleep, not spin, while they wait.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
from rich import box
from rich.console import Console, Group
from rich.table import Column, Table
from shared.options import DIMS, ManyValues

import mla_numba as mla
from mla_numba.call.planning import this_machine
from mla_numba.cli.options import finite, threads_option
from mla_numba.cli.rates_table import show_rates
from mla_numba.cli.shown import no_share, share_text
from mla_numba.oracle.bits import check_output, poison, reference_run
from mla_numba.oracle.inputs import Inputs, random_inputs
from mla_numba.testing import Bench, Share, do_bench
from mla_numba.tuning.rates import Probes, least_ms, rates_as_dict
from tiling import PrologPlan, ceil_div

OURS = "mla_numba"
BLOCK_SIZE = 128
LEAST_TOKENS = (1, 8, 32, 128, 512)


@dataclass(frozen=True)
class Block:
    """The rounds of one number of tokens between two measurements of the rates."""

    plan: PrologPlan
    bench: Bench

    @property
    def ms(self) -> tuple[float, ...]:
        """Milliseconds of the rounds."""
        return self.bench.ms[OURS]

    @property
    def least_ms(self) -> float:
        """The least possible milliseconds of a round, at the mean of both measurements."""
        return self.bench.least_ms or 0.0

    @property
    def share(self) -> Share:
        """The least possible time over the median, or why that is none."""
        return self.bench.share(OURS) or Share(None)

    def to_dict(self) -> dict[str, Any]:
        """The block as JSON takes it."""
        return {
            "tokens": self.plan.t,
            "min_ms": min(self.ms),
            "median_ms": self.bench.median(OURS)._asdict(),
            "least_ms": self.least_ms,
            "share": self.share.value,
            "share_reason": self.share.reason,
            "rates_before": rates_as_dict(self.bench.before),
            "rates_after": rates_as_dict(self.bench.after),
            "conditions": self.bench.conditions.as_dict(),
            "ms": list(self.ms),
            "plan": str(self.plan).splitlines()[0],
        }


@click.command(cls=ManyValues)
@click.option("--tokens", type=click.IntRange(1), multiple=True, help="Also time calls of so many tokens.")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Calls of each number of tokens.")
@threads_option
@click.option("--weight-sets", type=click.IntRange(1), default=1, show_default=True, help="Layers to take in turns.")
@click.option(
    "--seconds", type=click.FloatRange(0, 3600), default=0.3, show_default=True, callback=finite,
    help="Of measuring each rate.",
)  # fmt: skip
@click.option("--dims", type=click.IntRange(1), nargs=6, help=f"{DIMS}; by default DeepSeek-V3.2's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the times of all rounds.")
def main(
    tokens: tuple[int, ...],
    rounds: int,
    threads: int,
    weight_sets: int,
    seconds: float,
    dims: tuple[int, ...] | None,
    as_json: bool,
) -> None:
    """Measure the rates of this machine; with --tokens, time the prolog against the limit that they set."""
    console, progress = Console(), Console(stderr=True)
    sizes = mla.MlaDims(*dims) if dims else mla.MlaDims.deepseek_v32()
    progress.print(f"measuring 1 to {threads} threads")
    probes = Probes(threads)
    rates = {n: probes.rates(n, seconds) for n in range(1, threads + 1)}
    least = least_ms(sizes, LEAST_TOKENS, threads, rates[threads])
    if not as_json:
        console.print(str(this_machine()), markup=False, highlight=False, soft_wrap=True)
        console.print(show_rates(rates, least))
    blocks = []
    if tokens:
        progress.print(f"packing {weight_sets} weight sets")
        sets = [mla.MlaWeights.random(sizes, seed=seed, quant="b") for seed in range(weight_sets)]
        prologs = [mla.MlaProlog(weights, n_threads=threads) for weights in sets]
    for t in tokens:
        progress.print(f"{t} tokens: checking and timing")
        blocks.append(time_block(probes, seconds, sets[0], prologs, t, rounds))
    if as_json:
        report = {
            "machine": str(this_machine()),
            "version": mla.__version__,
            "dims": str(sizes),
            "threads": threads,
            "rounds": rounds,
            "weight_sets": weight_sets,
            "waiting": os.environ.get("OMP_WAIT_POLICY", "not set"),
            "rates": [{"threads": n} | rates_as_dict(of_n) for n, of_n in rates.items()],
            "least_ms": least,
            "results": [block.to_dict() for block in blocks],
        }
        click.echo(json.dumps(report))
    elif blocks:
        console.print(show_blocks(blocks, threads, rounds, weight_sets))


def time_block(
    probes: Probes,
    seconds: float,
    weights: mla.MlaWeights,
    prologs: Sequence[mla.MlaProlog],
    t: int,
    n_rounds: int,
) -> Block:
    """Check a call of the first prolog, which holds `weights`; then time all prologs in turns between two probes."""
    n_blocks = ceil_div(t, BLOCK_SIZE) + 1
    inputs = random_inputs(prologs[0].dims, t, seed=0, capacity=n_blocks * BLOCK_SIZE)
    cache = mla.PagedCache.allocate(prologs[0].dims, n_blocks, BLOCK_SIZE)
    out = prologs[0].allocate_output(t)
    check(weights, prologs[0], inputs, cache, out)
    plan = prologs[0].plan(t)
    calls = {OURS: [partial(prolog, *inputs, cache, out) for prolog in prologs]}
    return Block(plan, do_bench(calls, n_rounds=n_rounds, work=plan, probes=probes, probe_seconds=seconds))


def check(
    weights: mla.MlaWeights, prolog: mla.MlaProlog, inputs: Inputs, cache: mla.PagedCache, out: mla.PrologOutput
) -> None:
    """End the command unless a call gives the reference's bits."""
    poison(*out, *cache.arrays().values())
    before = cache.copy()
    prolog(*inputs, cache, out)
    mismatches = check_output(out, cache, reference_run(weights, *inputs, before))
    if mismatches:
        raise click.ClickException(f"{len(inputs.x)} tokens: " + "; ".join(map(str, mismatches)))


def show_blocks(blocks: Sequence[Block], n_threads: int, n_rounds: int, n_sets: int) -> Group:
    """Times and shares, and the rates that the limits follow from; a row each for each number of tokens."""
    headings = ("tokens", "min ms", "median ms (95 %)", "least ms", "limit")
    times = Table(*(Column(heading, justify="right", no_wrap=True) for heading in headings), box=box.SIMPLE)
    names = ("read GB/s", "FMA GFLOP/s", "int8 GOP/s", "bf16 GFLOP/s")[: len(rates_as_dict(blocks[0].bench.before))]
    rates = Table(*(Column(heading, justify="right") for heading in ("tokens", *names)), box=box.SIMPLE)
    busy = []
    for block in blocks:
        bench = block.bench
        times.add_row(
            str(block.plan.t),
            f"{min(block.ms):.3f}",
            str(bench.median(OURS)),
            f"{block.least_ms:.3f}",
            share_text(block.share.value, 1),
        )
        pairs = zip(rates_as_dict(bench.before).values(), rates_as_dict(bench.after).values(), strict=True)
        rates.add_row(str(block.plan.t), *(f"{before:.0f}, {after:.0f}" for before, after in pairs))
        busy += [f"{block.plan.t} tokens: {bench.conditions}"] if bench.conditions.is_busy else []
    heading = f"{n_rounds} rounds, {n_threads} threads, {n_sets} weight sets; least: at the mean of the rates below"
    marked = no_share(block.share.reason for block in blocks)
    return Group(*busy, heading, times, *filter(None, [marked]), "before the rounds, after them", rates)


if __name__ == "__main__":
    main()
