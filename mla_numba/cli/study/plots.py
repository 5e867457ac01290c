"""The pictures of a study, by matplotlib (the extra `plot`): PNG files that are 1000 pixels wide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from ...base.output_file import output_file
from ...tuning.study import Row
from ..shown import PICTURE_WIDTH, no_share, share_text

__all__ = ["PICTURES", "draw_all", "heat_axes"]

PICTURES = ("heat_map.png", "unroll_lists.png", "roofline.png")

_DPI = 100
_PANELS = 3  # a line


def draw_all(folder: Path, rows: Sequence[Row], rates: Mapping[str, float], title: str) -> list[Path]:
    """Draws what the rows give: a heat map, times by unroll list, a roofline; the files.

    `rates` as `tuning.rates.rates_as_dict` has them. Raises `ImportError` without matplotlib.
    """
    from matplotlib.figure import Figure

    def new_figure(height: float) -> Any:
        return Figure(figsize=(PICTURE_WIDTH, height), dpi=_DPI, layout="constrained")

    timed = [row for row in rows if row.ratio is not None]
    drawn = []
    axes = heat_axes(timed)
    if axes is not None:
        of_axes = [row for row in timed if set(axes) <= set(row.settings)]
        n_panels = len({row.t for row in of_axes})
        figure = new_figure(1.2 + 3.6 * math.ceil(n_panels / _PANELS))
        _heat_map(figure, of_axes, axes)
        drawn.append((figure, PICTURES[0]))
    if len({_list_of(row) for row in timed if _list_of(row)}) > 1:
        figure = new_figure(6)
        _unroll_lists(figure, [row for row in timed if _list_of(row)])
        drawn.append((figure, PICTURES[1]))
    if timed:
        figure = new_figure(6)
        _roofline(figure, timed, rates)
        drawn.append((figure, PICTURES[2]))
    paths = []
    for figure, name in drawn:
        figure.suptitle(f"{figure.get_suptitle()}\n{title}", fontsize=11)
        paths.append(folder / name)
        with output_file(paths[-1]) as file:
            figure.savefig(file, format="png")
    return paths


def heat_axes(rows: Sequence[Row]) -> tuple[str, str] | None:
    """The two integer fields of one grid with the most values, in the order of the rows' settings; None without two."""
    grids: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        grids.setdefault(tuple(row.settings), []).append(row)
    fitting = [counts for counts in map(_two_most_varied, grids.values()) if len(counts) == 2]
    if not fitting:
        return None
    first, second = max(fitting, key=lambda counts: math.prod(counts.values()))
    return first, second


def _two_most_varied(rows: Sequence[Row]) -> dict[str, int]:
    """Up to two integer fields of a grid that vary the most, with their numbers of values."""
    counts = {
        name: len({row.settings[name] for row in rows})
        for name in rows[0].settings
        if all(isinstance(row.settings[name], int) for row in rows)
    }
    varied = sorted((name for name, n in counts.items() if n > 1), key=lambda name: -counts[name])
    return {name: counts[name] for name in varied[:2]}


def _heat_map(figure: Any, rows: Sequence[Row], axes: tuple[str, str]) -> None:
    """A panel for each T: the best ratio for each pair of values, over all other fields."""
    x_name, y_name = axes
    tokens = sorted({row.t for row in rows})
    xs, ys = (sorted({row.settings[name] for row in rows}) for name in axes)
    n_columns = min(_PANELS, len(tokens))
    panels = figure.subplots(math.ceil(len(tokens) / n_columns), n_columns, squeeze=False).ravel()
    ratios = [row.ratio for row in rows if row.ratio is not None]
    off = min(max(0.05, *(abs(ratio - 1) for ratio in ratios)), 0.3)
    image = None
    for panel, t in zip(panels, tokens, strict=False):
        best: dict[tuple[int, int], float] = {}
        for row in rows:
            if row.t == t and row.ratio is not None:
                at = ys.index(row.settings[y_name]), xs.index(row.settings[x_name])
                best[at] = min(row.ratio, best.get(at, math.inf))
        cells = [[best.get((i, j), math.nan) for j in range(len(xs))] for i in range(len(ys))]
        image = panel.imshow(cells, cmap="RdYlGn_r", vmin=1 - off, vmax=1 + off, origin="lower", aspect="auto")
        panel.set_facecolor("lightgrey")
        if len(xs) * n_columns <= 30:
            for (i, j), ratio in best.items():
                color = "white" if abs(ratio - 1) > 0.8 * off else "black"  # the scale's ends are dark
                panel.text(j, i, f"{ratio:.2f}", ha="center", va="center", fontsize=8, color=color)
        panel.set_title(f"T = {t} tokens", fontsize=10)
        panel.set_xticks(range(len(xs)), map(str, xs), rotation=90 if len(xs) > 6 else 0, fontsize=8)
        panel.set_yticks(range(len(ys)), map(str, ys), fontsize=8)
        panel.set_xlabel(_with_unit(x_name))
        panel.set_ylabel(_with_unit(y_name))
    for panel in panels[len(tokens) :]:
        panel.set_visible(False)
    figure.colorbar(image, ax=list(panels), label="time / time of the planner's own plan", extend="both")
    figure.suptitle("Time by blocks (green: faster than the planner's own plan, grey: not timed)")


def _unroll_lists(figure: Any, rows: Sequence[Row]) -> None:
    """Time of a call against T, a line for each unroll list; the best over all other fields."""
    panel = figure.subplots()
    tokens = sorted({row.t for row in rows})
    lists = list(dict.fromkeys(_list_of(row) for row in rows))
    for number, name in enumerate(lists):
        best = {t: min((row.median_ms for row in rows if row.t == t and _list_of(row) == name and row.median_ms),
                       default=None) for t in tokens}  # fmt: skip
        points = [(t, ms) for t, ms in best.items() if ms is not None]
        style = ("o-", "s--", "^-.", "v:")[number % 4]
        panel.plot(*zip(*points, strict=True), style, label=name, color=f"C{number % 10}")
    own = {t: min(row.baseline_ms for row in rows if row.t == t and row.baseline_ms is not None) for t in tokens}
    panel.plot(list(own), list(own.values()), "k*-", label="the planner's own tiles")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    _plain_numbers(panel.yaxis)
    panel.set_xticks(tokens, map(str, tokens))
    panel.xaxis.minorticks_off()
    panel.set_xlabel("T, tokens a call")
    panel.set_ylabel("time of a call, ms")
    panel.grid(visible=True, which="both", alpha=0.3)
    panel.legend(title="unroll list", fontsize=9)
    figure.suptitle("Time of a call by unroll list")


def _roofline(figure: Any, rows: Sequence[Row], rates: Mapping[str, float]) -> None:
    """Operations a second against operations a byte: every timed plan under the machine's measured limits."""
    panel = figure.subplots()
    points = [row for row in rows if row.n_bytes and row.flops is not None and row.gop_s]
    bandwidth = rates["read_gb_s"]
    bf16 = max(rates["fma_gflop_s"], rates.get("bf16_gflop_s", 0))
    # The products' types are in one proportion at every T, so arithmetic alone allows one rate.
    roofs = {
        row.quant: _ops(row) / ((row.flops or 0) / bf16 + (row.int8_ops or 0) / rates["dot_gop_s"]) for row in points
    }
    low, high = min(map(_ops_per_byte, points)) / 2, max(map(_ops_per_byte, points)) * 2
    for number, (quant, roof) in enumerate(roofs.items()):
        xs = [low, min(max(roof / bandwidth, low), high), high]
        label = f"limit: {bandwidth:.0f} GB/s" + (f", {roof:.0f} Gop/s" if high > roof / bandwidth else "")
        style = ("-", "--", "-.", ":")[number % 4]
        panel.plot(xs, [min(roof, x * bandwidth) for x in xs], "k" + style, label=f"{label} (quant {quant})")
    for number, t in enumerate(sorted({row.t for row in points})):
        of_t = [row for row in points if row.t == t]
        best = max(of_t, key=lambda row: row.gop_s or 0)
        color = f"C{number % 10}"
        panel.plot([_ops_per_byte(r) for r in of_t], [r.gop_s for r in of_t], ".", color=color, alpha=0.4)
        panel.plot(
            [_ops_per_byte(best)], [best.gop_s], "*", color=color, markersize=13,
            label=f"T = {t}: best {best.gop_s:.0f} Gop/s, {share_text(best.share)} of the limit",
        )  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        _plain_numbers(axis)
    panel.set_xlabel("operations by byte of weights, inputs and outputs, op/byte")
    panel.set_ylabel("operations by time, Gop/s")
    panel.grid(visible=True, which="both", alpha=0.3)
    panel.legend(fontsize=9, loc="lower right")
    beyond = no_share(row.share_reason for row in points)
    if beyond:
        panel.set_title("\n".join(wrap(beyond, 130)), fontsize=8, loc="left")
    figure.suptitle("Roofline: dots are plans, stars the best of each T")


def _plain_numbers(axis: Any) -> None:
    """Numbers such as 20 on a logarithmic axis, not powers of ten; few enough to stand apart."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ops(row: Row) -> int:
    return (row.flops or 0) + (row.int8_ops or 0)


def _ops_per_byte(row: Row) -> float:
    return _ops(row) / (row.n_bytes or 1)


def _list_of(row: Row) -> str:
    """The row's unroll list as text, empty if it has none."""
    value = row.settings.get("unroll_list")
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else ""


def _with_unit(name: str) -> str:
    """The field with the unit that its values are in."""
    last = name.rpartition("_")[2]
    units = {"mc": "token rows", "kc": "elements of k", "walk": "panels", "grain": "tasks", "q": "token rows"}
    units |= {"threads": "threads", "rows": "token rows", "l1": "elements", "l0": "elements", "k": "token rows"}
    return f"{name}, {units.get(last, 'count')}"
