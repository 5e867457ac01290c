"""The command `mla-numba tune`: search for faster plans and keep what was found."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table

from tiling import Rates

from .._version import __version__
from ..call.planning import this_machine
from ..call.tuned import (
    FOLDER_VARIABLE,
    Tuned,
    bucket_of,
    make_store_folder,
    save_rates,
    save_tuned,
    store_folder,
)
from ..tuning.contest import Arena
from ..tuning.rates import Probes, rates_as_dict
from ..tuning.search import Outcome, search
from ..tuning.study import reasons_of
from .faults import own_plan_is_exact
from .options import (
    LayerOptions,
)
from .progress import progress_bar

__all__ = ["tune"]

_FOLDER = "expected a folder to keep results in"
_NO_OPTUNA = "the search needs Optuna: pip install 'mla_numba[tune]'"


@dataclass(frozen=True, kw_only=True)
class TuneOptions(LayerOptions):
    """The command's options."""

    tokens: tuple[int, ...]
    budget: float
    dry_run: bool
    as_json: bool

    def check(self) -> None:
        """Refuses what cannot be searched for, or kept, before anything is measured."""
        self.check_dims()
        buckets = [bucket_of(t) for t in self.tokens]
        if len(set(buckets)) < len(buckets):
            got = list(self.tokens)
            raise click.UsageError(f"--tokens: expected numbers with a power of two between them, got {got}")
        if find_spec("optuna") is None:
            raise click.ClickException(_NO_OPTUNA)
        if not self.dry_run:
            try:
                make_store_folder()
            except OSError as error:
                raise click.ClickException(f"{_FOLDER}, got {error}") from None


def tune(ctx: click.Context, **given: Any) -> None:
    """Searches, keeps what was found and shows it."""
    options = TuneOptions(**given)
    options.check()
    rates = Probes(options.threads).rates()
    outcomes = _search(options)
    fault = ""
    is_kept = not options.dry_run and any(found.contest is not None for found in outcomes)
    if is_kept:
        try:
            _keep(options, rates, outcomes)
        except OSError as error:  # what was found is shown all the same
            fault, is_kept = f"{_FOLDER}, got {error}", False
    if options.as_json:
        facts = {"machine": asdict(this_machine()), "threads": options.threads, "rates": rates_as_dict(rates)}
        folder = str(store_folder()) if is_kept else None
        click.echo(
            json.dumps(
                facts | {"folder": folder, "outcomes": [_outcome_as_dict(found) for found in outcomes]}, indent=1
            )
        )
    else:
        _show(outcomes, is_kept, options.dry_run)
    if fault:
        raise click.ClickException(fault)
    if any(found.n_wrong or found.contest is None for found in outcomes):
        ctx.exit(1)


def _search(options: TuneOptions) -> list[Outcome]:
    """What a search finds for each T, each with its part of the budget."""
    outcomes: list[Outcome] = []
    try:
        with own_plan_is_exact(), progress_bar("tune, seconds", options.budget) as advance:
            advance("making weights and checking the baseline", 0)
            arena = Arena(
                options.sizes, options.quant, options.tokens, n_threads=options.threads, seed=options.seed,
                n_weight_sets=options.weight_sets,
            )  # fmt: skip
            for t in options.tokens:
                budget = options.budget / len(options.tokens)
                outcomes.append(search(arena, t, options.threads, budget, options.seed, advance))
    except ImportError:
        raise click.ClickException(_NO_OPTUNA) from None
    return outcomes


def _keep(options: TuneOptions, rates: Rates, outcomes: list[Outcome]) -> None:
    """Keeps the rates, and what was found where anything was timed."""
    machine, date = this_machine(), time.strftime("%Y-%m-%d")
    save_rates(machine, __version__, options.threads, rates)
    for found in outcomes:
        if found.contest is not None:
            kept = Tuned(found.tiling, found.t, found.ratio, found.n_trials, found.seconds, date)
            save_tuned(machine, __version__, options.sizes, options.quant, options.threads, kept)


def _show(outcomes: list[Outcome], is_kept: bool, dry_run: bool) -> None:
    """The table, where results are kept, and what stood against candidates."""
    Console().print(_outcome_table(outcomes))
    nothing = f"nothing was kept{' (--dry-run)' if dry_run else ''}"
    where = f"kept in {store_folder()} ({FOLDER_VARIABLE})" if is_kept else nothing
    click.echo(f'{where}; MlaProlog(tile_config="auto") and mla-numba run --tuned use what is kept')
    for found in outcomes:
        for line in reasons_of(found.against, what="wrong or refused"):
            click.echo(f"T {found.t}: {line}")


def _outcome_table(outcomes: list[Outcome]) -> Table:
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
    if found.contest is None:
        return "nothing was timed: every candidate was wrong or refused"
    return (
        f"nothing faster than the planner's own plan; the best of the search took {found.contest.ratio:.3f} of its time"
    )


def _outcome_as_dict(found: Outcome) -> dict[str, Any]:
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
        "against": list(found.against),
        "seconds": found.seconds,
    }
