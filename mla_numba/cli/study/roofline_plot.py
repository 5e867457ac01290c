"""The roofline of a study: operations a second of every plan under what the machine was measured to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...tuning.study import Row
from ..chart_style import FASTER, INK, PAPER, SLOWER, head, log_axis, tokens_text
from ..shown import beyond_limit, share_text
from .results import Study, shown

__all__ = ["draw_roofline"]


def draw_roofline(study: Study) -> Any:
    """The figure. A plan's time is its ratio times the planner's own median in the calmest contest of that T and mode,
    so that a moment in which the machine was busy moves no point.
    """
    from matplotlib.figure import Figure

    rows = [row for row in study.rows if row.n_bytes and row.flops is not None and row.least_ms and row.baseline_ms]
    own_ms = _own_ms(rows)
    figure = Figure(figsize=(10, 6), layout="constrained")
    panel = figure.subplots()
    xs = [_ops_per_byte(row) for row in rows]
    low, high = min(xs) / 1.8, max(xs) * 2.6
    _roofs(panel, rows, study.rates, (low, high))
    shares = []
    for key, ms in own_ms.items():
        of_key = [row for row in rows if (row.t, row.quant) == key]
        for row in of_key:
            _plan(panel, row, ms * shown(row).median)
        whole = max(of_key, key=lambda row: -_ops_per_byte(row) if study.is_own(row) else -1e9)
        shares.append(_own(panel, whole, ms, key, len({row.quant for row in rows}) > 1))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(low, high)
    bottom, top = panel.get_ylim()
    panel.set_ylim(bottom, top * 1.25)
    log_axis(panel.xaxis, low, high)
    log_axis(panel.yaxis, bottom, top * 1.25)
    panel.tick_params(length=0)
    panel.set_xlabel("operations for each byte of weights, inputs and outputs")
    panel.set_ylabel("Gop/s")
    panel.grid(visible=True, linewidth=0.8)
    panel.set_axisbelow(True)
    how = "Line: what this machine allows. Diamonds: the planner's own plans, with their share of it. Dots: all others."
    beyond = beyond_limit(shares)
    head(figure, _message(own_ms, shares), f"{how} {beyond}".strip(), study.where, measured=study.measured)
    return figure


def _own_ms(rows: Sequence[Row]) -> dict[tuple[int, str], float]:
    """The planner's own least median by T and quant mode."""
    found: dict[tuple[int, str], float] = {}
    for row in sorted(rows, key=lambda row: (row.t, row.quant)):
        key = row.t, row.quant
        found[key] = min(found.get(key, row.baseline_ms or 0), row.baseline_ms or 0)
    return found


def _roofs(panel: Any, rows: Sequence[Row], rates: Mapping[str, float], span: tuple[float, float]) -> None:
    """A roof for each quant mode; the products' types are in one proportion at every T, so that it is one line."""
    bandwidth = rates["read_gb_s"]
    bf16 = max(rates["fma_gflop_s"], rates.get("bf16_gflop_s") or 0)
    low, high = span
    tops = {row.quant: _ops(row) / ((row.flops or 0) / bf16 + (row.int8_ops or 0) / rates["dot_gop_s"]) for row in rows}
    for number, (quant, top) in enumerate(tops.items()):
        xs = [low, min(max(top / bandwidth, low), high), high]
        panel.plot(xs, [min(top, x * bandwidth) for x in xs], color=INK, linestyle=("-", "--", "-.", ":")[number % 4])
        limit = f"memory {bandwidth:.0f} GB/s" + (f", arithmetic {top:,.0f} Gop/s" if xs[1] < high else "")
        mode = f"quant {quant}: " if len(tops) > 1 else "limit: "
        panel.annotate(
            mode + limit, (high, min(top, high * bandwidth)), xytext=(-6, 7), textcoords="offset points", ha="right"
        )


def _plan(panel: Any, row: Row, ms: float) -> None:
    """A dot; one above the roof is a hollow triangle."""
    beyond = (row.least_ms or 0) > ms
    style = {"marker": "^", "markerfacecolor": "none"} if beyond else {"marker": "o", "alpha": 0.45}
    panel.plot([_ops_per_byte(row)], [_ops(row) / ms / 1e6], color=SLOWER if beyond else FASTER, **style, markersize=6)


def _own(panel: Any, row: Row, ms: float, key: tuple[int, str], with_mode: bool) -> float:
    """The planner's own plan: a diamond with its share of the limit, which is given back."""
    share = (row.least_ms or 0) / ms
    at = _ops_per_byte(row), _ops(row) / ms / 1e6
    panel.plot([at[0]], [at[1]], "D", color=SLOWER if share > 1 else FASTER, markersize=10, markeredgecolor=PAPER)
    label = f"{tokens_text(key[0])}{f', quant {key[1]}' * with_mode}: {share_text(share)}"
    panel.annotate(label, at, xytext=(10, -14), textcoords="offset points", fontweight="bold", color=INK)
    return share


def _message(own_ms: Mapping[tuple[int, str], float], shares: Sequence[float]) -> str:
    real = [share for share in shares if share <= 1]
    if not real:
        return "Faster than the rates measured beside it allow: no share of the limit can be told"
    tokens = [t for t, _ in own_ms]
    span = f"{tokens[0]} to {tokens[-1]:,} tokens" if len(set(tokens)) > 1 else tokens_text(tokens[0])
    least, most = f"{min(real):.0%}", f"{max(real):.0%}"
    share = least if least == most else f"{least} to {most}"
    return f"The planner's plans reach {share} of what the machine allows, {span}"


def _ops(row: Row) -> int:
    return (row.flops or 0) + (row.int8_ops or 0)


def _ops_per_byte(row: Row) -> float:
    return _ops(row) / (row.n_bytes or 1)
