"""A benchmark of any calls: in turns, with intervals, between two probes of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from tiling import Rates, Work, least_seconds
from tiling.html import table, to_html
from tiling.roofline import HasWork

from ..base.checks import check_int, check_number
from ..base.short_repr import short_repr
from .conditions import Conditions
from .copies import are_cold
from .interval import Interval, median_interval
from .limit import Share, share_of
from .rates import Probes, rates_as_dict
from .turns import Call, quiet, rounds
from .watch import Watch, mean_rates

__all__ = ["Bench", "do_bench"]

_LEAST_ROUNDS = 15
_MOST_ROUNDS = 1000
_MAX_ROUNDS = 10**6
_MAX_SECONDS = 86400.0


@dataclass(frozen=True, eq=False)
class Bench:
    """Milliseconds of calls that took turns, and the machine's state around them; `do_bench` has an example.

    | field             | what it is                                                                              |
    |-------------------|-----------------------------------------------------------------------------------------|
    | `ms`              | by implementation: milliseconds, one a round; those of one round are moments apart      |
    | `conditions`      | what others took of the machine; where `conditions.is_busy`, none of the figures counts |
    | `before`, `after` | rates of the machine, from which the limit follows                                      |
    | `work`            | what a call moves and computes, None if it was not said                                 |
    | `n_copies`        | by implementation: the copies of weights that took turns                                |
    """

    ms: Mapping[str, tuple[float, ...]]
    conditions: Conditions
    before: Rates
    after: Rates
    work: Work | None
    n_copies: Mapping[str, int]

    @property
    def rates(self) -> Rates:
        """The mean of the rates before and after."""
        return mean_rates(self.before, self.after)

    @property
    def least_ms(self) -> float | None:
        """The least possible milliseconds of a call at these rates, None where the work was not said."""
        return None if self.work is None else least_seconds(self.work, self.rates) * 1e3

    def median(self, name: str) -> Interval:
        """The median milliseconds of an implementation, with its interval.

        Args:
            name: The implementation.

        Returns:
            The median of its rounds.
        """
        return median_interval(self.ms[name])

    def ratio(self, name: str, by: str) -> Interval:
        """How many times as long as another an implementation takes, round by round.

        Args:
            name: The implementation.
            by: The other one.

        Returns:
            The median of the ratios, with its interval.
        """
        return median_interval([a / b for a, b in zip(self.ms[name], self.ms[by], strict=True)])

    def share(self, name: str) -> Share | None:
        """What part of the machine's limit an implementation reaches at its median.

        Args:
            name: The implementation.

        Returns:
            The share, or why there is none; None where the work was not said.
        """
        least = self.least_ms
        if least is None or self.work is None:
            return None
        return share_of(least, median(self.ms[name]), are_cold(self.n_copies[name], self.work.total_bytes))

    def __repr__(self) -> str:
        n_rounds = max(map(len, self.ms.values()))
        busy = "busy machine" if self.conditions.is_busy else ""
        return short_repr(self, busy, *(f"{name} {self.median(name)} ms" for name in self.ms), f"{n_rounds} rounds")

    def _repr_html_(self) -> str:
        """A table for notebooks: a row for each implementation."""
        first = next(iter(self.ms))
        rows = []
        for name in self.ms:
            share = self.share(name)
            limit = "" if share is None else share.reason if share.value is None else f"{share.value:.0%}"
            by_first = "" if name == first else str(self.ratio(name, first))
            rows.append((name, str(self.median(name)), by_first, limit))
        caption = str(self.conditions) if self.conditions.is_busy else ""
        return to_html(table(caption, ("", "ms, 95 %", f"times {first}", "of the limit"), rows))

    def __str__(self) -> str:
        """A busy machine first; then a line for each implementation, its time by that of the first one behind it."""
        lines = [str(self.conditions)] if self.conditions.is_busy else []
        first = next(iter(self.ms))
        for name in self.ms:
            line = f"{name}: {self.median(name)} ms"
            if name != first:
                line += f", {self.ratio(name, first)} times {first}"
            share = self.share(name)
            if share is not None:
                line += f", no share of the limit: {share.reason}" if share.value is None else ""
                line += "" if share.value is None else f", {share.value:.0%} of the limit"
            lines.append(line)
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it.

        Returns:
            Conditions, rates, and the figures of each implementation; ratios are by the first of them.
        """
        first = next(iter(self.ms))
        shares = {name: self.share(name) for name in self.ms}
        return {
            "conditions": self.conditions.as_dict(),
            "rates_before": rates_as_dict(self.before),
            "rates_after": rates_as_dict(self.after),
            "least_ms": self.least_ms,
            "implementations": [
                {
                    "name": name,
                    "min_ms": min(ms),
                    "median_ms": self.median(name)._asdict(),
                    "ratio": self.ratio(name, first)._asdict(),
                    "share": None if share is None else share.value,
                    "share_reason": "" if share is None else share.reason,
                    "ms": list(ms),
                }
                for (name, ms), share in zip(self.ms.items(), shares.values(), strict=True)
            ],
        }


def do_bench(
    fn: Call | Sequence[Call] | Mapping[str, Call | Sequence[Call]],
    *,
    n_rounds: int | None = None,
    seconds: float = 1.0,
    work: HasWork | None = None,
    n_threads: int | None = None,
    probes: Probes | None = None,
    probe_seconds: float = 0.1,
) -> Bench:
    """Times calls without arguments, in turns, and looks at the machine before and behind.

    Each call is made once before, uncounted. Then each implementation is called once a round; the order moves on by one
    each round, and whoever's turn it is takes its next call.

    Args:
        fn: A call; several calls of one implementation, such as one for each copy of its weights, so that weights come
            from memory (`copies_to_be_cold` says how many copies that takes); or such calls by name.
        n_rounds: How often each implementation is called, at most a million times. None goes on until `seconds` have
            been spent in calls, yet 15 times at least and 1000 times at most.
        seconds: At most a day.
        work: What a call moves and computes, such as `prolog.plan(t)`; with it there is a share of the limit.
        n_threads: Threads that the calls use; None is all of Numba's.
        probes: Made once for that many threads, to be used again and again; None makes them here.
        probe_seconds: How long each rate is measured, before and behind.

    Returns:
        The times, and the machine's state around them.

    Raises:
        TypeError: `fn` holds what cannot be called, or a number has another type.
        ValueError: `fn` holds no call, a number is out of range, or `probes` are for another number of threads.

    Examples:
        >>> from mla_numba.testing import Probes, do_bench
        >>> probes = Probes(1, buffer_bytes=2**20)
        >>> bench = do_bench({"sum": lambda: sum(range(99)), "max": lambda: max(range(99))}, n_rounds=9, probes=probes)
        >>> sorted(bench.ms), bench.ratio("max", "sum").n, bench.share("sum")
        (['max', 'sum'], 9, None)
    """
    contenders = _contenders(fn)
    _check_length(n_rounds, seconds)
    if probes is None:
        probes = Probes(n_threads)
    elif n_threads not in (None, probes.n_threads):
        raise ValueError(f"n_threads: expected the {probes.n_threads} of the probes, got {n_threads}")
    for calls in contenders.values():
        for call in calls:
            call()
    watch = Watch(probes, probe_seconds)
    with quiet():
        taken = _take(contenders, n_rounds, seconds)
    seen = watch.end()
    ms = {
        name: tuple(each * 1e3 for each in times)
        for name, times in zip(contenders, zip(*taken, strict=True), strict=True)
    }
    stated = None if work is None else Work(work.total_bytes, work.flops, work.int8_ops)
    n_copies = {name: len(calls) for name, calls in contenders.items()}
    return Bench(ms, seen.conditions, seen.before, seen.after, stated, n_copies)


def _check_length(n_rounds: int | None, seconds: float) -> None:
    """Raises for numbers that are out of range."""
    if n_rounds is not None:
        check_int("n_rounds", n_rounds, 1, _MAX_ROUNDS)
    if not 0 <= check_number("seconds", seconds) <= _MAX_SECONDS:
        raise ValueError(f"seconds: expected a number from 0 to {_MAX_SECONDS:.0f}, got {seconds}")


def _contenders(fn: Call | Sequence[Call] | Mapping[str, Call | Sequence[Call]]) -> dict[str, list[Call]]:
    """Calls by the name of what makes them."""
    named = fn if isinstance(fn, Mapping) else {"fn": fn}
    contenders = {name: [calls] if callable(calls) else list(calls) for name, calls in named.items()}
    if not contenders or not all(contenders.values()):
        raise ValueError("fn: expected at least one call of each implementation, got none")
    for calls in contenders.values():
        for call in calls:
            if not callable(call):
                raise TypeError(f"fn: expected what can be called without arguments, got {type(call).__name__}")
    return contenders


def _take(contenders: Mapping[str, Sequence[Call]], n_rounds: int | None, seconds: float) -> list[tuple[float, ...]]:
    """Seconds of so many rounds, or of as many as `seconds` allow."""
    turns = rounds(list(contenders.values()))
    if n_rounds is not None:
        return list(islice(turns, n_rounds))
    taken: list[tuple[float, ...]] = []
    spent = 0.0
    while len(taken) < _LEAST_ROUNDS or (len(taken) < _MOST_ROUNDS and spent < seconds):
        taken.append(next(turns))
        spent += sum(taken[-1])
    return taken
