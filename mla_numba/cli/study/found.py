"""What came of a sweep: its rows with their limits, what was found for each T, and what the machine was like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple, Self

from ...tuning.conditions import Conditions
from ...tuning.journal import Journal
from ...tuning.line import line_of
from ...tuning.study import Job, Row, with_limits
from ...tuning.verdict import Finding, controls_in, findings
from .options import StudyOptions

__all__ = ["Found"]


class Found(NamedTuple):
    """`conditions` are those of the last time that anything was timed to the end, None before that.

    `lines`: the expression that makes a row's config, by the row's number.
    """

    rows: list[Row]
    findings: list[Finding]
    conditions: Conditions | None
    lines: dict[int, str]

    @classmethod
    def of(cls, journal: Journal, jobs: Sequence[Job], options: StudyOptions) -> Self:
        """From the journal."""
        rows = with_limits(journal.rows, journal.rates, options.weight_sets)
        kept = journal.facts.get("conditions", [])
        conditions = _conditions_in(kept[-1]) if kept else None
        is_busy = conditions is not None and conditions.is_busy
        found = findings(rows, controls_in(journal.facts.get("controls", [])), is_busy)
        lines = {job.number: line_of(job.candidate, options.base, options.npuarch) for job in jobs}
        return cls(rows, found, conditions, lines)

    def line_of(self, row: Row) -> str:
        """What makes the row's config."""
        return self.lines[row.number]

    def as_dicts(self) -> list[dict[str, Any]]:
        """What JSON holds of the findings."""
        return [
            {
                "t": finding.t,
                "quant": finding.quant,
                "verdict": finding.verdict,
                "number": finding.best.number,
                "tile_config": self.line_of(finding.best),
                "control": finding.control.as_dict() if finding.control else None,
            }
            for finding in self.findings
        ]


def _conditions_in(kept: dict[str, Any]) -> Conditions:
    """What `Conditions.as_dict` made."""
    given = {f.name: kept[f.name] for f in fields(Conditions)}
    return Conditions(**(given | {"slower": tuple(given["slower"])}))
