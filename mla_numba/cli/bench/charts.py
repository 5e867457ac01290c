"""Charts of bench results as SVG text; needs matplotlib (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..chart_style import FASTER, MUTED, OTHERS, SETTINGS, log_axis, plain, svg_text
from .names import full_name
from .results import Group

__all__ = ["lines"]

_OUR_COLOURS = (FASTER, "#2a9db8", "#6f9fd8", "#5b7fc7")
_LABEL_STEP = 1.16  # of the time axis: labels at the lines' ends stand at least so far apart, as a ratio


def lines(groups: Sequence[Group], title: str) -> str:
    """Time against tokens for the groups of one family and cache state: a line an implementation, named at its end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    tokens = sorted({group.t for group in groups if group.t is not None})
    names = list(dict.fromkeys(row.name for group in groups for row in group.rows))
    colours = _colours(names)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        axes = figure.subplots()
        ends = {}
        for name in names:
            points = [(group.t, row.median_s * 1e3) for group in groups for row in group.rows if row.name == name]
            xs, ys = zip(*sorted((t, ms) for t, ms in points if t is not None), strict=True)
            mine = name.startswith("mla_numba")
            style: dict[str, Any] = {"marker": "o", "linewidth": 2.6 if mine else 1.3, "markersize": 6 if mine else 4}
            axes.plot(xs, ys, color=colours[name], zorder=3 if mine else 2, **style)
            ends[name] = (xs[-1], ys[-1])
        limits = sorted((group.t, group.least[0] * 1e3) for group in groups if group.t and group.least)
        if len(limits) > 1:
            axes.plot(*zip(*limits, strict=True), linestyle="--", color=MUTED, linewidth=1.3)
            ends[""] = limits[-1]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlim(tokens[0] / 1.15, tokens[-1] * 1.05)
        low, high = axes.get_ylim()
        log_axis(axes.yaxis, low, high)
        axes.set_xticks(tokens, [f"{t:,}" for t in tokens])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(length=0)
        axes.set_xlabel("tokens of a call")
        axes.set_ylabel("ms")
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)
        _label_ends(axes, ends, colours, tokens[-1])
        return svg_text(figure, title, themed_by_page=True)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, which it has in every chart of a page with the same names."""
    ours = [name for name in sorted(names) if name.startswith("mla_numba")]
    others = [name for name in sorted(names) if name not in ours]
    ours.sort(key=lambda name: name != "mla_numba-b")
    colours = {name: _OUR_COLOURS[i % len(_OUR_COLOURS)] for i, name in enumerate(ours)}
    return colours | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def _label_ends(axes: Any, ends: dict[str, tuple[float, float]], colours: dict[str, str], last: int) -> None:
    """The name of each line right of its end, moved apart where they would overlap, the fastest at the bottom."""
    at = 0.0
    low, high = axes.get_ylim()
    step = max(_LABEL_STEP, (high / low) ** 0.052)
    for name, (_, ms) in sorted(ends.items(), key=lambda end: end[1][1]):
        at = max(ms, at * step)
        text = f"{full_name(name)}: {plain(ms)}" if name else f"least possible: {plain(ms)}"
        weight = "bold" if name.startswith("mla_numba") else "normal"
        axes.annotate(
            text, (last, at), xytext=(10, 0), textcoords="offset points", va="center", fontsize=10, fontweight=weight,
            color=colours.get(name, MUTED), annotation_clip=False,
        )  # fmt: skip
