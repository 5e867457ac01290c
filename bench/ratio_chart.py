"""Draw a recorded comparison with PyTorch, and write its figures into the pages that quote them.

`python bench/compare_peers.py --rounds 30 --threads 2 --record docs/runs/zen5.json --cpu "AMD EPYC (Zen 5)"` records
one; `python bench/ratio_chart.py` then writes docs/pictures/ratios.svg and what stands between `<!-- NAME -->` and
`<!-- /NAME -->` in README.md and docs/performance.md. `--check` writes nothing and fails where a file differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

import mla_numba as mla
from mla_numba.cli.bench.names import COMPOSITIONS

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "runs" / "zen5.json"
CHART = Path("docs/pictures/ratios.svg")
PAGES = (Path("README.md"), Path("docs/performance.md"))
OURS = "mla_numba"

PEERS = COMPOSITIONS
DRAWN = ("P1t", "P2p", "P3w")

WIDTH, LEFT, RIGHT, TOP = 800, 130, 60, 110
AXIS = "time of a call in PyTorch / time in mla_numba"
BAR, BAR_STEP, GROUP_GAP = 15, 18, 16

STYLE = """\
    text { font: 13px system-ui, sans-serif; fill: #1f2328; }
    .title { font-size: 19px; font-weight: 700; }
    .name { font-weight: 600; }
    .small { font-size: 11.5px; fill: #57606a; }
    .ours { stroke: #1f2328; stroke-width: 1.5; stroke-dasharray: 4 3; }
    .P1t { fill: #e69f00; }
    .P2p { fill: #56b4e9; }
    .P3w { fill: #0072b2; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .small { fill: #9198a1; }
      .ours { stroke: #e6edf3; }
      .P2p { fill: #a5daf7; }
      .P3w { fill: #3d8fd1; }
    }"""


class Ratios(NamedTuple):
    """One number of tokens: our median, and each composition's time over ours."""

    tokens: int
    ms: float
    ratios: dict[str, float]


def read_rows(run: Mapping[str, Any]) -> list[Ratios]:
    """The rows of a run that `compare_peers.py --record` wrote."""
    if run["dims"] != str(mla.MlaDims.deepseek_v32()):
        raise click.ClickException(f"dims: expected those of DeepSeek-V3.2, got {run['dims']}")
    rows = []
    for result in run["results"]:
        timed = {row["name"]: row for row in result["implementations"]}
        missing = [name for name in (OURS, *PEERS) if name not in timed]
        if missing:
            raise click.ClickException(f"{result['tokens']} tokens: expected every composition, {missing} are missing")
        ratios = {name: timed[name]["ratio_paired_median"] for name in PEERS}
        rows.append(Ratios(result["tokens"], timed[OURS]["median_ms"], ratios))
    return rows


def conditions(run: Mapping[str, Any]) -> str:
    """The machine and the settings, in a phrase."""
    threads = re.search(r"torch (\d+)", run["threads"])
    torch = re.search(r"torch ([\d.]+)", run["versions"])
    if not threads or not torch:
        raise click.ClickException(f"expected torch's threads and version, got {run['threads']!r}, {run['versions']!r}")
    return f"{run['cpu']}, {threads[1]} threads each, PyTorch {torch[1].rstrip('.')}, median of {run['rounds']} rounds"


def draw(rows: list[Ratios], where: str) -> str:
    """The chart as SVG text."""
    group = BAR_STEP * len(DRAWN) + GROUP_GAP
    bottom = TOP + group * len(rows)
    scale = (WIDTH - LEFT - RIGHT) / max(row.ratios[name] for row in rows for name in DRAWN)
    title = f"PyTorch takes {span([row.ratios[name] for row in rows for name in DRAWN])} times as long as mla_numba"
    parts = [f'<text class="title" x="12" y="27">{title}</text>']
    for x, name in zip((12, 262, 512), DRAWN, strict=True):
        parts.append(f'<rect class="{name}" x="{x}" y="46" width="13" height="13" rx="2"/>')
        parts.append(f'<text x="{x + 19}" y="57">{PEERS[name]}</text>')
    one = LEFT + scale
    parts.append(f'<text class="name" x="{one:.1f}" y="91" text-anchor="middle">mla_numba = 1</text>')
    for i, row in enumerate(rows):
        y = TOP + i * group
        middle = y + (group - GROUP_GAP) / 2
        tokens = "1 token" if row.tokens == 1 else f"{row.tokens} tokens"
        parts.append(f'<text class="name" x="{LEFT - 14}" y="{middle:.1f}" text-anchor="end">{tokens}</text>')
        ours = f"ours: {row.ms:.3g} ms"
        parts.append(f'<text class="small" x="{LEFT - 14}" y="{middle + 16:.1f}" text-anchor="end">{ours}</text>')
        for j, name in enumerate(DRAWN):
            ratio, top = row.ratios[name], y + j * BAR_STEP
            width = ratio * scale
            parts.append(f'<rect class="{name}" x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2"/>')
            parts.append(f'<text x="{LEFT + width + 6:.1f}" y="{top + 12}">{ratio:.2f}</text>')
    parts.append(f'<path class="ours" d="M{one:.1f} 98V{bottom - GROUP_GAP + 6}"/>')
    parts.append(f'<text class="small" x="{LEFT}" y="{bottom + 10}">{AXIS}</text>')
    parts.append(f'<text class="small" x="{LEFT}" y="{bottom + 28}">{where}</text>')
    body = "\n".join(f"  {part}" for part in parts)
    said = "; ".join(f"{row.tokens}: {', '.join(f'{row.ratios[name]:.2f}' for name in DRAWN)}" for row in rows)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-labelledby="title desc">
  <title id="title">{title}</title>
  <desc id="desc">By tokens of a call, {", ".join(PEERS[name] for name in DRAWN)}: {said}.</desc>
  <style>
{STYLE}
  </style>
{body}
</svg>
"""


def span(values: list[float]) -> str:
    """The range of some ratios; one number where they are alike."""
    least, most = f"{min(values):.2f}", f"{max(values):.2f}"
    return least if least == most else f"{least} to {most}"


def table(rows: list[Ratios]) -> str:
    """All compositions, a row a number of tokens."""
    lines = [f"| T | mla_numba, median ms | {' | '.join(PEERS.values())} |", "|---" * (len(PEERS) + 2) + "|"]
    for row in rows:
        ratios = " | ".join(f"{row.ratios[name]:.2f}" for name in PEERS)
        lines.append(f"| {row.tokens} | {row.ms:.3g} | {ratios} |")
    return "\n".join(lines)


def pieces(rows: list[Ratios], where: str) -> dict[str, str]:
    """What the pages quote, by the name of its place."""
    best = [min(row.ratios.values()) for row in rows]
    eager = [row.ratios["P1t"] for row in rows]
    few, many = rows[0].tokens, rows[-1].tokens
    return {
        "best": span(best),
        "eager": span(eager),
        "tokens": f"{few} to {many} tokens",
        "conditions": where,
        "ratios": f"\n\n{table(rows)}\n\n",
    }


def fill(text: str, places: Mapping[str, str]) -> str:
    """The page with each place filled anew."""
    for name, piece in places.items():
        text = re.sub(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", lambda m, p=piece: m[1] + p + m[2], text, flags=re.S)
    return text


def render(run: Mapping[str, Any]) -> dict[Path, str]:
    """All files that show the run, by their path in the checkout."""
    rows, where = read_rows(run), conditions(run)
    places = pieces(rows, where)
    pages = {page: fill((ROOT / page).read_text(encoding="utf-8"), places) for page in PAGES}
    return {CHART: draw(rows, where), **pages}


@click.command()
@click.option("--record", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=RECORD)
@click.option("--check", is_flag=True, help="Write nothing; fail where a file is not what the record says.")
def main(record: Path, check: bool) -> None:
    """Draw the chart and write the figures of README and docs/performance.md from a recorded run."""
    for path, text in render(json.loads(record.read_text(encoding="utf-8"))).items():
        file = ROOT / path
        if check and (not file.exists() or file.read_text(encoding="utf-8") != text):
            raise click.ClickException(f"{path}: expected what {record.name} says; run python bench/ratio_chart.py")
        if not check:
            file.write_text(text, encoding="utf-8")
            click.echo(str(path))


if __name__ == "__main__":
    main()
