"""Results of the bench suite, read from the JSON that pytest-benchmark wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from ...base.json_file import read_object
from .fields import list_in, number_in, object_in, seconds_in, short, string_in

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
        stats, extra = object_in(bench, "stats"), object_in(bench, "extra_info")
        ops = number_in(extra, "flops", int, 0) + number_in(extra, "int8_ops", int, 0)
        rates = object_in(extra, "rates") if "rates" in extra else {}
        return cls(
            name=string_in(extra, "implementation"),
            min_s=seconds_in(stats, "min"),
            median_s=seconds_in(stats, "median"),
            iqr_s=number_in(stats, "iqr"),
            rounds=number_in(stats, "rounds", int),
            n_bytes=number_in(extra, "bytes", int, None),
            n_ops=ops or None,
            least_s=number_in(extra, "least_seconds", float, None),
            share=number_in(extra, "share_of_roofline", float, None),
            machine_gb_s=number_in(rates, "read_gb_s", float, None),
            made_of=string_in(extra, "made_of"),
            verified=string_in(extra, "verified"),
            weights=string_in(extra, "weights", ""),
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
    """A run of the suite: facts about it by name, its groups in the order in which they ran, what was left out, what
    failed, and how many benches were done of how many, where those are not all.
    """

    facts: dict[str, str]
    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unfinished: tuple[int, int] | None = None

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
        return cls.of(read_object(path), str(path))

    @classmethod
    def of(cls, raw: Mapping[str, Any], source: str) -> Self:
        """Of such JSON as an object; `source` is what errors name."""
        where = source
        try:
            benches: dict[str, list[Timing]] = {}
            for i, bench in enumerate(list_in(raw, "benchmarks")):
                where = f"{source}: benchmarks[{i}]"
                if not isinstance(bench, dict):
                    raise ValueError(f"an object, got {short(bench)}")
                group = "" if bench.get("group") is None else string_in(bench, "group")
                benches.setdefault(group, []).append(Timing.of(bench))
            where = source
            facts, suite = _facts(raw), object_in(raw, "mla_numba")
            left_out, failed = _strings(suite, "left_out"), _strings(suite, "failed")
            counts = [number_in(suite, name, int, 0) for name in ("benches_done", "benches_planned")]
        except ValueError as error:
            raise ValueError(f"{where}: expected JSON that the bench suite wrote, with {error}") from None
        if not benches:
            raise ValueError(f"{source}: expected at least one result, got none")
        groups = tuple(Group.of(title, rows) for title, rows in benches.items())
        return cls(facts, groups, left_out, failed, (counts[0], counts[1]) if counts[0] < counts[1] else None)


def _strings(holder: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of strings that may be missing."""
    values = list_in(holder, name) if name in holder else []
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name}: a list of strings, got {short(values)}")
    return tuple(values)


def _facts(raw: Mapping[str, Any]) -> dict[str, str]:
    machine, suite = object_in(raw, "machine_info"), object_in(raw, "mla_numba")
    extras = [bench["extra_info"] for bench in raw["benchmarks"]]
    commit = object_in(raw, "commit_info") if raw.get("commit_info") else {}
    facts = {
        "machine": string_in(machine, "machine"),
        "threads": f"{number_in(machine, 'threads', int)} ({_OURS}: Numba's {string_in(suite, 'threading_layer')})",
        "waiting threads": f"OMP_WAIT_POLICY {string_in(machine, 'waiting')}",
        "memory": f"GLIBC_TUNABLES {string_in(machine, 'malloc')}",
        "dimensions": string_in(machine, "dims"),
        "rates": _rates_text([extra["rates"] for extra in extras if "rates" in extra]),
        "versions": ", ".join(f"{name} {number}" for name, number in object_in(suite, "versions").items()),
        "system": string_in(machine, "system"),
        "run": string_in(raw, "datetime")[:19].replace("T", " ") + " UTC",
    }
    if machine.get("torch_limits", "none") != "none":
        facts["PyTorch held to"] = string_in(machine, "torch_limits")
    if commit.get("id"):
        facts["commit"] = string_in(commit, "id")[:12] + (", with changes" if commit.get("dirty") else "")
    return facts


def _rates_text(rates: Sequence[Mapping[str, float]]) -> str:
    """Each rate from its least to its greatest value over all benches."""
    texts = []
    for key, (name, unit) in _RATES.items():
        values = [number_in(measured, key) for measured in rates if key in measured]
        if values:
            texts.append(f"{name} {min(values):.0f} to {max(values):.0f} {unit}")
    return ", ".join(texts) or "not measured"
