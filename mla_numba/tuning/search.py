"""A search for a faster plan than the planner's own, by Optuna (the extra `tune`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from tiling import CpuTiling

from .contest import Arena, Pairs
from .interval import Interval
from .search_space import Space
from .study import Effort, time_pairs
from .verdict import is_faster

__all__ = ["Outcome", "TrialStore", "search"]

_SEARCHED = 0.7  # of the budget; the rest is for the contests of the best
_FINALISTS = 3

_TRIAL = Effort(pairs=5, seconds=0.05, most=30, hopeless=1.1)
_CONTEST = Effort(pairs=15, seconds=0.5, most=200, hopeless=1.1)
_CONTROL = replace(_CONTEST, hopeless=math.inf)


@dataclass(frozen=True)
class Outcome:
    """What a search found: the best tiling with the pairs of a contest after the choice, or none that is faster.

    `control`: the planner's own plan against itself, right behind that contest. `n_wrong` candidates differed from the
    reference in a bit; none of them is ever chosen. `against`: why candidates were refused or wrong, one reason each.
    """

    t: int
    tiling: CpuTiling
    contest: Pairs | None
    n_trials: int
    n_wrong: int
    seconds: float
    against: tuple[str, ...] = ()
    control: Pairs | None = None

    @property
    def is_faster(self) -> bool:
        """Whether the tiling is faster than the planner's own plan by more than noise."""
        return bool(self.tiling.given())

    @property
    def ratio(self) -> float:
        """Time by that of the planner's own plan, 1 where nothing is faster."""
        return self.contest.ratio if self.is_faster and self.contest is not None else 1.0

    @property
    def interval(self) -> Interval | None:
        """The ratio of the last contest with its interval, None where nothing was timed."""
        return None if self.contest is None else self.contest.interval

    @property
    def noise(self) -> Interval | None:
        """The same of the planner's own plan against itself."""
        return None if self.control is None else self.control.interval

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        pairs = {
            name: None if timed is None else [list(timed.ours_s), list(timed.baseline_s)]
            for name, timed in (("contest", self.contest), ("control", self.control))
        }
        counts = {"t": self.t, "n_trials": self.n_trials, "n_wrong": self.n_wrong, "seconds": self.seconds}
        return counts | {"tiling": self.tiling.given(), "against": list(self.against)} | pairs

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Self:
        """From what `as_dict` made."""
        contest, control = (
            None if kept[name] is None else Pairs(*map(tuple, kept[name])) for name in ("contest", "control")
        )
        tiling, against = CpuTiling(**kept["tiling"]), tuple(kept["against"])
        counts: dict[str, Any] = {name: kept[name] for name in ("t", "n_trials", "n_wrong", "seconds")}
        return cls(**counts, tiling=tiling, against=against, contest=contest, control=control)


class TrialStore(Protocol):
    """Where the trials of a search are kept as they come; see `trials.Trials`."""

    def kept(self) -> list[Any]:
        """Optuna's trials that were kept before, with the reason of a failed one as user attribute "against"."""

    def keep(self, trial: Any) -> None:
        """Keeps a finished trial."""


class NoStore:
    """Keeps nothing."""

    def kept(self) -> list[Any]:
        """None."""
        return []

    def keep(self, trial: Any) -> None:
        """Does nothing."""


def search(
    arena: Arena,
    t: int,
    n_threads: int,
    budget_s: float,
    seed: int,
    advance: Callable[[str, float], None] = lambda note, seconds: None,
    store: TrialStore | None = None,
) -> Outcome:
    """Searches for `budget_s` seconds, `t` tokens a call; every candidate's bits are compared with the reference's.

    The candidates' times are paired with the planner's own plan. The best few meet it in longer contests, and the best
    of these in one more, whose result counts: the pairs that chose it do not. The planner's own plan then meets itself,
    which shows what is noise. With a `store` each trial is kept, and trials of an earlier search are taken over with
    the time that they took. Raises `ImportError` without Optuna.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begin = told = time.perf_counter()
    store = NoStore() if store is None else store
    own = arena.baseline(t).plan
    space, tried = Space(own, n_threads), _Tried(arena, t)
    earlier = store.kept()
    for trial in earlier:
        tried.remember(space.at(trial.params), trial.value, trial.user_attrs)
    spent = sum(trial.duration.total_seconds() for trial in earlier)
    # Random points are mostly bad and tell little, so the search begins at the planner's choice and takes only ten.
    sampler = optuna.samplers.TPESampler(seed=seed + len(earlier), n_startup_trials=10)
    optimizer = optuna.create_study(sampler=sampler)
    optimizer.add_trials(earlier)
    if not earlier:
        optimizer.enqueue_trial(space.nearest(own))
    advance(f"T {t}: {len(earlier)} trials were kept", min(spent, budget_s))
    while tried.n < 2 or spent + time.perf_counter() - begin < _SEARCHED * budget_s:
        trial = optimizer.ask()
        tiling = space.tiling(lambda name, n, trial=trial: trial.suggest_int(name, 0, n - 1))  # type: ignore[misc]
        ratio, against = tried.ratio_of(tiling)
        for name, value in against.items():
            trial.set_user_attr(name, value)
        if ratio is None:
            finished = optimizer.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            finished = optimizer.tell(trial, ratio)
        store.keep(finished)
        now = time.perf_counter()
        advance(f"T {t}: trial {tried.n}, best {tried.best_ratio:.3f} of the own plan's time", now - told)
        told = now
    best, contest, control = tried.winner()
    now = time.perf_counter()
    advance(f"T {t}: done", now - told)
    return Outcome(t, best, contest, tried.n, tried.n_wrong, spent + now - begin, tuple(tried.against), control)


class _Tried:
    """The candidates of a search so far: the ratio of each plan that is right, and why the others were rejected."""

    def __init__(self, arena: Arena, t: int) -> None:
        self._arena, self._t = arena, t
        self._by_plan: dict[Any, tuple[float | None, dict[str, Any]]] = {}
        self._right: dict[CpuTiling, float] = {}
        self.n = self.n_wrong = 0
        self.against: list[str] = []

    @property
    def best_ratio(self) -> float:
        """The least so far, 1 if nothing was right."""
        return min(self._right.values(), default=1.0)

    def remember(self, tiling: CpuTiling, ratio: float | None, against: Mapping[str, Any]) -> None:
        """Takes over a trial of an earlier search."""
        self.n += 1
        self._note(against)
        if ratio is not None:
            self._right.setdefault(tiling, ratio)
        contender = self._arena.contender(self._t, tiling)
        try:
            self._by_plan[contender.plan.tiles, contender.plan.tile_plans] = ratio, dict(against)
        except ValueError:
            return

    def ratio_of(self, tiling: CpuTiling) -> tuple[float | None, dict[str, Any]]:
        """The time by that of the planner's own plan; None, with the reason, if it is refused or wrong in a bit."""
        self.n += 1
        contender = self._arena.contender(self._t, tiling)
        try:
            plan = contender.plan.tiles, contender.plan.tile_plans
        except ValueError as error:
            against = {"against": str(error), "wrong": False}
            self._note(against)
            return None, against
        if plan not in self._by_plan:
            wrong = self._arena.mismatches(contender)
            if wrong:
                against = {"against": "; ".join(map(str, wrong)), "wrong": True}
                self._note(against)
                self._by_plan[plan] = None, against
            else:
                timed, _ = time_pairs(self._arena, contender, _TRIAL)
                self._right[tiling] = timed.ratio
                self._by_plan[plan] = timed.ratio, {}
            return self._by_plan[plan]
        return self._by_plan[plan][0], {}

    def _note(self, against: Mapping[str, Any]) -> None:
        if "against" in against:
            self.against.append(against["against"])
            self.n_wrong += bool(against.get("wrong"))

    def winner(self) -> tuple[CpuTiling, Pairs | None, Pairs | None]:
        """The best of longer contests, the pairs of one more, and the control.

        It has no fields where it is not faster by more than noise, and there are no pairs where nothing was right.
        """
        finalists = sorted(self._right, key=lambda tiling: self._right[tiling])[:_FINALISTS]
        ratios = {tiling: self._contest(tiling).ratio for tiling in finalists}
        best = min(ratios, key=lambda tiling: ratios[tiling], default=CpuTiling())
        if not best.given():
            return best, None, None
        contest, control = self._contest(best), self._contest(None, _CONTROL)
        faster = is_faster(contest.interval, contest.wins, control.interval)
        return best if faster else CpuTiling(), contest, control

    def _contest(self, tiling: CpuTiling | None, effort: Effort = _CONTEST) -> Pairs:
        timed, _ = time_pairs(self._arena, self._arena.contender(self._t, tiling), effort)
        return timed
