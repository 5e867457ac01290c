"""One HTML page of bench results, with all that it shows inside; needs matplotlib and Jinja2 (extra `plot`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..chart_style import THEME, plain, tokens_text
from ..shown import beyond_limit, share_text
from .charts import lines
from .findings import Finding, finding, milliseconds, span, where
from .names import full_name
from .results import Group, Results, Timing

__all__ = ["make_head", "make_page"]

_PARTS = {
    "prolog": "Whole calls",
    "attention": "Indexer and sparse attention",
    "sweeps": "Sweeps of a call",
    "products": "Single products",
    "packing": "Packing the weights",
    "cold start": "Cold start",
    "": "Other benches",
}
_ATTENTION = ("indexer prolog", "lightning index", "sparse attention")
_MOST_TICKS = 8
_MOST_REASONS = 3  # shown of one name
_TICKS = (0.001, 0.01, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000, 10_000)


def make_page(results: Results, command: str) -> str:
    """The page as text; `command` is how its results came about."""
    return _render(
        "page.html.j2",
        **_first(results),
        left_out=_by_name(results.left_out),
        parts=_parts(results),
        facts={"command": command} | results.facts,
    )


def make_head(results: Results) -> tuple[str, str]:
    """The style of the page, and what stands on it first, as well-formed XML: for a picture of it."""
    return _render("style.css.j2", theme=THEME), _render("head.html.j2", **_first(results))


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"tokens": tokens_text, "plain": plain, "ms": milliseconds, "full_name": full_name}
    text: str = environment.get_template(template).render(**values)
    return text


def _first(results: Results) -> dict[str, Any]:
    """What the head of the page shows."""
    found = finding(results)
    return {
        "theme": THEME,
        "share": lambda value: "" if value is None else share_text(value),
        "headline": found.headline if found else "Benches of mla_numba",
        "where": where(results),
        "found": found,
        "chart": None if found is None or not found.peers else _chart(found),
        "day": results.facts.get("run", ""),
        "unfinished": results.unfinished,
        "failed": results.failed,
    }


def _chart(found: Finding) -> dict[str, Any]:
    """Peers as dots on a logarithmic scale of time over ours; places are percentages of the width."""
    values = [ratio for peer in found.peers for ratio in peer.ratios.values()]
    low, high = min(0.95, *values) / 1.03, max(1.5, *values) * 1.06

    def place(ratio: float) -> float:
        return round(100 * math.log(ratio / low) / math.log(high / low), 2)

    tokens = list(found.seconds)
    sizes = {t: 9 + round(7 * i / max(1, len(tokens) - 1)) for i, t in enumerate(tokens)}
    rows = []
    for peer in found.peers:
        dots = [
            (place(ratio), sizes[t], tokens.index(t), f"{tokens_text(t)}: {ratio:.2f}")
            for t, ratio in peer.ratios.items()
        ]
        at = [dot[0] for dot in dots]
        rows.append(
            {"name": peer.name, "span": span(list(peer.ratios.values())), "dots": dots, "from": min(at), "to": max(at)}
        )
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    ticks = [tick for tick in ticks if len(ticks) <= _MOST_TICKS or math.log10(tick).is_integer()]
    return {
        "rows": rows,
        "ticks": [(place(tick), f"{tick:g}") for tick in ticks],
        "one": place(1),
        "sizes": list(enumerate(sizes.items())),
    }


def _by_name(reasons: Sequence[str]) -> dict[str, list[str]]:
    """What was left out by its name in words, with some of the reasons."""
    found: dict[str, list[str]] = {}
    for reason in reasons:
        name, known, why = reason.partition(" left out: ")
        if not known:
            name, known, why = reason.partition(" is not installed")
            why = "is not installed" if known else ""
        found.setdefault(full_name(name), []).append(why)
    more = {name: len(whys) - _MOST_REASONS for name, whys in found.items()}
    return {
        name: [*whys[:_MOST_REASONS], *([f"and {more[name]} reasons of this kind more"] if more[name] > 0 else [])]
        for name, whys in found.items()
    }


def _parts(results: Results) -> list[dict[str, Any]]:
    """Parts of the suite in the order of `_PARTS`; in each its families with a chart and a table a group."""
    parts: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _PARTS}
    for (family, state), groups in results.families.items():
        heading = f"{family}, weights {state}" if state else family
        parts[_kind(family)].append(
            {
                "heading": heading,
                "chart": lines(groups, f"{heading}: time against tokens") if _has_lines(groups) else "",
                "groups": [_group(group) for group in sorted(groups, key=lambda group: group.t or 0)],
            }
        )
    named = [(name, parts[kind]) for kind, name in _PARTS.items() if parts[kind]]
    return [{"id": f"part{i}", "name": name, "families": families} for i, (name, families) in enumerate(named)]


def _kind(family: str) -> str:
    if " product, " in family:
        return "products"
    if family in _ATTENTION:
        return "attention"
    return next((kind for kind in _PARTS if kind and family.startswith(kind)), "")


def _has_lines(groups: Sequence[Group]) -> bool:
    return len({group.t for group in groups if group.t is not None}) > 1


def _group(group: Group) -> dict[str, Any]:
    """A table: what its summary says, and its rows."""
    least, slowest = group.rows[0].median_s, group.rows[-1].median_s
    ours = group.baseline
    title = tokens_text(group.t) if group.t is not None else group.title
    said = "" if ours is None else f": {milliseconds(ours.median_s)} ms"
    others = [row for row in group.rows if not row.is_ours]
    if ours is not None and others:
        said += f"; {full_name(others[0].name)} takes {plain(others[0].median_s / ours.median_s)} times as long"
    return {
        "title": title + said,
        "is_open": group.t is None,
        "rows": [_row(row, ours, (least, slowest)) for row in group.rows],
        "beyond": beyond_limit(row.share for row in group.rows),
        "details": [(full_name(row.name), _details(row)) for row in group.rows],
        "has_ratio": ours is not None,
        "has_work": any(row.n_bytes for row in group.rows),
    }


def _row(row: Timing, ours: Timing | None, span_s: tuple[float, float]) -> Mapping[str, Any]:
    """A line of a table; `bar` is the median's place on a logarithmic scale, in percent."""
    least, slowest = span_s
    whole = math.log(slowest / least * 1.6) or 1.0
    optional = {"gb_s": row.gb_per_s, "gop_s": row.gop_per_s, "machine_gb_s": row.machine_gb_s}
    return {
        "name": full_name(row.name),
        "is_ours": row.is_ours,
        "bar": round(100 * math.log(row.median_s / least * 1.6) / whole, 1),
        "median": milliseconds(row.median_s),
        "ratio": "" if ours is None else plain(row.median_s / ours.median_s),
        "min": milliseconds(row.min_s),
        "iqr": milliseconds(row.iqr_s),
        "rounds": f"{row.rounds:,}",
        "share": "" if row.least_s is None else share_text(row.share),
        **{name: "" if value is None else plain(value) for name, value in optional.items()},
    }


def _details(row: Timing) -> str:
    return "; ".join(filter(None, (row.made_of, row.weights and f"weights {row.weights}", f"checked {row.verified}")))
