"""The command `mla-numba tune`: search for faster plans and keep what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import click

from .._version import __version__
from ..base.extras import how_to_install
from ..call.planning import this_machine
from ..call.tuned import (
    FOLDER_VARIABLE,
    Tuned,
    bucket_of,
    forget_search,
    make_store_folder,
    save_rates,
    save_tuned,
    search_path,
    store_folder,
)
from ..tuning.contest import Arena
from ..tuning.rates import Probes, rates_as_dict
from ..tuning.search import search
from ..tuning.trials import SearchJournal
from ..tuning.watch import Watch, Watched, best_rates
from .faults import own_plan_is_exact
from .interrupts import held_back, saying_what_is_kept
from .options import LayerOptions
from .progress import progress_bar
from .tuned.found import Found, outcome_as_dict, show
from .tuned.kept import forget_kept, list_kept

__all__ = ["tune"]

_FOLDER = "expected a folder to keep results in"
_NO_OPTUNA = f"the search needs Optuna: {how_to_install('tune', 'optuna')}"
_PROBE_S = 0.1  # of each rate, before and behind each search


@dataclass(frozen=True, kw_only=True)
class TuneOptions(LayerOptions):
    """The command's options."""

    tokens: tuple[int, ...]
    budget: float
    dry_run: bool
    restart: bool
    list_only: bool
    forget: bool
    as_json: bool

    @property
    def spec(self) -> dict[str, Any]:
        """What is searched; a journal of the same is continued."""
        return {
            "machine": asdict(this_machine()), "version": __version__, "dims": asdict(self.sizes), "quant": self.quant,
            "n_threads": self.threads, "tokens": list(self.tokens), "budget": self.budget, "seed": self.seed,
            "weight_sets": self.weight_sets,
        }  # fmt: skip

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
    """Searches, keeps what was found and shows it; or lists or forgets what is kept."""
    options = TuneOptions(**given)
    if options.list_only or options.forget:
        if options.list_only and options.forget:
            raise click.UsageError("--list: expected without --forget, got both")
        (list_kept if options.list_only else forget_kept)(ctx, options, as_json=options.as_json)
        return
    options.check()
    run = _Run(options)
    with saying_what_is_kept(run.left):
        run.all()
    if options.as_json:
        facts = {"machine": asdict(this_machine()), "threads": options.threads, "rates": run.rates}
        facts |= {"dims": asdict(options.sizes), "quant": options.quant, "budget": options.budget}
        folder = str(store_folder()) if run.is_kept else None
        outcomes = [outcome_as_dict(found) for found in run.found]
        click.echo(json.dumps(facts | {"folder": folder, "outcomes": outcomes}, indent=1))
    else:
        show(run.found, _where(run, options))
    if run.fault:
        raise click.ClickException(run.fault)
    if any(found.outcome.n_wrong or found.outcome.contest is None or found.is_busy for found in run.found):
        ctx.exit(1)


def _where(run: _Run, options: TuneOptions) -> str:
    """Where results are kept."""
    nothing = f"nothing was kept{' (--dry-run)' if options.dry_run else ''}"
    where = f"kept in {store_folder()} ({FOLDER_VARIABLE})" if run.is_kept else nothing
    return f'{where}; MlaProlog(tile_config="auto") and mla-numba run --tuned use what is kept'


class _Run:
    """A run of the command: a search for each T, each kept as soon as it is finished."""

    def __init__(self, options: TuneOptions) -> None:
        self._options = options
        self._journal: SearchJournal | None = None
        self.found: list[Found] = []
        self.is_kept = False
        self.fault = ""
        self.rates: dict[str, float] = {}

    @cached_property
    def _probes(self) -> Probes:
        return Probes(self._options.threads)

    def left(self) -> str:
        """What an interrupted run says."""
        if self._options.dry_run:
            return "nothing is kept (--dry-run)"
        done = [str(found.outcome.t) for found in self.found if not found.is_busy]
        kept = f"what was found for T {', '.join(done)} is kept" if done else "no search was finished"
        return f"{kept}; give the same command again to go on"

    def all(self) -> None:
        """Searches for each T in turn."""
        options = self._options
        with self._open(), own_plan_is_exact(), progress_bar("tune, seconds", options.budget) as advance:
            arena: Arena | None = None
            for t in options.tokens:
                earlier = self._journal.trials(t).outcome if self._journal else None
                if earlier is not None:
                    self.found.append(Found(earlier, None))
                    self.is_kept = True
                    advance(f"T {t}: found before", options.budget / len(options.tokens))
                    continue
                with advance.busy("making weights and checking the baseline"):
                    arena = arena or Arena(
                        options.sizes, options.quant, options.tokens, n_threads=options.threads, seed=options.seed,
                        n_weight_sets=options.weight_sets,
                    )  # fmt: skip
                self.found.append(self._one(arena, t, advance))
            busy = [found.is_busy for found in self.found]
            if self._journal and (not any(busy) or all(busy)):
                self._journal.remove()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """The journal of an earlier run of the same command, or a new one; none with --dry-run."""
        try:
            if not self._options.dry_run:
                path = search_path(self._options.spec)
                if self._options.restart:
                    forget_search(path)
                self._journal = SearchJournal(path, self._options.spec)
            yield
        except ImportError:
            raise click.ClickException(_NO_OPTUNA) from None
        except OSError as error:
            raise click.ClickException(f"{_FOLDER}, got {error}") from None
        except ValueError as error:
            raise click.ClickException(f"{error}; give --restart to start again") from None

    def _one(self, arena: Arena, t: int, advance: Callable[[str, float], None]) -> Found:
        """Searches for one T, between two looks at the machine; keeps what it finds unless others disturbed it."""
        options = self._options
        store = self._journal.trials(t) if self._journal else None
        watch = Watch(self._probes, _PROBE_S)
        if watch.so_far.is_busy:
            click.echo(watch.so_far, err=True)
        try:
            budget = options.budget / len(options.tokens)
            outcome = search(arena, t, options.threads, budget, options.seed, advance, store)
        except KeyboardInterrupt:
            if self._journal and watch.so_far.is_busy:
                with held_back():
                    self._journal.drop(t)
            raise
        seen = watch.end()
        found = Found(outcome, seen.conditions)
        self.rates = rates_as_dict(best_rates(seen.before, seen.after))
        if self._journal and store is not None:
            with held_back():
                if found.is_busy or outcome.contest is None:
                    self._journal.drop(t)
                else:
                    store.finish(outcome)
                    self._keep(found, seen)
        return found

    def _keep(self, found: Found, seen: Watched) -> None:
        """Keeps the rates and what was found; where that fails it is shown all the same."""
        options, outcome, machine = self._options, found.outcome, this_machine()
        kept = Tuned(
            outcome.tiling, outcome.t, outcome.ratio, outcome.n_trials, outcome.seconds, time.strftime("%Y-%m-%d")
        )
        try:
            save_rates(machine, __version__, options.threads, best_rates(seen.before, seen.after))
            save_tuned(machine, __version__, options.sizes, options.quant, options.threads, kept)
            self.is_kept = True
        except OSError as error:
            self.fault = f"{_FOLDER}, got {error}"
