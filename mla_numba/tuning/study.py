"""A study of plans: which jobs there are, and timing them beside the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tiling import MlaTileConfig, PassOptions, PrologPlan, Rates, Work, least_seconds, pass_options

from ..base.modes import CallPhase, NpuArch, QuantMode
from .contest import Arena, Contender, Pairs
from .copies import are_cold
from .interval import Interval
from .limit import share_of
from .space import Candidate, holds
from .turns import quiet

__all__ = [
    "Effort",
    "Job",
    "Row",
    "finals",
    "list_jobs",
    "reasons_of",
    "run_job",
    "time_pairs",
    "with_final",
    "with_limits",
]


@dataclass(frozen=True)
class Effort:
    """How long a candidate is timed: at least `pairs` calls and `seconds` of them, at most `most`.

    One whose `hopeless`-fold time shows after three pairs is timed no longer.
    """

    pairs: int = 7
    seconds: float = 0.15
    most: int = 60
    hopeless: float = 1.25


@dataclass(frozen=True)
class Job:
    """A candidate at `t` tokens in one quant mode; `number` tells jobs of one study apart."""

    number: int
    t: int
    quant: QuantMode
    candidate: Candidate
    options: PassOptions | None = None
    refused: str = ""
    same_as: int | None = None


@dataclass(frozen=True)
class Row:
    """What came of a job.

    `status`: "done", "stopped" (hopeless), "wrong" (a bit differs), "same" (as another job's plan) or "refused", with
    `reason`; that of "same" is the other job's number. Times are milliseconds of a call; `times_ms` and `own_times_ms`
    are those of the plan and of the baseline, pair by pair. `ratio` is the median of the time over the baseline's in
    pairs, below 1: faster, and `ratio_low` to `ratio_high` its interval of 95 %, None for fewer than six pairs.
    `final_ratio` is that of a longer second contest, which the best of each T have, with its own interval. `others` and
    `final_others` are the cores that others took meanwhile, as far as that is known; `busy` and `final_busy` whether
    that was too much for the times to count. Rates are those of the median time. `share` is the least possible time
    over it; None where it would be above 1, with `share_reason`.
    """

    number: int
    t: int
    quant: QuantMode
    settings: dict[str, Any]
    status: str
    reason: str = ""
    n_pairs: int = 0
    min_ms: float | None = None
    median_ms: float | None = None
    baseline_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    wins: float | None = None
    others: float | None = None
    busy: bool = False
    n_final_pairs: int | None = None
    final_ratio: float | None = None
    final_low: float | None = None
    final_high: float | None = None
    final_wins: float | None = None
    final_others: float | None = None
    final_busy: bool = False
    exact: bool | None = None
    n_bytes: int | None = None
    flops: int | None = None
    int8_ops: int | None = None
    gb_s: float | None = None
    gop_s: float | None = None
    least_ms: float | None = None
    share: float | None = None
    share_reason: str = ""
    times_ms: list[float] | None = None
    own_times_ms: list[float] | None = None
    plan: str = ""

    @property
    def interval(self) -> Interval | None:
        """The ratio with its interval; None where nothing was timed."""
        return None if self.ratio is None else Interval(self.ratio, self.ratio_low, self.ratio_high, self.n_pairs)

    @property
    def final(self) -> Interval | None:
        """That of the second contest; None where there was none."""
        if self.final_ratio is None:
            return None
        return Interval(self.final_ratio, self.final_low, self.final_high, self.n_final_pairs or 0)


def list_jobs(
    candidates: Sequence[tuple[Candidate, QuantMode]],
    tokens: Sequence[int],
    restrictions: Sequence[str],
    plan: Callable[[Job], PrologPlan],
    phase: CallPhase,
    npuarch: NpuArch,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[Job], int]:
    """A job for each candidate (with its quant mode) and T, and how many the restrictions left out.

    A candidate that its config or the planner refuses, or whose plan is that of an earlier job, comes with the reason.
    `advance` is called after each.
    """
    jobs: list[Job] = []
    first_of: dict[Any, int] = {}
    n_left_out = 0
    for candidate, quant in candidates:
        for t in tokens:
            advance()
            if not all(holds(restriction, candidate, t) for restriction in restrictions):
                n_left_out += 1
                continue
            options = pass_options(phase, t, npuarch) if isinstance(candidate.config, MlaTileConfig) else None
            job = Job(len(jobs), t, quant, candidate, options, candidate.refused)
            if not job.refused:
                try:
                    planned = plan(job)
                except (TypeError, ValueError) as error:
                    job = replace(job, refused=str(error))
                else:
                    key = quant, planned.tiles, planned.tile_plans
                    job = replace(job, same_as=first_of.get(key))
                    first_of.setdefault(key, job.number)
            jobs.append(job)
    return jobs, n_left_out


def time_pairs(arena: Arena, contender: Contender, effort: Effort) -> tuple[Pairs, bool]:
    """Pairs of calls as `effort` says, and whether the contender was given up."""
    with quiet():
        for i, timed in enumerate(arena.pairs(contender)):
            n = i + 1
            if n >= 3 and timed.ratio > effort.hopeless and timed.wins == 0:
                return timed, True
            spent = sum(timed.ours_s) + sum(timed.baseline_s)
            if n >= effort.most or (n >= effort.pairs and spent >= effort.seconds):
                break
    return timed, False


def run_job(job: Job, arena: Arena, effort: Effort) -> Row:
    """Compares a job's bits with the baseline's, then times it; a wrong one is not timed."""
    settings = dict(job.candidate.values)
    row = Row(job.number, job.t, job.quant, settings, "done")
    if job.refused:
        return replace(row, status="refused", reason=job.refused)
    if job.same_as is not None:
        return replace(row, status="same", reason=str(job.same_as))
    contender = arena.contender(job.t, job.candidate.config, job.options)
    plan = contender.plan
    found = arena.mismatches(contender)
    if found:
        return replace(row, status="wrong", exact=False, reason="; ".join(map(str, found)), plan=str(plan))
    timed, hopeless = time_pairs(arena, contender, effort)
    ratio = timed.interval
    return replace(
        row,
        status="stopped" if hopeless else "done",
        reason=f"{timed.ratio:.2f} of the baseline's time after {len(timed.ours_s)} pairs" if hopeless else "",
        n_pairs=len(timed.ours_s),
        min_ms=timed.min_s * 1e3,
        median_ms=timed.median_s * 1e3,
        baseline_ms=timed.baseline_median_s * 1e3,
        ratio=ratio.median,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        wins=timed.wins,
        exact=True,
        n_bytes=plan.total_bytes,
        flops=plan.flops,
        int8_ops=plan.int8_ops,
        gb_s=plan.total_bytes / timed.median_s / 1e9,
        gop_s=(plan.flops + plan.int8_ops) / timed.median_s / 1e9,
        times_ms=[round(seconds * 1e3, 6) for seconds in timed.ours_s],
        own_times_ms=[round(seconds * 1e3, 6) for seconds in timed.baseline_s],
        plan=str(plan),
    )


def with_final(row: Row, timed: Pairs) -> Row:
    """A row with the result of its second contest."""
    ratio = timed.interval
    return replace(
        row,
        n_final_pairs=ratio.n,
        final_ratio=ratio.median,
        final_low=ratio.low,
        final_high=ratio.high,
        final_wins=timed.wins,
    )


def with_limits(rows: Mapping[int, Row], rates: Rates, n_weight_sets: int) -> list[Row]:
    """The rows by number, with the least time that the rates allow; one that is the same as another has its times.

    `n_weight_sets` took turns; see `copies.are_cold`.
    """
    limited = []
    cold = are_cold(n_weight_sets, min((row.n_bytes for row in rows.values() if row.n_bytes), default=0))
    for _, row in sorted(rows.items()):
        timed = rows.get(int(row.reason)) if row.status == "same" else row
        if timed is None or timed.median_ms is None or not (timed.n_bytes and timed.flops):
            limited.append(row)
            continue
        least = least_seconds(Work(timed.n_bytes, timed.flops, timed.int8_ops or 0), rates) * 1e3
        own = {name: getattr(row, name) for name in ("number", "settings", "status", "reason")}
        share, reason = share_of(least, timed.median_ms, cold)
        limited.append(replace(timed, **own, least_ms=least, share=share, share_reason=reason))
    return limited


def reasons_of(refused: Sequence[str], most: int = 10, what: str = "refused") -> list[str]:
    """A line for each reason against candidates, the most frequent first and at most so many, with their number."""
    counts = Counter(refused)
    lines = [f"{what}, {count} of {len(refused)}: {reason}" for reason, count in counts.most_common(most)]
    return [*lines, f"and {len(counts) - most} reasons more"] if len(counts) > most else lines


def finals(rows: Mapping[int, Row], n: int = 3) -> list[int]:
    """Numbers of the `n` best rows of each T and quant mode that seem faster than the baseline."""
    numbers = []
    groups = dict.fromkeys((row.t, row.quant) for row in rows.values())
    for group in groups:
        faster = [r for r in rows.values() if (r.t, r.quant) == group and r.ratio is not None and r.ratio < 1]
        numbers += [row.number for row in sorted(faster, key=lambda row: row.ratio or 0)[:n]]
    return numbers
