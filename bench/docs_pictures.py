"""Show what a sweep, a search, a trace and the page of the benches look like, from runs recorded in docs/runs.

`python bench/docs_pictures.py` writes docs/pictures, and the table of the search into docs/tuning.md; `--check` writes
nothing and fails where a picture or the table is not what its record says. `--take-sweep FOLDER`, `--take-bench FILE`,
`--take-trace FILE` and `--take-tune FILE` put another run's files into docs/runs first, without what nothing shows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from textwrap import fill
from typing import Any
from xml.etree import ElementTree

import click
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console

from mla_numba.base.dims import MlaDims
from mla_numba.call.trace import PHASES
from mla_numba.cli.bench.findings import finding
from mla_numba.cli.bench.html_report import make_head
from mla_numba.cli.bench.results import Results
from mla_numba.cli.chart_style import FASTER, OTHERS, SETTINGS, head, svg_text, tokens_text
from mla_numba.cli.shown import TABLE_WIDTH
from mla_numba.cli.study.plots import figures
from mla_numba.cli.tuned.found import closing, found_from_dict, outcome_table
from mla_numba.tuning.study import Row

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "runs"
PICTURES = Path("docs/pictures")
REPORT_WIDTH = 1000
TUNE_PAGE = Path("docs/tuning.md")
TUNE_MARKS = ("<!-- tune -->", "<!-- /tune -->")

# What the pictures of a phase say, and its colour.
PHASE_NAMES = {"pack": "x in order", "down": "down", "query": "rows of the query", "key": "rows of the key",
               "heads": "heads"}  # fmt: skip
PHASE_COLOURS = dict(zip(PHASES, (OTHERS[5], FASTER, OTHERS[2], OTHERS[3], OTHERS[1]), strict=True))


def of_sweep(record: Mapping[str, Any]) -> dict[str, str]:
    """The pictures of a sweep."""
    names = {field.name for field in fields(Row)}
    rows = [Row(**{name: value for name, value in row.items() if name in names}) for row in record["rows"]]
    made = figures(record, rows)
    return {f"sweep_{name.removesuffix('.png')}.svg": svg_text(figure, said(figure)) for name, figure in made.items()}


def said(figure: Any) -> str:
    """The message of a chart."""
    return " ".join(figure.texts[0].get_text().split())


def of_trace(record: Mapping[str, Any]) -> dict[str, str]:
    """The first call: a line for each worker, a bar for each of its phases."""
    spans = [event for event in first_call(record) if event["ph"] == "X" and event["cat"] in PHASES]
    workers = sorted({span["tid"] for span in spans})
    end = max(span["ts"] + span["dur"] for span in spans) / 1e3
    busy = sum(span["dur"] for span in spans) / 1e3 / end / len(workers)
    tokens = max(span["args"]["t0"] + span["args"]["t"] for span in spans)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(10, 1.75 + 0.62 * len(workers)), layout="constrained")
        axes = figure.subplots()
        for span in spans:
            at, width = span["ts"] / 1e3, span["dur"] / 1e3
            axes.barh(workers.index(span["tid"]), width, left=at, height=0.72, color=PHASE_COLOURS[span["cat"]])
            if width > 0.12 * end:
                text = f"{PHASE_NAMES[span['cat']]}: {span['args']['tasks']} tasks"
                axes.text(at + width / 2, workers.index(span["tid"]), text, ha="center", va="center", color="#fefefe")
        axes.set_yticks(range(len(workers)), [f"worker {worker}" for worker in workers])
        axes.set_ylim(len(workers) - 0.5, -0.5)
        axes.set_xlim(0, end * 1.01)
        axes.set_xlabel("ms since the call began")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        message = (
            f"A call of {tokens_text(tokens)} takes {end:.2f} ms, and its workers are busy {busy:.0%} of that time"
        )
        narrow = [name for phase, name in PHASE_NAMES.items() if all(
            span["dur"] / 1e3 <= 0.12 * end for span in spans if span["cat"] == phase)]  # fmt: skip
        head(figure, message, f"Too narrow for their names: {', '.join(narrow)}.", "mla-numba run --trace")
        return {"trace.svg": svg_text(figure, message)}


def first_call(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The events of the first call of a trace, and those of none."""
    return [event for event in record["traceEvents"] if event.get("args", {}).get("call", 0) == 0]


def of_bench(record: Mapping[str, Any]) -> dict[str, str]:
    """What stands first on the page of the benches, as it stands there."""
    results = Results.of(record, "docs/runs/bench.json")
    style, body = make_head(results)
    found = finding(results)
    assert found is not None
    width, height = REPORT_WIDTH, 330 + 34 * (len(found.peers) + len(found.seconds))
    return {
        "report.svg": f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><style>{style}</style><foreignObject width="{width}" height="{height}">'
        f'<div xmlns="http://www.w3.org/1999/xhtml" class="page">{body}</div></foreignObject></svg>\n'
    }


def of_tune(record: Mapping[str, Any]) -> str:
    """What a search printed, with what was given and where it ran: the text between the marks in docs/tuning.md."""
    found = [found_from_dict(outcome) for outcome in record["outcomes"]]
    console = Console(width=TABLE_WIDTH, file=io.StringIO(), record=True)
    console.print(outcome_table(found))
    closings = [fill(closing(each), 138, replace_whitespace=False, break_on_hyphens=False) for each in found]
    busy = [fill(str(each.conditions), 138) for each in found if each.is_busy]
    table = [line.rstrip() for line in console.export_text().splitlines() if line.strip()]
    tokens = ",".join(str(each.outcome.t) for each in found)
    machine, dims = record["machine"], MlaDims(**record["dims"])
    sizes = "" if dims == MlaDims.deepseek_v32() else f" --dims {','.join(map(str, record['dims'].values()))}"
    command = f"mla-numba tune --tokens {tokens} --budget {record['budget']:g}{sizes}"
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    head = f"What it shows, here of `{command}` with {threads} on {machine['name']} ({machine['isa']}):"
    return "\n".join([head, "", "```text", *busy[:1], *table, "", *closings, "```"])


def with_tune(page: str, record: Mapping[str, Any]) -> str:
    """The page with another search's table between its marks."""
    before, _, rest = page.partition(TUNE_MARKS[0])
    _, _, after = rest.partition(TUNE_MARKS[1])
    return f"{before}{TUNE_MARKS[0]}\n\n{of_tune(record)}\n\n{TUNE_MARKS[1]}{after}"


DRAWN: dict[str, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    "sweep.json": of_sweep,
    "trace.json": of_trace,
    "bench.json": of_bench,
}


def render(name: str, text: str | None = None) -> dict[Path, str]:
    """The pictures of a record by their path in the checkout, each with a digest of the record.

    `text`: of the record; that of the file in docs/runs if it is None.
    """
    text = (RUNS / name).read_text(encoding="utf-8") if text is None else text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    drawn = DRAWN[name](json.loads(text))
    return {
        PICTURES / picture: svg.replace("<svg ", f'<svg data-record="{digest}" ', 1) for picture, svg in drawn.items()
    }


def shows_the_same(one: str, other: str) -> bool:
    """Whether two pictures are of the same record and say the same; another matplotlib may place things elsewhere."""
    first, second = (ElementTree.fromstring(svg) for svg in (one, other))
    return first.get("data-record") == second.get("data-record") and _texts(first) == _texts(second)


def _texts(svg: ElementTree.Element) -> list[str]:
    return [" ".join(text.split()) for text in svg.itertext() if text.strip()]


def small_sweep(record: dict[str, Any]) -> dict[str, Any]:
    """Rows without what no picture shows, with a digest in place of each plan."""
    kept = {field.name for field in fields(Row)} - {"times_ms", "own_times_ms", "wins", "gb_s", "gop_s", "share"}

    def small(value: Any) -> Any:
        return float(f"{value:.5g}") if isinstance(value, float) else value

    rows = [
        {name: small(value) for name, value in row.items() if name in kept and value not in (None, "")}
        | {"plan": _short(row["plan"])}
        for row in record["rows"]
    ]
    own = [plan | {"plan": _short(plan["plan"])} for plan in record["own_plans"]]
    sweep = {name: value for name, value in record["sweep"].items() if name != "jobs"}
    return record | {"rows": rows, "own_plans": own, "sweep": sweep}


def _short(plan: str) -> str:
    """A digest of a plan; of a digest itself."""
    return hashlib.sha256(plan.encode()).hexdigest()[:12] if len(plan) > 12 else plan


def small_bench(record: dict[str, Any]) -> dict[str, Any]:
    """The statistics that the page shows, without the times of single rounds."""
    kept = ("min", "median", "iqr", "rounds")
    benches = [
        {name: bench[name] for name in ("group", "name", "extra_info")}
        | {"stats": {name: bench["stats"][name] for name in kept}}
        for bench in record["benchmarks"]
    ]
    return record | {"benchmarks": benches}


def small_tune(record: dict[str, Any]) -> dict[str, Any]:
    """The outcomes with times to five digits, and without the folder."""

    def small(pairs: list[list[float]] | None) -> list[list[float]] | None:
        return pairs and [[float(f"{second:.5g}") for second in side] for side in pairs]

    outcomes = [
        outcome | {name: small(outcome[name]) for name in ("contest_pairs_s", "control_pairs_s")}
        for outcome in record["outcomes"]
    ]
    return {name: value for name, value in record.items() if name != "folder"} | {"outcomes": outcomes}


def take(source: Path, name: str, small: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Puts another run's record into docs/runs."""
    record = small(json.loads(source.read_text(encoding="utf-8")))
    lines = [f" {json.dumps(field)}: {_lines(value)}" for field, value in record.items()]
    (RUNS / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    """JSON with a line for each element of a long list."""
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"


@click.command()
@click.option("--take-sweep", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of --out.")
@click.option("--take-bench", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of --json.")
@click.option("--take-trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of --trace.")
@click.option("--take-tune", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of tune --json.")
@click.option("--check", is_flag=True, help="Write nothing; fail where a picture is not what its record says.")
def main(
    take_sweep: Path | None, take_bench: Path | None, take_trace: Path | None, take_tune: Path | None, check: bool
) -> None:
    """Draw the pictures of the pages from recorded runs."""
    if take_sweep is not None:
        take(take_sweep / "sweep.json", "sweep.json", small_sweep)
    if take_bench is not None:
        take(take_bench, "bench.json", small_bench)
    if take_trace is not None:
        take(take_trace, "trace.json", lambda record: record | {"traceEvents": first_call(record)})
    if take_tune is not None:
        take(take_tune, "tune.json", small_tune)
    for record in DRAWN:
        for path, text in render(record).items():
            file = ROOT / path
            same = file.exists() and shows_the_same(file.read_text(encoding="utf-8"), text)
            _put(path, text, record, same=same, check=check)
    page = (ROOT / TUNE_PAGE).read_text(encoding="utf-8")
    made = with_tune(page, json.loads((RUNS / "tune.json").read_text(encoding="utf-8")))
    _put(TUNE_PAGE, made, "tune.json", same=made == page, check=check)


def _put(path: Path, text: str, record: str, *, same: bool, check: bool) -> None:
    """Writes a file of the checkout, or says that it is not what its record says."""
    if check and not same:
        raise click.ClickException(f"{path}: expected what {record} says; run python bench/docs_pictures.py")
    if not check:
        (ROOT / path).write_text(text, encoding="utf-8")
        click.echo(str(path))


if __name__ == "__main__":
    main()
