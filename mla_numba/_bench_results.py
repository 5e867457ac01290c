"""Results of the bench suite, read from the JSON that pytest-benchmark wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

__all__ = ["Group", "Results", "Row"]

_TITLE = re.compile(r"(?P<family>.+), T = (?P<t>\d+)(, weights (?P<state>\w+))?")
_OURS = "mla_numba"
_RATES = {
    "read_gb_s": ("read", "GB/s"),
    "fma_gflop_s": ("fp32 multiply-adds", "GFLOP/s"),
    "dot_gop_s": ("int8 dot products", "GOP/s"),
    "bf16_gflop_s": ("bf16 pairs", "GFLOP/s"),
}


@dataclass(frozen=True, slots=True)
class Row:
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
        """From an entry of `benchmarks`."""
        stats, extra = bench["stats"], bench["extra_info"]
        ops = extra.get("flops", 0) + extra.get("int8_ops", 0)
        return cls(
            name=extra["implementation"],
            min_s=stats["min"],
            median_s=stats["median"],
            iqr_s=stats["iqr"],
            rounds=stats["rounds"],
            n_bytes=extra.get("bytes"),
            n_ops=ops or None,
            least_s=extra.get("least_seconds"),
            share=extra.get("share_of_roofline"),
            machine_gb_s=extra.get("rates", {}).get("read_gb_s"),
            made_of=extra["made_of"],
            verified=extra["verified"],
            weights=extra.get("weights", ""),
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
    rows: tuple[Row, ...]

    @property
    def baseline(self) -> Row | None:
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
    def of(cls, title: str, rows: list[Row]) -> Self:
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

        Raises `ValueError` where it is not one of this suite, or holds no result; `OSError` where it can't be read.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            benches: dict[str, list[Row]] = {}
            for bench in raw["benchmarks"]:
                benches.setdefault(bench["group"] or "", []).append(Row.of(bench))
            facts = _facts(raw)
            left_out = tuple(map(str, raw["mla_numba"].get("left_out", ())))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}: expected JSON that the bench suite wrote, got {what}") from None
        if not benches:
            raise ValueError(f"{path}: expected at least one result, got none")
        return cls(facts, tuple(Group.of(title, rows) for title, rows in benches.items()), left_out)


def _facts(raw: Mapping[str, Any]) -> dict[str, str]:
    machine, suite = raw["machine_info"], raw["mla_numba"]
    rates = [bench["extra_info"]["rates"] for bench in raw["benchmarks"] if "rates" in bench["extra_info"]]
    commit = raw.get("commit_info") or {}
    facts = {
        "machine": machine["machine"],
        "threads": f"{machine['threads']} ({_OURS}: Numba's {suite['threading_layer']})",
        "waiting threads": f"OMP_WAIT_POLICY {machine['waiting']}",
        "memory": f"GLIBC_TUNABLES {machine['malloc']}",
        "dimensions": machine["dims"],
        "rates": _rates_text(rates),
        "versions": ", ".join(f"{name} {number}" for name, number in suite["versions"].items()),
        "system": machine["system"],
        "run": raw["datetime"][:19].replace("T", " ") + " UTC",
    }
    if commit.get("id"):
        facts["commit"] = commit["id"][:12] + (", with changes" if commit.get("dirty") else "")
    return facts


def _rates_text(rates: Sequence[Mapping[str, float]]) -> str:
    """Each rate from its least to its greatest value over all benches."""
    texts = []
    for key, (name, unit) in _RATES.items():
        values = [measured[key] for measured in rates if key in measured]
        if values:
            texts.append(f"{name} {min(values):.0f} to {max(values):.0f} {unit}")
    return ", ".join(texts) or "not measured"
