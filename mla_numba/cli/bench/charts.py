"""Charts of bench results as SVG text; needs matplotlib (extra `plot`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from ..shown import PICTURE_WIDTH
from .results import Group

__all__ = ["bars", "lines"]

_OURS, _OTHER, _LIMIT = "#0b6e8a", "#b9b3a6", "#c2410c"
_PEER_COLOURS = ("#8c6d31", "#637939", "#843c39", "#7b4173", "#5254a3", "#555555", "#999999")
_OUR_COLOURS = ("#0b6e8a", "#2a9db8", "#6cc3d5", "#084759")
_SETTINGS = {"font.size": 10, "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False}


def bars(group: Group) -> str:
    """A bar a row: the median, a tick at the fastest round, and a line at the least time, where there is one."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows, least = group.rows, group.least
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(PICTURE_WIDTH, 0.9 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        places = range(len(rows))
        medians = [row.median_s * 1e3 for row in rows]
        axes.barh(places, medians, color=[_OURS if row.is_ours else _OTHER for row in rows], height=0.7)
        for place, row in zip(places, rows, strict=True):
            axes.plot([row.min_s * 1e3] * 2, [place - 0.35, place + 0.35], color="black", linewidth=1)
            axes.annotate(
                f"{row.median_s * 1e3:.3g}", (row.median_s * 1e3, place), xytext=(4, 0), textcoords="offset points",
                verticalalignment="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
        if least is not None:
            limit, of_all = least
            axes.axvline(limit * 1e3, color=_LIMIT, linestyle="--", linewidth=1.2)
            whose = "" if of_all or group.baseline is None else f" for {group.baseline.name}"
            note = f"dashed: least possible{whose}, {limit * 1e3:.3g} ms"
            axes.set_title(note, loc="right", fontsize=9, color=_LIMIT)
        axes.set_yticks(list(places), [row.name for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, max(medians) * 1.1)
        axes.set_xlabel("median time of a call, ms (black tick: fastest)")
        return _svg(figure)


def lines(groups: Sequence[Group]) -> str:
    """Time against tokens for the groups of one family and cache state: a line an implementation."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    tokens = sorted({group.t for group in groups if group.t is not None})
    names = sorted({row.name for group in groups for row in group.rows})  # so that a colour stays with its name
    ours, others = ([name for name in names if name.startswith("mla_numba") == mine] for mine in (True, False))
    colours = {name: _OUR_COLOURS[i % len(_OUR_COLOURS)] for i, name in enumerate(ours)}
    colours |= {name: _PEER_COLOURS[i % len(_PEER_COLOURS)] for i, name in enumerate(others)}
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(PICTURE_WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        for name in (*ours, *others):
            points = [
                (group.t, row.median_s * 1e3)
                for group in groups
                for row in group.rows
                if row.name == name and group.t is not None
            ]
            mine = name in ours
            axes.plot(
                *zip(*sorted(points), strict=True), marker="o" if mine else ".", linewidth=2 if mine else 1.2,
                color=colours[name], label=name,
            )  # fmt: skip
        limits = sorted((group.t, group.least[0] * 1e3) for group in groups if group.t and group.least)
        if len(limits) > 1:
            axes.plot(*zip(*limits, strict=True), linestyle="--", color=_LIMIT, label="least possible")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(tokens)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("tokens of a call, T")
        axes.set_ylabel("median time, ms")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
        return _svg(figure)


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
