"""What a study leaves: CSV, JSON, and a table of the best."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from ...base.output_file import write_text
from ...tuning.results import best_rows
from ...tuning.study import Row
from ..shown import no_share, share_text
from .found import Found

__all__ = ["show_rows", "write_csv", "write_json"]


_BUSY = "*"  # behind a figure that others disturbed


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A line for each row; the settings are columns of their own, lists and mappings as JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    own = [f.name for f in fields(Row) if f.name not in ("settings", "plan", "times_ms", "own_times_ms")]
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*own[:3], *names, *own[3:], "plan"])
    for row in rows:
        values = [getattr(row, name) for name in own]
        settings = [_cell(row.settings[name]) if name in row.settings else "" for name in names]
        plan = row.plan.splitlines()[0] if row.plan else ""
        writer.writerow([*values[:3], *settings, *("" if v is None else v for v in values[3:]), plan])
    write_text(path, text.getvalue())


def write_json(path: Path, facts: Mapping[str, Any], spec: Mapping[str, Any], found: Found) -> None:
    """Machine, versions and rates, what was studied, what was found, and every row with its whole plan."""
    rows = [asdict(row) for row in found.rows]
    write_text(path, json.dumps({**facts, "sweep": spec, "findings": found.as_dicts(), "rows": rows}, indent=1) + "\n")


def show_rows(rows: Sequence[Row], most: int | None = 5, title: str | None = None) -> Table:
    """A table of the best rows, at most `most` of each T; times by the baseline's are those of pairs."""
    names = ("T", "quant", "ms", "own ms", "ratio", "final, 95 %", "GB/s", "Gop/s", "limit")
    table = Table(
        Column("settings", overflow="fold", min_width=24),
        *(Column(name, justify="right", no_wrap=True) for name in names),
        box=box.SIMPLE,
        title=title,
        caption="ms: median; ratio: time by that of the planner's own plan, median of pairs, below 1 is faster;\n"
        "final: the same, timed longer, with its interval; *: others took too much of the machine for it to count;\n"
        "limit: least possible time by the median",
        caption_justify="right",
    )
    shown: dict[tuple[int, str], int] = {}
    reasons = []
    for row in best_rows(rows):
        group = row.t, row.quant
        shown[group] = shown.get(group, 0) + 1
        if most is not None and shown[group] > most:
            continue
        if shown[group] == 1 and len(shown) > 1:
            table.add_section()
        table.add_row(
            escape(", ".join(f"{name} {_cell(value)}" for name, value in row.settings.items()) + _mark(row)),
            str(row.t),
            row.quant,
            f"{row.median_ms:.3f}",
            f"{row.baseline_ms:.3f}",
            f"{row.ratio:.3f}" + _BUSY * row.busy,
            "" if row.final is None else str(row.final) + _BUSY * row.final_busy,
            f"{row.gb_s:.1f}",
            f"{row.gop_s:.0f}",
            share_text(row.share) + _BUSY * row.busy,
        )
        reasons.append(row.share_reason)
    if any(reasons):
        table.caption = f"{table.caption}\n{no_share(reasons)}"
    return table


def _mark(row: Row) -> str:
    return "" if row.status == "done" else f" ({row.status})"


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
