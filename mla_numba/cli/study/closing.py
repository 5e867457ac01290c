"""What a sweep says at its end: how many plans ran, what was found, and the line to paste."""

from __future__ import annotations

from collections.abc import Sequence

from ...tuning.study import Row, reasons_of
from ...tuning.verdict import Finding
from ..shown import quantity

__all__ = ["closing", "counted"]


def counted(rows: Sequence[Row], n_jobs: int, n_left_out: int) -> str:
    """How many candidates ran and were exact, and why others did not run."""
    ran = [row for row in rows if row.exact is not None and row.status != "same"]
    wrong = [row for row in ran if not row.exact]
    names = {"refused": "refused", "same": "the same plan as another"}
    unrun = {said: sum(row.status == status for row in rows) for status, said in names.items()}
    unrun |= {"left": n_jobs - len(rows), "left out by --where": n_left_out}
    others = ", ".join(f"{count} {said}" for said, count in unrun.items() if count)
    stopped = sum(row.status == "stopped" for row in ran)
    lines = [
        f"{quantity(len(ran), 'plan')} ran, {len(ran) - len(wrong)} with every bit of the reference"
        + (f"; {stopped} stopped early" if stopped else ""),
    ]
    n_unrun = n_jobs + n_left_out - len(ran)
    if n_unrun:
        lines.append(f"{quantity(n_unrun, 'candidate')} did not run: {others}")
    lines += reasons_of([row.reason for row in rows if row.status == "refused"])
    return "\n".join([*lines, *(f"wrong: {row.settings} at {row.t} tokens: {row.reason}" for row in wrong)])


def closing(finding: Finding, line: str) -> str:
    """A sentence on one T, with the line to paste where a plan is faster than noise."""
    head = f"T {finding.t}, quant {finding.quant}: "
    best, control = finding.best, finding.control
    noise = f"the own plan against itself: {control.ratio}" if control else "not compared with itself"
    settings = ", ".join(f"{name} {value}" for name, value in best.settings.items())
    ratio = best.final or best.interval
    if finding.verdict == "faster":
        found = f"{settings} takes {ratio} of the time of the planner's own plan, more than noise ({noise})"
        return f"{head}{found}\n    tile_config={line}"
    took = f"the best, {settings}, took {ratio} of its time ({noise})"
    if finding.verdict == "busy":
        return f"{head}nothing can be said, since others took too much of the machine; {took}. Give the command again"
    if finding.verdict == "open":
        return f"{head}the finals were not run; {took}"
    return f"{head}nothing is faster than the planner's own plan by more than noise; {took}"
