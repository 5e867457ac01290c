"""The command `mla-numba tune`: search for faster plans and keep what was found."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table

from tiling import store

from ._version import __version__
from .cli_options import json_option, layer_options, token_list, weight_sets_option
from .cli_sweep import SMALL_DIMS, progress_bar
from .contest import Arena, ExactnessError
from .dims import MlaDims
from .engine import this_machine
from .measure import Probes, rates_as_dict
from .tuner import Outcome, search

__all__ = ["tune"]


@click.command()
@click.option(
    "--tokens", type=token_list, default="1,8,32,128", show_default=True, help="Tokens of a call, with commas."
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=120,
    show_default=True,
    help="Seconds of search in all, divided among the numbers of tokens.",
)
@layer_options
@weight_sets_option
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights, inputs and the search."
)
@click.option("--dry-run", is_flag=True, help="Search only; keep nothing.")
@json_option
def tune(
    tokens: tuple[int, ...],
    budget: float,
    quant: str,
    dims: MlaDims | None,
    small: bool,
    threads: int,
    weight_sets: int,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Search for plans faster than the planner's own, and keep them for MlaProlog(tile_config="auto").

    A plan found for T tokens is used for all numbers of tokens up to the next power of two, on this machine, with these
    dimensions, mode and threads. If nothing is faster, that is kept too, and the command says so.
    """
    if small and dims:
        raise click.UsageError("--small: expected without --dims, got both")
    buckets = [store.bucket_of(t) for t in tokens]
    if len(set(buckets)) < len(buckets):
        raise click.UsageError(f"--tokens: expected numbers with a power of two between them, got {list(tokens)}")
    sizes = dims or (SMALL_DIMS if small else MlaDims.deepseek_v32())
    machine = this_machine()
    rates = Probes(threads).rates()
    outcomes: list[Outcome] = []
    try:
        with progress_bar("tune, seconds", budget) as advance:
            advance("making weights and checking the baseline", 0)
            arena = Arena(sizes, quant, tokens, n_threads=threads, seed=seed, n_weight_sets=weight_sets)
            for t in tokens:
                outcomes.append(search(arena, t, threads, budget / len(tokens), seed, advance))
    except ImportError:
        raise click.ClickException("the search needs Optuna: pip install 'mla_numba[tune]'") from None
    except ExactnessError as error:
        raise click.ClickException(f"the planner's own plan differs from the reference: {error}") from None
    if not dry_run:
        date = time.strftime("%Y-%m-%d")
        try:
            store.save_rates(machine, __version__, threads, rates)
            for found in outcomes:
                kept = store.Tuned(found.tiling, found.t, found.ratio, found.n_trials, found.seconds, date)
                store.save_tuned(machine, __version__, sizes, quant, threads, kept)
        except OSError as error:
            raise click.ClickException(
                f"{store.store_folder()}: expected a folder to keep results in, got {error}"
            ) from None
    if as_json:
        facts = {"machine": asdict(machine), "threads": threads, "rates": rates_as_dict(rates)}
        folder = None if dry_run else str(store.store_folder())
        click.echo(
            json.dumps(facts | {"folder": folder, "outcomes": [_as_dict(found) for found in outcomes]}, indent=1)
        )
        return
    console = Console()
    console.print(_table(outcomes))
    where = "nothing was kept (--dry-run)" if dry_run else f"kept in {store.store_folder()} ({store.FOLDER_VARIABLE})"
    click.echo(f'{where}; MlaProlog(tile_config="auto") and mla-numba run --tuned use what is kept')


def _table(outcomes: list[Outcome]) -> Table:
    names = ("T", "trials", "own ms", "tuned ms", "ratio", "wins")
    columns = [Column(name, justify="right", no_wrap=True) for name in names]
    caption = "medians of a contest after the search; ratio: tuned by own, pair by pair"
    table = Table(*columns, Column("tiling", overflow="fold"), box=box.SIMPLE, caption=caption)
    for found in outcomes:
        faster = found.contest if found.tiling.given() else None
        own = found.contest.baseline_median_s * 1e3 if found.contest else None
        table.add_row(
            str(found.t),
            str(found.n_trials),
            "" if own is None else f"{own:.3f}",
            "" if faster is None else f"{faster.median_s * 1e3:.3f}",
            "" if faster is None else f"{faster.ratio:.3f}",
            "" if faster is None else f"{faster.wins:.0%}",
            str(found.tiling) if faster else _none_left(found),
        )
    return table


def _none_left(found: Outcome) -> str:
    best = "" if found.contest is None else f"; the best of the search took {found.contest.ratio:.3f} of its time"
    return f"nothing faster than the planner's own plan{best}"


def _as_dict(found: Outcome) -> dict[str, Any]:
    contest = found.contest
    return {
        "tokens": found.t,
        "tiling": found.tiling.given(),
        "faster": bool(found.tiling.given()),
        "ratio": found.ratio,
        "contest_ratio": None if contest is None else contest.ratio,
        "wins": None if contest is None else contest.wins,
        "own_ms": None if contest is None else contest.baseline_median_s * 1e3,
        "best_ms": None if contest is None else contest.median_s * 1e3,
        "trials": found.n_trials,
        "wrong": found.n_wrong,
        "seconds": found.seconds,
    }
