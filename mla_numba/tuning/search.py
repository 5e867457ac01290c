"""A search for a faster plan than the planner's own, by Optuna (the extra `tune`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiling import CpuTiling, PrologPlan, ceil_div

from .contest import Arena, Pairs
from .study import Effort, time_pairs

__all__ = ["Outcome", "Space", "search"]

# A winner has to be this much faster in a contest of its own, and in most pairs: less is noise.
_LEAST_GAIN = 0.01
_LEAST_WINS = 0.7
_SEARCHED = 0.7  # of the budget; the rest is for the contests of the best
_FINALISTS = 3

_TRIAL = Effort(pairs=5, seconds=0.05, most=30, hopeless=1.1)
_CONTEST = Effort(pairs=15, seconds=0.5, most=200, hopeless=1.1)


@dataclass(frozen=True)
class Outcome:
    """What a search found: the best tiling with the pairs of a contest after the choice, or none that is faster.

    `n_wrong` candidates differed from the reference in a bit; none of them is ever chosen. `against`: why candidates
    were refused or wrong, one reason each.
    """

    t: int
    tiling: CpuTiling
    contest: Pairs | None
    n_trials: int
    n_wrong: int
    seconds: float
    against: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Time by that of the planner's own plan, 1 where nothing is faster."""
        return self.contest.ratio if self.tiling.given() and self.contest is not None else 1.0


class Space:
    """What the search may choose for `t` tokens on up to `n_threads` threads, as indices of lists in order.

    Blocks of rows are counts of blocks, so that they mean the same for every tile of tokens.
    """

    def __init__(self, own: PrologPlan, n_threads: int) -> None:
        self._t = own.t
        tile = own.tile_plans[0]
        part = tile.down.qa.k // tile.down.qa.k_parts
        kp_up = tile.heads.qb.kp
        n_up, n_uk = tile.heads.qb.n_panels, tile.heads.wuk.n_panels
        mr = tile.heads.wuk.micro.mr
        sizes = dict.fromkeys([*(size for size in (32, 64, 128, 256, 512) if size < own.t), own.t])
        self.axes: dict[str, list[int]] = {
            "tile": list(sizes)[-4:],
            "n_threads": list(range(1, n_threads + 1)),
            "down_blocks": [1, 2, 3, 4, 6, 8, 12],
            "down_kc": sorted({ceil_div(part, n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 20, 28)}),
            "down_walk": [1, 2, 3, 4, 6, 8],
            "down_grain": [1, 2, 4],
            "rows_q": [1, 2, 4, 8, 16, 32],
            "rows_k": [1, 2, 4, 8, 16, 32],
            "qb_blocks": [1, 2, 3, 4, 6, 8],
            "qb_kc": sorted({ceil_div(kp_up, n) for n in (1, 2, 3, 4, 6, 8)}),
            "qb_walk": sorted({min(walk, n_up) for walk in (1, 2, 3, 4, 6)}),
            "wuk_mc": [mr, 2 * mr, 4 * mr, 8 * mr],
            "wuk_walk": sorted({min(walk, n_uk) for walk in (1, 2, 4, 8, 16)}),
            "heads_grain": [1, 2, 4],
        }
        self.axes = {name: values for name, values in self.axes.items() if len(values) > 1}

    def tiling(self, index: Callable[[str, int], int]) -> CpuTiling:
        """The tiling of a point: `index(name, n)` chooses one of the n values of an axis."""
        at = {name: values[index(name, len(values))] for name, values in self.axes.items()}
        size = at.pop("tile", self._t)
        blocks = {name: ceil_div(size, at.pop(f"{name[:-3]}_blocks")) for name in ("down_mc", "qb_mc")}
        return CpuTiling(unroll_list=_tiles(self._t, size), **blocks, **at)

    def nearest(self, own: PrologPlan) -> dict[str, int]:
        """The point that is nearest to the planner's own plan."""
        tile = own.tile_plans[0]
        qa, qb, _, wuk = tile.gemms
        wanted = {
            "tile": tile.t, "n_threads": tile.n_workers, "down_blocks": qa.n_row_blocks, "down_kc": qa.kc,
            "down_walk": qa.walk, "down_grain": tile.down.grain, "rows_q": tile.rows.rows_q,
            "rows_k": tile.rows.rows_k, "qb_blocks": qb.n_row_blocks, "qb_kc": qb.kc, "qb_walk": qb.walk,
            "wuk_mc": wuk.mc, "wuk_walk": wuk.walk, "heads_grain": tile.heads.grain,
        }  # fmt: skip

        def closest(values: list[int], value: int) -> int:
            return min(range(len(values)), key=lambda i: abs(values[i] - value))

        return {name: closest(values, wanted[name]) for name, values in self.axes.items()}


def search(
    arena: Arena,
    t: int,
    n_threads: int,
    budget_s: float,
    seed: int,
    advance: Callable[[str, float], None] = lambda note, seconds: None,
) -> Outcome:
    """Searches for `budget_s` seconds, `t` tokens a call; every candidate's bits are compared with the reference's.

    The candidates' times are paired with the planner's own plan. The best few meet it in longer contests, and the best
    of these in one more, whose result counts: the pairs that chose it do not. Raises `ImportError` without Optuna.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begin = told = time.perf_counter()
    own = arena.baseline(t).plan
    space, tried = Space(own, n_threads), _Tried(arena, t)
    # Bad starts tell little: the search begins at the planner's choice and takes ten random points.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=10)
    optimizer = optuna.create_study(sampler=sampler)
    optimizer.enqueue_trial(space.nearest(own))
    while tried.n < 2 or time.perf_counter() - begin < _SEARCHED * budget_s:
        trial = optimizer.ask()
        tiling = space.tiling(lambda name, n, trial=trial: trial.suggest_int(name, 0, n - 1))  # type: ignore[misc]
        ratio = tried.ratio_of(tiling)
        if ratio is None:
            optimizer.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            optimizer.tell(trial, ratio)
        now = time.perf_counter()
        advance(f"T {t}: trial {tried.n}, best {tried.best_ratio:.3f} of the own plan's time", now - told)
        told = now
    best, contest = tried.winner()
    now = time.perf_counter()
    advance(f"T {t}: done", now - told)
    return Outcome(t, best, contest, tried.n, tried.n_wrong, now - begin, tuple(tried.against))


class _Tried:
    """The candidates of a search so far, the ratio of each plan that is right, and what stands against the others."""

    def __init__(self, arena: Arena, t: int) -> None:
        self._arena, self._t = arena, t
        self._by_plan: dict[Any, float | None] = {}
        self._right: dict[CpuTiling, float] = {}
        self.n = self.n_wrong = 0
        self.against: list[str] = []

    @property
    def best_ratio(self) -> float:
        """The least so far, 1 if nothing was right."""
        return min(self._right.values(), default=1.0)

    def ratio_of(self, tiling: CpuTiling) -> float | None:
        """The time by that of the planner's own plan; None for a tiling that is refused, or wrong in a bit."""
        self.n += 1
        contender = self._arena.contender(self._t, tiling)
        try:
            plan = contender.plan.tiles, contender.plan.tile_plans
        except ValueError as error:
            self.against.append(str(error))
            return None
        if plan not in self._by_plan:
            wrong = self._arena.mismatches(contender)
            if wrong:
                self.n_wrong += 1
                self.against.append("; ".join(map(str, wrong)))
                self._by_plan[plan] = None
            else:
                timed, _ = time_pairs(self._arena, contender, _TRIAL)
                self._by_plan[plan] = self._right[tiling] = timed.ratio
        return self._by_plan[plan]

    def winner(self) -> tuple[CpuTiling, Pairs | None]:
        """The best of longer contests and the pairs of one more; without fields where it is not clearly faster."""
        finalists = sorted(self._right, key=lambda tiling: self._right[tiling])[:_FINALISTS]
        ratios = {tiling: self._contest(tiling).ratio for tiling in finalists}
        best = min(ratios, key=lambda tiling: ratios[tiling], default=CpuTiling())
        if not best.given():
            return best, None
        contest = self._contest(best)
        is_faster = contest.ratio <= 1 - _LEAST_GAIN and contest.wins >= _LEAST_WINS
        return best if is_faster else CpuTiling(), contest

    def _contest(self, tiling: CpuTiling) -> Pairs:
        timed, _ = time_pairs(self._arena, self._arena.contender(self._t, tiling), _CONTEST)
        return timed


def _tiles(t: int, size: int) -> tuple[int, ...]:
    """Nearly even tiles of at most `size` tokens."""
    n_tiles = ceil_div(t, size)
    even = ceil_div(t, n_tiles)
    return tuple(dict.fromkeys((even, t - (n_tiles - 1) * even)))
