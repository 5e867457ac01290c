"""Measure what this machine reaches, and how much of it `MlaProlog` takes.

`python bench/roofline.py --tokens 1 8 32 128 512 --rounds 30 --threads 2 --weight-sets 4`

Without `--tokens` only the rates of 1 to `--threads` threads are measured. With them, each number of tokens is a block
of rounds, a whole call each, checked against the reference first. What the machine reaches changes from minute to
minute, so the limit of a block follows from rates measured right before and right after it: from their mean. Calls back
to back may find part of the weights in the last-level cache and so pass the limit of a read from memory; with several
weight sets each call takes the next one, as the layers of a model do.

Other programs that compute at the same time take more from threads that wait for each other than from one alone: where
all threads together are slower than one, or the rates before and after differ much, measure again. With Numba's OpenMP
layer, `OMP_WAIT_POLICY=PASSIVE` in the environment lets threads sleep, not spin, while they wait.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import mean, median
from typing import Any

import click
from compare_peers import DIMS, _ManyValues
from rich import box
from rich.console import Console, Group
from rich.table import Column, Table

import mla_numba as mla
from mla_numba.call.planning import this_machine
from mla_numba.cli.options import finite, threads_option
from mla_numba.cli.rates_table import show_rates
from mla_numba.cli.shown import beyond_limit, share_text
from mla_numba.oracle.bits import check_output, poison, reference_run
from mla_numba.oracle.inputs import Inputs, random_inputs
from mla_numba.tuning.rates import (
    Probes,
    least_ms,
    rates_as_dict,
)
from tiling import PrologPlan, Rates, ceil_div, least_seconds

BLOCK_SIZE = 128
LEAST_TOKENS = (1, 8, 32, 128, 512)


@dataclass(frozen=True)
class Block:
    """The rounds of one number of tokens between two measurements of the rates."""

    plan: PrologPlan
    before: Rates
    after: Rates
    ms: list[float]
    load: tuple[float, float]

    @property
    def rates(self) -> Rates:
        """The mean of both measurements."""
        pairs = zip(astuple(self.before), astuple(self.after), strict=True)
        return Rates(*(None if None in pair else mean(pair) for pair in pairs))

    @property
    def least_ms(self) -> float:
        """The least possible milliseconds of a round."""
        return least_seconds(self.plan, self.rates) * 1e3

    def to_dict(self) -> dict[str, Any]:
        """The block as JSON takes it."""
        return {
            "tokens": self.plan.t,
            "min_ms": min(self.ms),
            "median_ms": median(self.ms),
            "least_ms": self.least_ms,
            "share_of_min": self.least_ms / min(self.ms),
            "share_of_median": self.least_ms / median(self.ms),
            "beyond_limit": beyond_limit([self.least_ms / min(self.ms)]),
            "rates_before": rates_as_dict(self.before),
            "rates_after": rates_as_dict(self.after),
            "load_before": self.load[0],
            "load_after": self.load[1],
            "ms": self.ms,
            "plan": str(self.plan).splitlines()[0],
        }


@click.command(cls=_ManyValues)
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
    ms = []
    gc.collect()
    gc.disable()
    try:
        load = os.getloadavg()[0]
        before = probes.rates(seconds=seconds)
        for i in range(-len(prologs), n_rounds):  # a round of each before those that count
            prolog = prologs[i % len(prologs)]
            start = time.perf_counter_ns()
            prolog(*inputs, cache, out)
            elapsed = time.perf_counter_ns() - start
            if i >= 0:
                ms.append(elapsed / 1e6)
        after = probes.rates(seconds=seconds)
    finally:
        gc.enable()
    return Block(prologs[0].plan(t), before, after, ms, (load, os.getloadavg()[0]))


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
    headings = ("tokens", "min ms", "median ms", "least ms", "share at min", "at median")
    times = Table(*(Column(heading, justify="right") for heading in headings), box=box.SIMPLE)
    names = ("read GB/s", "FMA GFLOP/s", "int8 GOP/s", "bf16 GFLOP/s")[: len(rates_as_dict(blocks[0].before))]
    rates = Table(*(Column(heading, justify="right") for heading in ("tokens", *names, "load")), box=box.SIMPLE)
    all_shares: list[float] = []
    for block in blocks:
        low, middle = min(block.ms), median(block.ms)
        shares = [block.least_ms / time_ms for time_ms in (low, middle)]
        all_shares += shares
        times.add_row(
            str(block.plan.t),
            *(f"{time_ms:.3f}" for time_ms in (low, middle, block.least_ms)),
            *(share_text(share, 1) for share in shares),
        )
        pairs = zip(rates_as_dict(block.before).values(), rates_as_dict(block.after).values(), strict=True)
        measured = (f"{before:.0f}, {after:.0f}" for before, after in pairs)
        rates.add_row(str(block.plan.t), *measured, "{:.1f}, {:.1f}".format(*block.load))
    heading = f"{n_rounds} rounds, {n_threads} threads, {n_sets} weight sets; least: at the mean of the rates below"
    return Group(heading, times, *filter(None, [beyond_limit(all_shares)]), "before the rounds, after them", rates)


if __name__ == "__main__":
    main()
