"""A measurement between two probes of the machine: its rates, and what else it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple
from statistics import mean
from typing import Any, NamedTuple

from tiling import Rates

from .conditions import Conditions, Load, Meter, n_cpus, watch_idle
from .rates import Probed, Probes, slower_together

__all__ = ["Watch", "Watched", "best_rates", "mean_rates"]

_BESIDE_S = 0.05  # of each rate of one thread, which is only compared with all threads


class Watched(NamedTuple):
    """What was seen: conditions, and the rates before and after."""

    conditions: Conditions
    before: Rates
    after: Rates


class Watch:
    """Begins before a measurement: looks at an idle moment and measures rates; `end` does so again behind it.

    `seconds`: of measuring each rate. While it watches, `lately` is what others take.
    """

    def __init__(self, probes: Probes, seconds: float = 0.3) -> None:
        self._probes, self._seconds = probes, seconds
        self._before = watch_idle()
        self._first, self._slower = self._measure()
        self._meter = Meter()

    def _measure(self) -> tuple[Probed, list[str]]:
        n = self._probes.n_threads
        probed = self._probes.measure(n, self._seconds)
        if n == 1:
            return probed, []
        alone = self._probes.rates(1, min(self._seconds, _BESIDE_S))
        return probed, slower_together({1: alone, n: probed.rates})

    @property
    def rates(self) -> Rates:
        """The rates before."""
        return self._first.rates

    @property
    def so_far(self) -> Conditions:
        """What is known already."""
        return self._conditions(self._meter.since_start(), None, self._first.spread, self._slower)

    def lately(self) -> Load:
        """How many cores others took in the last half second or longer."""
        return self._meter.lately()

    def end(self) -> Watched:
        """Measures once more."""
        during = self._meter.since_start()
        last, slower = self._measure()
        after = watch_idle()
        seen = self._conditions(during, after, max(self._first.spread, last.spread), [*self._slower, *slower])
        return Watched(seen, self._first.rates, last.rates)

    def _conditions(self, during: Load, after: Load | None, spread: float, slower: list[str]) -> Conditions:
        return Conditions(
            self._probes.n_threads,
            n_cpus(),
            self._before.cores,
            during.cores,
            after.cores if after else None,
            spread,
            tuple(dict.fromkeys(slower)),
        )


def mean_rates(before: Rates, after: Rates) -> Rates:
    """The mean of two measurements, rate by rate."""
    return _combined(before, after, mean)


def best_rates(before: Rates, after: Rates) -> Rates:
    """What the machine was seen to reach, before or after: other tenants take their part at times."""
    return _combined(before, after, max)


def _combined(before: Rates, after: Rates, combine: Callable[[tuple[float, float]], float]) -> Rates:
    pairs: Iterable[tuple[Any, Any]] = zip(astuple(before), astuple(after), strict=True)
    return Rates(*(None if None in pair else combine(pair) for pair in pairs))  # type: ignore[arg-type]
