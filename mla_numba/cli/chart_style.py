"""What all charts share: colours that the colour-blind tell apart, plain numbers, SVG that is readable light and dark.

Needs matplotlib (extra `plot`), which is imported where a chart is drawn.
"""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

__all__ = [
    "FASTER",
    "GRID",
    "INK",
    "MUTED",
    "ON_DARK",
    "ON_PALE",
    "OTHERS",
    "PAPER",
    "SAME",
    "SETTINGS",
    "SLOWER",
    "THEME",
    "head",
    "log_axis",
    "plain",
    "svg_text",
    "tokens_text",
]

ON_PALE, ON_DARK = "#101214", "#fefefe"  # text on colours that are the same on every page
INK, MUTED, GRID, PAPER = "#1f2328", "#57606a", "#d0d7de", "#ffffff"
FASTER, SLOWER, SAME = "#0072b2", "#d55e00", "#7b848e"
OTHERS = ("#d55e00", "#009e73", "#cc79a7", "#a67c00", "#7a5fd0", "#7b848e", "#b5651d", "#4c8f9e", "#b0475c")
# What stands in place of a colour where the page is dark; only these four stand on the page itself.
_DARK = {INK: "#e6edf3", MUTED: "#9198a1", GRID: "#3d444d", PAPER: "#0d1117"}
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}


class _Theme(NamedTuple):
    """The same colours as declarations of CSS, for a light and a dark page."""

    light: str
    dark: str


THEME = _Theme(
    "; ".join(f"--{name}: {colour}" for colour, name in _NAMES.items()),
    "; ".join(f"--{name}: {_DARK[colour]}" for colour, name in _NAMES.items()),
)

SETTINGS: dict[str, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mla_numba",
    "font.family": "sans-serif",
}


def plain(value: float, digits: int = 3) -> str:
    """A number with so many digits and never a power of ten: 0.0532, 12.3, 1,980."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def tokens_text(t: int) -> str:
    """A number of tokens."""
    return "1 token" if t == 1 else f"{t:,} tokens"


def log_axis(axis: Any, least: float, most: float) -> None:
    """Plain numbers on a logarithmic axis, few enough to stand apart."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    for subs in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [sub * 10.0**decade for decade in decades for sub in subs]
        ticks = [tick for tick in ticks if least * 0.999 <= tick <= most * 1.001]
        if len(ticks) <= 8:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def head(figure: Any, message: str, how_to_read: str, where: str, *, measured: str = "") -> None:
    """What the chart says above it, in bold, with what was `measured` and how to read it; below it where it is from.

    `figure` has the layout "constrained", which leaves room for them.
    """
    from textwrap import fill

    width, height = figure.get_size_inches()
    line = 0.2 / height
    message, measured, how_to_read, where = (
        fill(message, int(8.0 * width)),
        fill(measured, int(9.6 * width)),
        fill(how_to_read, int(11.6 * width)),
        fill(where, 132),
    )
    of_measured = 0.22 * (measured.count("\n") + 1) if measured else 0.0
    above = 0.28 + 0.24 * (message.count("\n") + 1) + of_measured + 0.19 * (how_to_read.count("\n") + 1)
    below = 0.1 + 0.18 * (where.count("\n") + 1)
    figure.get_layout_engine().set(rect=(0.01, below / height, 0.98, 1 - (above + below) / height))
    figure.text(0.015, 1 - 0.6 * line, message, fontsize=14, fontweight="bold", va="top")
    top = 1 - 0.6 * line - 0.25 * (message.count("\n") + 1) / height
    if measured:
        figure.text(0.015, top, measured, fontsize=12.5, va="top")
        top -= of_measured / height
    figure.text(0.015, top, how_to_read, fontsize=10.5, color=MUTED, va="top")
    figure.text(0.015, 0.35 * line, where, fontsize=9.5, color=MUTED, va="bottom")


def svg_text(figure: Any, title: str, *, themed_by_page: bool = False) -> str:
    """The figure as SVG text, dark where the reader's screen is.

    `title`: what it says, for those who hear it. `themed_by_page`: whether it stands in a page that has `--ink` and the
    others already; otherwise the SVG brings them along.
    """
    from html import escape

    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(SETTINGS):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    _, start, body = text.getvalue().partition("<svg ")
    for colour, name in _NAMES.items():
        body = body.replace(f": {colour}", f": var(--{name}, {colour})")
    body = body.replace("'DejaVu Sans', ", "system-ui, 'DejaVu Sans', ")
    opening, end, rest = body.partition(">")
    style = (
        ""
        if themed_by_page
        else f"<style>svg{{{THEME.light}}}@media (prefers-color-scheme:dark){{svg{{{THEME.dark}}}}}</style>"
    )
    return f'{start}role="img" aria-label="{escape(title)}" {opening}{end}{style}{rest}'
