"""The pictures of a study, by matplotlib (the extra `plot`), as PNG files 1000 pixels wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...base.output_file import output_file
from ...tuning.study import Row
from ..chart_style import SETTINGS
from .heat_map import Axis, axes_of, draw_heat_map
from .ratio_plot import draw_ratios
from .results import Study, value_text
from .roofline_plot import draw_roofline

__all__ = ["PICTURES", "draw_all", "figures"]

PICTURES = ("heat_map.png", "one_field.png", "unroll_lists.png", "presets.png", "roofline.png")

_DPI = 100  # of 10 inches


def draw_all(folder: Path, record: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Draws what the rows give; the files. A picture of an earlier study that this one does not give is deleted.

    `record`: what `sweep.json` holds beside the rows. Raises `ImportError` without matplotlib.
    """
    paths = []
    made = figures(record, rows)
    for name in PICTURES:
        if name not in made:
            (folder / name).unlink(missing_ok=True)
    for name, figure in made.items():
        paths.append(folder / name)
        with output_file(paths[-1]) as file:
            figure.savefig(file, format="png", dpi=_DPI)
    return paths


def figures(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The figures by the names of their files.

    Two integer fields that varied give a heat map, one alone a plot of ratios, unroll lists and presets one too; every
    study gives a roofline. Raises `ImportError` without matplotlib.
    """
    from matplotlib import rc_context

    study = Study.of(record, rows)
    if not study.rows:
        return {}
    made = {}
    with rc_context(SETTINGS):
        axes = axes_of(study.rows)
        if len(axes) == 2:
            made["heat_map.png"] = draw_heat_map(study, *axes)
        elif axes:
            made["one_field.png"] = _one_field(study, axes[0])
        for field, what in (("unroll_list", "unroll lists"), ("preset", "presets")):
            values = {row.number: value_text(row.settings[field]) for row in study.rows if row.settings.get(field)}
            if len(set(values.values())) > 1:
                made[f"{field}s.png"] = draw_ratios(study, values, what)
        made["roofline.png"] = draw_roofline(study)
    return made


def _one_field(study: Study, axis: Axis) -> Any:
    labels = axis.labels
    of_axis = sorted((row for row in study.rows if axis.name in row.settings), key=lambda row: row.settings[axis.name])
    values = {row.number: f"{axis.name} {labels[axis.place[row.settings[axis.name]]]}" for row in of_axis}
    return draw_ratios(study, values, f"values of {axis.name}")
