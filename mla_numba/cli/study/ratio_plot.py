"""Ratios by the values of one field, a panel for each T: unroll lists, presets, or a single integer field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...tuning.study import Row
from ..chart_style import FASTER, INK, MUTED, PAPER, SAME, SLOWER, head, log_axis, tokens_text
from .results import Study, better, shown

__all__ = ["draw_ratios"]

_PANELS = 3  # a line
_LEAST, _MOST = 0.8, 1.25  # what the scale shows at least


def draw_ratios(study: Study, values: Mapping[int, str], what: str) -> Any:
    """The figure: a line for each value, its ratio over the planner's own plan at each T.

    `values`: the value of each row by its number, in the order in which they are to stand; `what`: such as "unroll
    lists".
    """
    from matplotlib.figure import Figure

    rows = [row for row in study.rows if row.number in values]
    tokens = sorted({row.t for row in rows})
    names = list(dict.fromkeys(values.values()))
    n_columns = min(_PANELS, len(tokens))
    n_lines = math.ceil(len(tokens) / n_columns)
    figure = Figure(figsize=(10, 1.9 + n_lines * (0.95 + 0.36 * len(names))), layout="constrained")
    panels = figure.subplots(n_lines, n_columns, squeeze=False, sharex=True, sharey=True).ravel()
    spans = [bound for row in rows for bound in _span(study, row)]
    least, most = min(_LEAST, *spans) / 1.04, max(_MOST, *spans) * 1.22
    for panel, t in zip(panels, tokens, strict=False):
        best: dict[str, Row] = {}
        for row in sorted((row for row in rows if row.t == t), key=better):
            best.setdefault(values[row.number], row)
        for place, value in enumerate(names):
            if value in best:
                _point(panel, study, best[value], place)
        panel.axvline(1, color=INK, linewidth=1.2)
        panel.set_xscale("log")
        panel.set_xlim(least, most)
        log_axis(panel.xaxis, least, most)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.tick_params(length=0, labelsize=10, labelbottom=True)
        panel.spines["left"].set_visible(False)
        panel.set_title(tokens_text(t), fontweight="bold", fontsize=12)
        panel.set_xlabel("time / time of the planner's plan", fontsize=10)
        panel.grid(axis="x", linewidth=0.8)
        panel.set_axisbelow(True)
    for panel in panels[len(tokens) :]:
        panel.set_visible(False)
    how = "Line at 1: the planner's own plan; right of it: slower. Bars: intervals of 95 %. Grey: noise"
    how += "; full dots: timed longer" if any(row.final_ratio is not None for row in rows) else ""
    how += "; with ?: seemed faster, timed briefly" if any(map(study.in_doubt, rows)) else ""
    how += "; =: the planner's own plan." if any(map(study.is_own, rows)) else "."
    how += study.noise(rows)
    head(figure, _message(study, rows, values, what), how, study.where, measured=study.measured)
    return figure


def _span(study: Study, row: Row) -> tuple[float, float]:
    """The interval of the ratio, or the ratio twice where there is none; 1 for the planner's own plan."""
    found = shown(row)
    if study.is_own(row):
        return 1.0, 1.0
    return found.low or found.median, found.high or found.median


def _point(panel: Any, study: Study, row: Row, place: int) -> None:
    own = study.is_own(row)
    ratio = 1.0 if own else shown(row).median
    colour = SAME if not study.differs(row) else FASTER if ratio < 1 else SLOWER
    panel.plot(_span(study, row), [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    face = colour if row.final_ratio is not None else PAPER
    panel.plot([ratio], [place], "o", markersize=8, color=colour, markerfacecolor=face, markeredgewidth=2)
    text = "=" if own else f"{ratio:.2f}" + "?" * study.in_doubt(row)
    style = {"va": "center", "fontsize": 10, "color": MUTED if own else INK}
    panel.annotate(text, (max(*_span(study, row), 1), place), xytext=(9, 0), textcoords="offset points", **style)


def _message(study: Study, rows: list[Row], values: Mapping[int, str], what: str) -> str:
    """The verdict, and the slowest choice where nothing is faster."""
    said = study.verdict(what, rows)
    slowest = max((row for row in rows if not study.is_own(row)), key=lambda row: shown(row).median, default=None)
    if slowest is None or shown(slowest).median < 1.05 or not said.startswith("No "):
        return said
    whole = values[slowest.number].replace(" ", "\N{NO-BREAK SPACE}")
    return f"{said}; {whole} takes {shown(slowest).median:.2f} times as long at {tokens_text(slowest.t)}"
