"""The heat map of a study: a panel for each T, a cell for each pair of values of two fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ...tuning.study import Row
from ..chart_style import INK, ON_DARK, ON_PALE, PAPER, head, tokens_text
from .results import Study, better, shown

__all__ = ["BOUNDS", "Axis", "axes_of", "draw_heat_map", "with_unit"]

BOUNDS = (0.80, 0.85, 0.90, 0.95, 0.99, 1.01, 1.05, 1.11, 1.18, 1.25)  # of the colours, the same in every picture
_PANELS = 3  # a line
_MOST_LABELS = 10  # of a panel's columns
_MOST_TEXTS = 30  # columns of cells in a line of panels; more have no room for text


class Axis(NamedTuple):
    """A field, and the place of each of its values: those that gave the same plans share one."""

    name: str
    place: dict[int, int]

    @property
    def labels(self) -> list[str]:
        """The values of each place; of several the first and the last."""
        places: dict[int, list[int]] = {}
        for value, place in self.place.items():
            places.setdefault(place, []).append(value)
        return [str(v[0]) if len(v) == 1 else f"{v[0]} to {v[-1]}" for _, v in sorted(places.items())]

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> Axis:
        """Neighbouring values share a place where each pair of rows that differ in them alone has one plan."""
        values = sorted({row.settings[name] for row in rows})
        plans = {value: _plans(rows, name, value) for value in values}
        places, place = {values[0]: 0}, 0
        for before, value in pairwise(values):
            place += plans[value] != plans[before]
            places[value] = place
        return cls(name, places)


def _plans(rows: Sequence[Row], name: str, value: int) -> dict[tuple[Any, ...], str]:
    """The plan by everything but this field."""
    return {
        (row.t, row.quant, *(str(v) for n, v in row.settings.items() if n != name)): row.plan
        for row in rows
        if row.settings[name] == value
    }


def axes_of(rows: Sequence[Row]) -> list[Axis]:
    """Up to two integer fields of one grid with the most places, in the order of the rows' settings."""
    grids: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        grids.setdefault(tuple(row.settings), []).append(row)
    found = [_two_most_varied(grid) for grid in grids.values()]
    return max(found, key=lambda axes: (len(axes), math.prod(len(axis.labels) for axis in axes)), default=[])


def _two_most_varied(rows: Sequence[Row]) -> list[Axis]:
    names = [name for name in rows[0].settings if all(isinstance(row.settings[name], int) for row in rows)]
    axes = [axis for axis in (Axis.of(name, rows) for name in names) if len(axis.labels) > 1]
    most = sorted(axes, key=lambda axis: -len(axis.labels))[:2]
    return [axis for axis in axes if axis in most]


def draw_heat_map(study: Study, x: Axis, y: Axis) -> Any:
    """The figure: in each cell the best ratio over all other fields, the planner's own cell and the best marked."""
    import matplotlib
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    rows = [row for row in study.rows if {x.name, y.name} <= set(row.settings)]
    tokens = sorted({row.t for row in rows})
    n_columns = min(_PANELS, len(tokens))
    n_lines = math.ceil(len(tokens) / n_columns)
    figure = Figure(figsize=(10, 2.0 + n_lines * max(2.2, 0.9 + 0.55 * len(y.labels))), layout="constrained")
    panels = figure.subplots(n_lines, n_columns, squeeze=False, sharey=True).ravel()
    colours = matplotlib.colormaps["RdBu_r"].resampled(len(BOUNDS) + 1)
    norm = BoundaryNorm(BOUNDS, colours.N, extend="both")
    with_text = len(x.labels) * n_columns <= _MOST_TEXTS
    for panel, t in zip(panels, tokens, strict=False):
        best = _best_cells([row for row in rows if row.t == t], x, y)
        cells = [
            [_tint(study, best[i, j]) if (i, j) in best else math.nan for j in range(len(x.labels))]
            for i in range(len(y.labels))
        ]
        image = panel.pcolormesh(cells, cmap=colours, norm=norm, edgecolors=PAPER, linewidth=2 if with_text else 0.3)
        _mark(panel, study, best, with_text)
        panel.set_title(tokens_text(t), fontweight="bold", fontsize=12, color=INK)
        for axis, labels, most in ((panel.xaxis, x.labels, _MOST_LABELS), (panel.yaxis, y.labels, 2 * _MOST_LABELS)):
            places = range(0, len(labels), math.ceil(len(labels) / most))
            axis.set_ticks([place + 0.5 for place in places], [labels[place] for place in places])
        panel.tick_params(axis="x", rotation=90 if len(x.labels) > 6 else 0)
        panel.tick_params(length=0, labelsize=10)
        panel.set_xlabel(with_unit(x.name))
        for spine in panel.spines.values():
            spine.set_visible(False)
    for panel in panels[::n_columns]:
        panel.set_ylabel(with_unit(y.name))
    for panel in panels[len(tokens) :]:
        panel.set_visible(False)
    bar = figure.colorbar(image, ax=list(panels), ticks=BOUNDS, format="%.2f", pad=0.02, **_bar_size(n_lines))
    bar.set_label("time / time of the planner's plan", fontsize=10)
    bar.ax.tick_params(labelsize=9.5, length=0)
    bar.outline.set_visible(False)
    how = "Blue: faster than the planner's own plan; red: slower; pale: no difference beyond noise. Bold: timed longer"
    how += "; with ?: seemed faster, timed briefly. " if any(map(study.in_doubt, rows)) else ". "
    how += "Solid frame: the best of them; dashed: the planner's own." + study.noise(rows)
    how += " Empty: not timed." if _has_gaps(rows, x, y) else ""
    head(figure, study.verdict("blocks", rows), how, study.where, measured=study.measured)
    return figure


def _bar_size(n_lines: int) -> dict[str, Any]:
    """The bar of colours is as high as one line of panels."""
    return {"shrink": 1 / n_lines, "anchor": (0.0, 1.0), "aspect": 30}


def _best_cells(rows: Sequence[Row], x: Axis, y: Axis) -> dict[tuple[int, int], Row]:
    """The best row of each cell, by line and column."""
    cells: dict[tuple[int, int], Row] = {}
    for row in sorted(rows, key=better):
        cells.setdefault((y.place[row.settings[y.name]], x.place[row.settings[x.name]]), row)
    return cells


def _has_gaps(rows: Sequence[Row], x: Axis, y: Axis) -> bool:
    cells = {(row.t, y.place[row.settings[y.name]], x.place[row.settings[x.name]]) for row in rows}
    return len(cells) < len({row.t for row in rows}) * len(x.labels) * len(y.labels)


def _mark(panel: Any, study: Study, cells: dict[tuple[int, int], Row], with_text: bool) -> None:
    """Ratios as text, a frame around the best cell and a dashed one around the planner's own."""
    from matplotlib.patches import Rectangle

    best = study.winner(cells.values())
    for (i, j), row in cells.items():
        own, ratio = study.is_own(row), _tint(study, row)
        if with_text:
            colour = ON_DARK if not BOUNDS[1] <= ratio < BOUNDS[-2] else ON_PALE
            weight = "bold" if row.final_ratio is not None else "normal"
            style = {"ha": "center", "va": "center", "color": colour}
            text = _cell_text(study, row)
            panel.text(
                j + 0.5, i + (0.6 if own or row is best else 0.5), text, fontsize=10.5, fontweight=weight, **style
            )
            note = "planner" if own else "best" if row is best else ""
            panel.text(j + 0.5, i + 0.25, note, fontsize=8.5, **style)
        if own or row is best:
            line = "--" if own else "-"
            panel.add_patch(
                Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, fill=False, edgecolor=ON_PALE, linewidth=2, linestyle=line)
            )


def _tint(study: Study, row: Row) -> float:
    """The ratio by which a cell is coloured: 1 where it may be noise."""
    return shown(row).median if study.differs(row) else 1.0


def _cell_text(study: Study, row: Row) -> str:
    if study.is_own(row):
        return "1"
    ratio = shown(row).median
    return (f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}") + "?" * study.in_doubt(row)


def with_unit(name: str) -> str:
    """The field with the unit that its values are in."""
    last = name.rpartition("_")[2]
    units = {"mc": "token rows", "kc": "elements of k", "walk": "panels", "grain": "tasks", "q": "token rows"}
    units |= {"threads": "threads", "rows": "token rows", "l1": "elements", "l0": "elements", "k": "token rows"}
    return f"{name}, {units.get(last, 'count')}"
