"""Whether a plan is faster than the planner's own by more than noise, and what is best in a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .interval import Interval
from .study import Row

__all__ = ["Control", "Finding", "controls_in", "findings", "is_faster"]

# A smaller gain is not worth a plan of its own, even where it is more than noise.
_LEAST_GAIN = 0.01
_LEAST_WINS = 0.7


def is_faster(ratio: Interval, wins: float, control: Interval | None) -> bool:
    """Whether a ratio of a contest stands for a plan that is faster than the baseline.

    Its whole interval is below 1 and below that of `control`, the baseline against itself at the same time; the median
    is at least 1 % below 1, and at least 70 % of the pairs were won. Nothing is faster without a control.
    """
    if control is None or control.low is None or ratio.high is None:
        return False
    is_clear = ratio.high < min(1.0, control.low)
    return is_clear and ratio.median <= 1 - _LEAST_GAIN and wins >= _LEAST_WINS


class Control(NamedTuple):
    """The planner's own plan against itself: what differs from 1 there is noise. `busy`: others took too much of it."""

    t: int
    quant: str
    ratio: Interval
    busy: bool

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        kept = {"t": self.t, "quant": self.quant, "busy": self.busy, "n_pairs": self.ratio.n}
        return kept | {"ratio": self.ratio.median, "low": self.ratio.low, "high": self.ratio.high}


def controls_in(kept: Sequence[Mapping[str, Any]]) -> list[Control]:
    """The controls that `Control.as_dict` made; raises `ValueError` for another form."""
    try:
        return [
            Control(
                each["t"],
                each["quant"],
                Interval(each["ratio"], each["low"], each["high"], each["n_pairs"]),
                each["busy"],
            )
            for each in kept
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"controls: expected t, quant, busy, n_pairs, ratio, low and high, got {error}") from None


class Finding(NamedTuple):
    """What a study found for one T and quant mode: the best row, by the finals where there were any.

    `verdict`: "faster", "noise" (nothing is faster by more than that), "busy" (others took so much of the machine that
    nothing can be said) or "open" (the finals were not run).
    """

    t: int
    quant: str
    best: Row
    control: Control | None
    verdict: str


def findings(rows: Sequence[Row], controls: Sequence[Control], is_busy: bool) -> list[Finding]:
    """A finding for each T and quant mode that has timed rows; `is_busy`: nothing can be said of any of them."""
    found = []
    for t, quant in sorted({(row.t, row.quant) for row in rows if row.ratio is not None}):
        control = next((each for each in controls if (each.t, each.quant) == (t, quant)), None)
        timed = [
            row for row in rows if (row.t, row.quant) == (t, quant) and row.ratio is not None and row.status != "same"
        ]
        finals = [row for row in timed if row.final is not None]
        best = min(finals or timed, key=lambda row: row.final_ratio or row.ratio or 0)
        verdict = _verdict(best, control)
        found.append(Finding(t, quant, best, control, "busy" if is_busy and verdict != "open" else verdict))
    return found


def _verdict(best: Row, control: Control | None) -> str:
    if control is None:
        return "open"
    if control.busy or (best.busy if best.final is None else best.final_busy):
        return "busy"
    final = best.final
    if final is None:
        return "noise"
    return "faster" if is_faster(final, best.final_wins or 0.0, control.ratio) else "noise"
