"""What the pictures of a study say: the ratio of each row, the planner's own plan, what is more than noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...base.dims import MlaDims
from ...tuning.interval import Interval
from ...tuning.study import Row
from ...tuning.verdict import is_faster
from ..chart_style import tokens_text

__all__ = ["SAME", "Study", "better", "settings_text", "shown", "value_text"]

_MOST_NAMED = 2  # in a title
SAME = 0.02  # what a picture shows as no difference


class Study(NamedTuple):
    """Timed rows of a study, and what a picture says of it beside them.

    By T and quant mode: `own_plans`, the text of the planner's own plan; `controls`, its ratio to itself; `busy`, where
    others took so much of the machine that nothing can be said. `measured`: dimensions, mode, machine and threads
    in a line; `where`: version and day. `rates`: as `tuning.rates.rates_as_dict` has them.
    """

    rows: list[Row]
    own_plans: dict[tuple[int, str], str]
    controls: dict[tuple[int, str], Interval]
    busy: set[tuple[int, str]]
    measured: str
    where: str
    rates: dict[str, float]

    @classmethod
    def of(cls, record: Mapping[str, Any], rows: Sequence[Row]) -> Study:
        """From what `sweep.json` holds beside its rows, and the rows with their limits."""
        timed = [row for row in rows if row.ratio is not None]
        own = {(plan["t"], plan["quant"]): plan["plan"] for plan in record.get("own_plans", [])}
        controls = {
            (each["t"], each["quant"]): Interval(each["ratio"], each["low"], each["high"], each["n_pairs"])
            for each in record.get("controls", [])
        }
        busy = {(each["t"], each["quant"]) for each in record.get("findings", []) if each["verdict"] == "busy"}
        return cls(timed, own, controls, busy, _measured(record, rows), _where(record), dict(record["rates"]))

    def is_own(self, row: Row) -> bool:
        """Whether the row's plan is the planner's own, timed against itself."""
        return self.own_plans.get((row.t, row.quant)) == row.plan

    def is_busy(self, row: Row) -> bool:
        """Whether others took so much of the machine that the row's ratio says nothing."""
        return (row.t, row.quant) in self.busy or (row.busy if row.final is None else row.final_busy)

    def differs(self, row: Row) -> bool:
        """Whether the time is another than that of the planner's own plan: by the interval of the ratio, and for a
        faster plan in a longer contest. Of many candidates some seem faster in the first.
        """
        found = shown(row)
        if self.is_own(row) or self.is_busy(row):
            return False
        if found.low is None or found.high is None:
            return row.status == "stopped"
        return found.low > 1 or (found.high < 1 and row.final is not None)

    def in_doubt(self, row: Row) -> bool:
        """Whether it seemed faster by more than 2 %, but was only timed briefly."""
        return row.final_ratio is None and shown(row).median < 1 - SAME and not self.is_own(row)

    def noise(self, rows: Iterable[Row]) -> str:
        """How the planner's own plan compared with itself, as a sentence; empty where that is not known."""
        keys = {(row.t, row.quant) for row in rows}
        found = [control for key, control in self.controls.items() if key in keys]
        bounds = [
            bound for control in found for bound in (control.low or control.median, control.high or control.median)
        ]
        return f" Noise: against itself it took {min(bounds):.2f} to {max(bounds):.2f}." if bounds else ""

    def best(self, rows: Iterable[Row]) -> Row:
        """The fastest: by the longer contest where there was one."""
        return min(rows, key=better)

    def winner(self, rows: Iterable[Row]) -> Row | None:
        """The fastest of those that were faster in a longer contest, even if within noise."""
        faster = [row for row in rows if row.final_ratio is not None and row.final_ratio < 1 and not self.is_own(row)]
        return self.best(faster) if faster else None

    def clearly_faster(self, row: Row) -> bool:
        """Whether it was faster in a longer contest by more than noise."""
        if row.final is None or self.is_own(row) or self.is_busy(row):
            return False
        return is_faster(row.final, row.final_wins or 0.0, self.controls.get((row.t, row.quant)))

    def verdict(self, what: str, rows: Sequence[Row]) -> str:
        """What came of it, in a sentence; `what`: what was varied, such as "blocks"."""
        found = [self.best(row for row in rows if row.t == t) for t in sorted({row.t for row in rows})]
        faster = [row for row in found if self.clearly_faster(row)]
        if not faster and all(map(self.is_busy, rows)):
            return "Others took too much of the machine: these ratios say nothing"
        if not faster:
            return f"No {what} are faster than the planner's own by more than noise"
        gains = [1 - (row.final_ratio or 1) for row in faster]
        if len(faster) > _MOST_NAMED:
            return f"Other {what} take {min(gains):.0%} to {max(gains):.0%} less at {len(faster)} numbers of tokens"
        said = [
            f"{gain:.0%} less at {tokens_text(row.t)} ({settings_text(row)})"
            for gain, row in zip(gains, faster, strict=True)
        ]
        return f"Other {what} take {', '.join(said)}"


def better(row: Row) -> tuple[bool, float]:
    """A key that sorts the best first."""
    return row.final_ratio is None, shown(row).median


def shown(row: Row) -> Interval:
    """Time over the planner's in pairs, with its interval: of the longer contest, where there was one."""
    found = row.final or row.interval
    assert found is not None, row
    return found


def settings_text(row: Row) -> str:
    """The row's settings, such as "down_kc 512, down_walk 2"."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in row.settings.items())


def value_text(value: Any) -> str:
    """A field's value; of a long list its first and its last numbers."""
    if isinstance(value, list | tuple):
        numbers = [str(number) for number in value]
        return f"[{', '.join(numbers)}]" if len(numbers) <= 5 else f"[{', '.join(numbers[:2])}, ... {numbers[-1]}]"
    return str(value)


def _measured(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    sweep, machine = record["sweep"], record["machine"]
    dims = MlaDims(**sweep["dims"])
    letters = zip(("H", "N", "Rq", "C", "D", "R"), sweep["dims"].values(), strict=True)
    sizes = ", ".join(f"{letter} {size}" for letter, size in letters)
    shown = "DeepSeek-V3.2's dimensions" if dims == MlaDims.deepseek_v32() else sizes
    n = record["threads"]
    modes = ", ".join(dict.fromkeys(row.quant for row in rows))
    threads = "1 thread" if n == 1 else f"{n} threads"
    machine_text = f"{machine['name']} ({machine['isa']})"
    return f"{shown}, quant {modes}, on {machine_text}, {threads}"


def _where(record: Mapping[str, Any]) -> str:
    versions = record.get("versions", {})
    version = f"mla_numba {versions['mla_numba']}" if "mla_numba" in versions else "mla_numba"
    day = str(record.get("date", ""))[:10]
    return ", ".join(filter(None, (version, day)))
