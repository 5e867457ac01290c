"""Results of the bench suite, read from the JSON that pytest-benchmark wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from ...base.json_file import read_object

__all__ = ["Group", "Results", "Timing"]

_TITLE = re.compile(r"(?P<family>.+), T = (?P<t>[0-9]{1,9})(, weights (?P<state>\w+))?")
_OURS = "mla_numba"
_RATES = {
    "read_gb_s": ("read", "GB/s"),
    "fma_gflop_s": ("fp32 multiply-adds", "GFLOP/s"),
    "dot_gop_s": ("int8 dot products", "GOP/s"),
    "bf16_gflop_s": ("bf16 pairs", "GFLOP/s"),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """One implementation in a group, times in seconds.

    `least_s` is what the machine's rates of that moment allow, `share` that over the fastest round. They are None where
    no work was stated, as are `n_bytes`, `n_ops` and `machine_gb_s`, the read bandwidth measured beside the bench.
    """

    name: str
    min_s: float
    median_s: float
    iqr_s: float
    rounds: int
    n_bytes: int | None
    n_ops: int | None
    least_s: float | None
    share: float | None
    machine_gb_s: float | None
    made_of: str
    verified: str
    weights: str

    @property
    def is_ours(self) -> bool:
        """Whether this library was timed."""
        return self.name.startswith(_OURS)

    @property
    def work(self) -> tuple[int | None, int | None]:
        """What is to be done: bytes and operations."""
        return self.n_bytes, self.n_ops

    @property
    def gb_per_s(self) -> float | None:
        """10^9 bytes a second at the median."""
        return self.n_bytes / self.median_s / 1e9 if self.n_bytes else None

    @property
    def gop_per_s(self) -> float | None:
        """10^9 operations a second at the median."""
        return self.n_ops / self.median_s / 1e9 if self.n_ops else None

    @classmethod
    def of(cls, bench: Mapping[str, Any]) -> Self:
        """From an entry of `benchmarks`; raises `ValueError` for a field that is missing or of another type."""
        stats, extra = _object(bench, "stats"), _object(bench, "extra_info")
        ops = _number(extra, "flops", int, 0) + _number(extra, "int8_ops", int, 0)
        rates = _object(extra, "rates") if "rates" in extra else {}
        return cls(
            name=_string(extra, "implementation"),
            min_s=_time(stats, "min"),
            median_s=_time(stats, "median"),
            iqr_s=_number(stats, "iqr"),
            rounds=_number(stats, "rounds", int),
            n_bytes=_number(extra, "bytes", int, None),
            n_ops=ops or None,
            least_s=_number(extra, "least_seconds", float, None),
            share=_number(extra, "share_of_roofline", float, None),
            machine_gb_s=_number(rates, "read_gb_s", float, None),
            made_of=_string(extra, "made_of"),
            verified=_string(extra, "verified"),
            weights=_string(extra, "weights", ""),
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Implementations of the same work, fastest median first.

    `family` is the title without tokens and cache state; `t` and `state` are None and empty where there are none.
    """

    title: str
    family: str
    t: int | None
    state: str
    rows: tuple[Timing, ...]

    @property
    def baseline(self) -> Timing | None:
        """Ours that the others are compared with: that of quant mode b where there are several, None where ours are
        parts of a whole.
        """
        ours = {row.name: row for row in self.rows if row.is_ours}
        return ours.get(f"{_OURS}-b") or ours.get(_OURS)

    @property
    def least(self) -> tuple[float, bool] | None:
        """The least seconds of the baseline's work, and whether it is the work of all rows.

        Of the limits measured beside each row that does this work, it is the one in the middle. None where rows do
        different work and none is the baseline, or where no work was stated.
        """
        works = {row.work for row in self.rows}
        if self.baseline is None and len(works) > 1:
            return None
        work = self.rows[0].work if self.baseline is None else self.baseline.work
        limits = [row.least_s for row in self.rows if row.work == work and row.least_s is not None]
        return (median(limits), len(works) == 1) if limits else None

    @classmethod
    def of(cls, title: str, rows: list[Timing]) -> Self:
        """Sorts the rows and takes the title apart."""
        ordered = tuple(sorted(rows, key=lambda row: row.median_s))
        found = _TITLE.fullmatch(title)
        if found is None:
            return cls(title, title, None, "", ordered)
        return cls(title, found["family"], int(found["t"]), found["state"] or "", ordered)


@dataclass(frozen=True, slots=True)
class Results:
    """A run of the suite: facts about it by name, its groups in the order in which they ran, and what was left out."""

    facts: dict[str, str]
    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = ()

    @property
    def families(self) -> dict[tuple[str, str], list[Group]]:
        """Groups by family and cache state."""
        families: dict[tuple[str, str], list[Group]] = {}
        for group in self.groups:
            families.setdefault((group.family, group.state), []).append(group)
        return families

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file of `--benchmark-json`.

        Raises `ValueError` where it is not one of this suite, naming what is missing or of another type, or holds no
        result; `OSError` where it can't be read.
        """
        raw = read_object(path)
        where = str(path)
        try:
            benches: dict[str, list[Timing]] = {}
            for i, bench in enumerate(_list(raw, "benchmarks")):
                where = f"{path}: benchmarks[{i}]"
                if not isinstance(bench, dict):
                    raise ValueError(f"an object, got {_short(bench)}")
                group = "" if bench.get("group") is None else _string(bench, "group")
                benches.setdefault(group, []).append(Timing.of(bench))
            where = str(path)
            facts = _facts(raw)
            left_out = _left_out(raw)
        except ValueError as error:
            raise ValueError(f"{where}: expected JSON that the bench suite wrote, with {error}") from None
        if not benches:
            raise ValueError(f"{path}: expected at least one result, got none")
        return cls(facts, tuple(Group.of(title, rows) for title, rows in benches.items()), left_out)


_MISSING = object()
_MAX_NUMBER = 2.0**63


def _short(value: object) -> str:
    return "none" if value is _MISSING else repr(value)[:80]


def _object(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name, _MISSING)
    if not isinstance(value, dict):
        raise ValueError(f"{name}: an object, got {_short(value)}")
    return value


def _list(holder: Mapping[str, Any], name: str) -> list[Any]:
    value = holder.get(name, _MISSING)
    if not isinstance(value, list):
        raise ValueError(f"{name}: a list, got {_short(value)}")
    return value


def _string(holder: Mapping[str, Any], name: str, default: object = _MISSING) -> str:
    value = holder.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name}: a string, got {_short(value)}")
    return value


def _left_out(raw: Mapping[str, Any]) -> tuple[str, ...]:
    suite = _object(raw, "mla_numba")
    reasons = _list(suite, "left_out") if "left_out" in suite else []
    if not all(isinstance(reason, str) for reason in reasons):
        raise ValueError(f"left_out: a list of strings, got {_short(reasons)}")
    return tuple(reasons)


def _number(holder: Mapping[str, Any], name: str, kind: type = float, default: object = _MISSING) -> Any:
    """A number that is none below 0; `default` where there is none and there need not be one."""
    value = holder.get(name, default)
    if value is None and default is None:
        return None
    fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not fits or not 0 <= value <= _MAX_NUMBER:
        raise ValueError(f"{name}: a number from 0 to 2**63, got {_short(value)}")
    return value


def _time(stats: Mapping[str, Any], name: str) -> float:
    seconds: float = _number(stats, name)
    if not seconds:
        raise ValueError(f"{name}: seconds, got 0")
    return seconds


def _facts(raw: Mapping[str, Any]) -> dict[str, str]:
    machine, suite = _object(raw, "machine_info"), _object(raw, "mla_numba")
    extras = [bench["extra_info"] for bench in raw["benchmarks"]]
    commit = _object(raw, "commit_info") if raw.get("commit_info") else {}
    facts = {
        "machine": _string(machine, "machine"),
        "threads": f"{_number(machine, 'threads', int)} ({_OURS}: Numba's {_string(suite, 'threading_layer')})",
        "waiting threads": f"OMP_WAIT_POLICY {_string(machine, 'waiting')}",
        "memory": f"GLIBC_TUNABLES {_string(machine, 'malloc')}",
        "dimensions": _string(machine, "dims"),
        "rates": _rates_text([extra["rates"] for extra in extras if "rates" in extra]),
        "versions": ", ".join(f"{name} {number}" for name, number in _object(suite, "versions").items()),
        "system": _string(machine, "system"),
        "run": _string(raw, "datetime")[:19].replace("T", " ") + " UTC",
    }
    if commit.get("id"):
        facts["commit"] = _string(commit, "id")[:12] + (", with changes" if commit.get("dirty") else "")
    return facts


def _rates_text(rates: Sequence[Mapping[str, float]]) -> str:
    """Each rate from its least to its greatest value over all benches."""
    texts = []
    for key, (name, unit) in _RATES.items():
        values = [_number(measured, key) for measured in rates if key in measured]
        if values:
            texts.append(f"{name} {min(values):.0f} to {max(values):.0f} {unit}")
    return ", ".join(texts) or "not measured"
