"""One HTML page of bench results, with all that it shows inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from ..shown import beyond_limit, share_text
from .charts import bars, lines
from .results import Group, Results, Timing

__all__ = ["make_page"]

_STYLE = """
body { max-width: 1000px; margin: 1.5rem auto; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif; color: #1c1c1c; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.3rem; }
table { border-collapse: collapse; font-size: 13px; width: 100%; margin: 0.4rem 0; }
th, td { padding: 0.15rem 0.5rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { border-bottom: 1px solid #999; font-weight: 600; }
td.text, th.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr.ours td { background: #e8f3f6; }
img { width: 100%; } code { overflow-wrap: anywhere; } .note { color: #555; font-size: 13px; }
details { font-size: 13px; }
"""
_NOTE = (
    "Times are of whole calls, in milliseconds. Each bench ran by itself, one after the other, so that a slow spell of "
    "the machine falls on one of them: ratios below 1.1 need <code>bench/compare_peers.py</code>, which takes turns. "
    "The share of the roofline is the least time that the machine's rates allow, measured right before and after each "
    "bench, over the fastest round; where it passes 100 %, it is marked. GB/s and "
    "Gop/s are at the median, and of the work, whatever an implementation makes of it. Machine GB/s is the read "
    "bandwidth measured beside a bench: rows of a group compare only where it is about the same."
)
_HEADINGS = (
    "min ms",
    "median ms",
    "IQR ms",
    "rounds",
    "time / ours",
    "GB/s",
    "Gop/s",
    "share of roofline",
    "machine GB/s",
)


def make_page(results: Results, command: str) -> str:
    """The page as text; `command` is how its results came about."""
    facts = {"command": command} | results.facts
    rows = "".join(
        f'<tr><td class="text">{escape(n)}</td><td class="text">{escape(v)}</td></tr>' for n, v in facts.items()
    )
    families = results.families
    links = "".join(f'<li><a href="#f{i}">{escape(_heading(*family))}</a></li>' for i, family in enumerate(families))
    parts = [_family(i, _heading(*family), groups) for i, (family, groups) in enumerate(families.items())]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>mla_numba benches</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>mla_numba benches</h1><table>{rows}</table>"
        f'<p class="note">{_NOTE}</p>{_left_out_list(results.left_out)}<ul>{links}</ul>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _left_out_list(reasons: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f"<p>Left out:</p><ul>{lines}</ul>" if reasons else ""


def _heading(family: str, state: str) -> str:
    return f"{family}, weights {state}" if state else family


def _family(i: int, heading: str, groups: Sequence[Group]) -> str:
    text = f'<h2 id="f{i}">{escape(heading)}</h2>'
    if len({group.t for group in groups}) > 1:
        text += _image(lines(groups), f"{heading}: time against tokens")
    return text + "".join(_group(group, heading) for group in groups)


def _group(group: Group, heading: str) -> str:
    title = "" if group.title == heading else f"<h3>{escape(group.title)}</h3>"
    baseline = group.baseline
    headings = "".join(f"<th>{name}</th>" for name in _HEADINGS)
    shortest = group.rows[0].median_s * 1e3
    decimals = 4 if shortest < 1 else 3 if shortest < 100 else 1
    body = "".join(_row_of_table(row, baseline, decimals) for row in group.rows)
    beyond = escape(beyond_limit(row.share for row in group.rows))
    beyond = beyond and f'<p class="note">{beyond}</p>'
    made_of = "".join(f"<li><b>{escape(row.name)}</b>: {escape(_details(row))}</li>" for row in group.rows)
    return (
        f"{title}{_image(bars(group), group.title)}"
        f'<table><tr><th class="text">implementation</th>{headings}</tr>{body}</table>'
        f"{beyond}<details><summary>plans, operators, checks</summary><ul>{made_of}</ul></details>"
    )


def _row_of_table(row: Timing, baseline: Timing | None, decimals: int) -> str:
    cells = [f"{seconds * 1e3:.{decimals}f}" for seconds in (row.min_s, row.median_s, row.iqr_s)]
    cells += [str(row.rounds), "" if baseline is None else f"{row.median_s / baseline.median_s:.2f}"]
    cells += ["" if rate is None else f"{rate:.1f}" for rate in (row.gb_per_s, row.gop_per_s)]
    cells.append("" if row.share is None else share_text(row.share))
    cells.append("" if row.machine_gb_s is None else f"{row.machine_gb_s:.0f}")
    kind = ' class="ours"' if row.is_ours else ""
    return f"<tr{kind}>{_text_cell(row.name)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _text_cell(value: str) -> str:
    return f'<td class="text">{escape(value)}</td>'


def _details(row: Timing) -> str:
    return "; ".join(filter(None, (row.made_of, row.weights and f"weights {row.weights}", f"checked {row.verified}")))


def _image(svg: str, alt: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
