"""What a sweep left in its folder, read back: rows to look at in Python or in a notebook."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiling.html import table, to_html

from ..base.json_file import read_object
from ..base.short_repr import short_repr
from .journal import row_in
from .study import Row

__all__ = ["SweepResults", "best_rows", "read_sweep"]

_FILE = "sweep.json"
_MAX_BYTES = 1 << 30
_MOST_SHOWN = 10  # of each T and quant mode, in a notebook


@dataclass(frozen=True, slots=True, eq=False)
class SweepResults:
    """Results of `mla-numba sweep`. `read_sweep` has an example.

    Args:
        facts: Machine, versions and rates, and the findings for each T.
        spec: What was studied.
        rows: What came of each candidate.
    """

    facts: Mapping[str, Any]
    spec: Mapping[str, Any]
    rows: tuple[Row, ...]

    def best(self) -> list[Row]:
        """Timed rows, the best of each T and quant mode first."""
        return best_rows(self.rows)

    def __repr__(self) -> str:
        statuses = dict.fromkeys(row.status for row in self.rows)
        counts = [f"{sum(row.status == status for row in self.rows)} {status}" for status in statuses]
        tokens = ", ".join(map(str, dict.fromkeys(row.t for row in self.rows)))
        return short_repr(self, f"{len(self.rows)} rows", *counts, f"T {tokens}" if tokens else "")

    def _repr_html_(self) -> str:
        """A table for notebooks: the best rows of each T and quant mode."""
        shown: list[Row] = []
        for row in self.best():
            group = [other for other in shown if (other.t, other.quant) == (row.t, row.quant)]
            if len(group) < _MOST_SHOWN:
                shown.append(row)
        names = list(dict.fromkeys(name for row in shown for name in row.settings))
        header = ["T", "quant", *names, "ms", "planner's ms", "ratio", "final, 95 %", "status"]
        cells = [
            [
                str(row.t),
                row.quant,
                *(_text(row.settings.get(name)) for name in names),
                *(_number(value) for value in (row.median_ms, row.baseline_ms, row.ratio)),
                "" if row.final is None else str(row.final),
                row.status,
            ]
            for row in shown
        ]
        return to_html(table(repr(self)[1:-1], header, cells))


def read_sweep(folder: str | os.PathLike[str]) -> SweepResults:
    """What `mla-numba sweep --out folder` wrote; in a notebook it is shown as a table of the best.

    Args:
        folder: The folder, or its `sweep.json`.

    Returns:
        Every row, with times in milliseconds.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is none that a sweep writes; the message names file, row and field.

    Examples:
        >>> from mla_numba.tuning.results import read_sweep
        >>> results = read_sweep("sweep")  # doctest: +SKIP
        >>> results.best()[0].settings  # doctest: +SKIP
        {'down_kc': 1792, 'down_walk': 4}
    """
    path = Path(folder)
    path = path / _FILE if path.is_dir() else path
    content = read_object(path, _MAX_BYTES)
    spec, rows = content.pop("sweep", None), content.pop("rows", None)
    if not isinstance(spec, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected the file of a sweep, with sweep and rows, got another")
    return SweepResults(content, spec, tuple(row_in(f"{path}, row {i}", row) for i, row in enumerate(rows)))


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Timed rows, the best of each T and quant mode first. `read_sweep` has an example.

    Args:
        rows: Rows of a sweep.

    Returns:
        Those that were timed, by the ratio of the longer contest where there was one.
    """
    timed = [row for row in rows if row.ratio is not None and row.status != "same"]
    return sorted(timed, key=lambda row: (row.t, row.quant, row.final_ratio is None, row.final_ratio or row.ratio))


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
