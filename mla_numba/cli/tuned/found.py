"""What `mla-numba tune` found: a table, and a closing sentence for each T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import click
from rich import box
from rich.table import Column, Table

from ...tuning.conditions import Conditions
from ...tuning.line import line_of
from ...tuning.search import Outcome
from ...tuning.space import Candidate
from ...tuning.study import reasons_of
from ..shown import TABLE_WIDTH, print_wide

__all__ = ["Found", "closing", "found_from_dict", "outcome_as_dict", "outcome_table", "show"]


class Found(NamedTuple):
    """What a search found, and what the machine was like meanwhile; None for what an earlier run found and kept."""

    outcome: Outcome
    conditions: Conditions | None

    @property
    def is_busy(self) -> bool:
        """Whether others took so much of the machine that the result counts for nothing."""
        return self.conditions is not None and self.conditions.is_busy


def show(found: Sequence[Found], where: str) -> None:
    """What speaks against the figures, the table, where results are kept, and what was found for each T."""
    busy = [each for each in found if each.is_busy]
    if busy:
        tokens = ", ".join(str(each.outcome.t) for each in busy)
        click.echo(f"{busy[0].conditions}; nothing is kept for T {tokens}")
    print_wide(outcome_table(found), TABLE_WIDTH)
    click.echo(where)
    for each in found:
        for line in reasons_of(each.outcome.against, what="wrong or refused"):
            click.echo(f"T {each.outcome.t}: {line}")
    for each in found:
        click.echo(closing(each))


def outcome_table(found: Sequence[Found]) -> Table:
    """A row for each T."""
    names = ("T", "trials", "own ms", "best ms", "ratio, 95 %", "wins", "own by itself")
    caption = "medians of a contest after the search; ratio: best by own, pair by pair"
    if any(each.is_busy for each in found):
        caption += "\n*: others took too much of the machine for it to count"
    table = Table(*(Column(name, justify="right") for name in names), box=box.SIMPLE, caption=caption)
    for each in found:
        outcome = each.outcome
        cells = [""] * 5
        contest = outcome.contest
        if contest is not None:
            cells = [f"{contest.baseline_median_s * 1e3:.3f}", f"{contest.median_s * 1e3:.3f}", str(outcome.interval)]
            cells += [f"{contest.wins:.0%}", str(outcome.noise)]
        table.add_row(f"{outcome.t}*" if each.is_busy else str(outcome.t), str(outcome.n_trials), *cells)
    return table


def closing(found: Found) -> str:
    """A sentence on one T, with the line to paste where a plan is faster by more than noise."""
    outcome = found.outcome
    head = f"T {outcome.t}: "
    if outcome.contest is None:
        return f"{head}nothing was timed: every candidate was wrong or refused"
    noise = f"the own plan against itself: {outcome.noise}"
    if found.is_busy:
        return f"{head}nothing can be said, since others took too much of the machine ({noise}). Give the command again"
    if not outcome.is_faster:
        best = f"the best of the search took {outcome.interval} of its time ({noise})"
        return f"{head}nothing is faster than the planner's own plan by more than noise; {best}"
    ratio = f"{outcome.interval} of the time of the planner's own plan, more than noise ({noise})"
    return f"{head}found one that takes {ratio}\n    tile_config={line_of(Candidate((), outcome.tiling))}"


def outcome_as_dict(found: Found) -> dict[str, Any]:
    """What JSON holds of it."""
    outcome, contest, ratio, noise = found.outcome, found.outcome.contest, found.outcome.interval, found.outcome.noise
    return {
        "tokens": outcome.t,
        "tiling": outcome.tiling.given(),
        "faster": outcome.is_faster,
        "ratio": outcome.ratio,
        "contest_ratio": None if ratio is None else ratio.median,
        "contest_low": None if ratio is None else ratio.low,
        "contest_high": None if ratio is None else ratio.high,
        "control_ratio": None if noise is None else noise.median,
        "control_low": None if noise is None else noise.low,
        "control_high": None if noise is None else noise.high,
        "wins": None if contest is None else contest.wins,
        "own_ms": None if contest is None else contest.baseline_median_s * 1e3,
        "best_ms": None if contest is None else contest.median_s * 1e3,
        "trials": outcome.n_trials,
        "wrong": outcome.n_wrong,
        "against": list(outcome.against),
        "seconds": outcome.seconds,
        **{f"{name}_pairs_s": pairs for name, pairs in outcome.as_dict().items() if name in ("contest", "control")},
        "conditions": None if found.conditions is None else found.conditions.as_dict(),
    }


def found_from_dict(record: Mapping[str, Any]) -> Found:
    """From what `outcome_as_dict` made."""
    names = {"t": "tokens", "n_trials": "trials", "n_wrong": "wrong"}
    names |= {"contest": "contest_pairs_s", "control": "control_pairs_s"}
    names |= {name: name for name in ("seconds", "tiling", "against")}
    kept = {name: record[given] for name, given in names.items()}
    if record["conditions"] is None:
        return Found(Outcome.from_dict(kept), None)
    facts = {field.name: record["conditions"][field.name] for field in fields(Conditions)}
    return Found(Outcome.from_dict(kept), Conditions(**facts | {"slower": tuple(facts["slower"])}))
