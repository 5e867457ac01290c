"""The command `mla-numba sweep`: time many plans, check each, draw what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tiling import PRESETS
from tiling.pypto.presets import NPU_ARCHS

from ..._version import __version__
from ...call.planning import this_machine
from ...tuning.journal import Journal
from ...tuning.study import MAX_PAIRS, Effort, Job, Row, reasons_of, with_limits
from ..faults import own_plan_is_exact
from ..options import folder_to_write, layer_options, seed_option, token_list, weight_sets_option
from ..shown import print_wide
from .choice import Choice, own_plan
from .options import StudyOptions, check_files, parse_axes
from .plots import PICTURES, draw_all
from .tables import show_rows, write_csv, write_json
from .timing import open_journal, run_jobs

__all__ = ["sweep"]

_FILES = ("journal.jsonl", "sweep.csv", "sweep.json")
_MOST_SHOWN = 5  # of each T
_TABLE_WIDTH = 110


@click.command()
@click.option("--tokens", type=token_list, default="8,32,128", show_default=True, help="Tokens of a call, with commas.")
@click.option(
    "--set",
    "axes",
    multiple=True,
    callback=parse_axes,
    metavar="FIELD=VALUES",
    help="Vary a field of CpuTiling or of MlaTileConfig (cube tiles by entry, cube_qb_tile.k_l1): integers, ranges "
    "FIRST:LAST:STEP or FIRST:LAST:*FACTOR, lists, with commas. Repeat it for more fields: all combinations are tried."
    "  [default: down_kc with down_walk, then unroll_list]",
)
@click.option(
    "--where",
    multiple=True,
    metavar="EXPRESSION",
    help="Try only candidates for which this holds, such as 'down_mc % 12 == 0'; it may also name t, mr and nr.",
)
@click.option("--base", type=click.Choice(PRESETS), help="Preset that gives the other fields.")
@click.option("--presets", is_flag=True, help="Sweep the reference operator's six presets instead.")
@click.option(
    "--npuarch",
    type=click.Choice(NPU_ARCHS),
    default=NPU_ARCHS[0],
    show_default=True,
    help="NPU generation of presets.",
)
@click.option(
    "--phase",
    type=click.Choice(["decode", "prefill"]),
    default="decode",
    show_default=True,
    help="Phase: with fields of MlaTileConfig it decides the scheduling settings.",
)
@layer_options
@click.option(
    "--pairs",
    type=click.IntRange(3, MAX_PAIRS),
    default=7,
    show_default=True,
    help="Fewest pairs of calls for a candidate.",
)
@weight_sets_option
@seed_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="sweep",
    show_default=True,
    callback=folder_to_write,
    help="Folder for journal, CSV, JSON and pictures.",
)
@click.option("--restart", is_flag=True, help="Start again if the folder holds a sweep.")
@click.option("--no-plot", is_flag=True, help="Draw no pictures.")
@click.pass_context
def sweep(ctx: click.Context, /, **given: Any) -> None:
    """Time many plans against the planner's own, check every bit of each, and draw the results.

    Candidates come in random order and are timed in pairs with the planner's own plan; clearly slower ones are
    dropped early. After Ctrl-C the same command continues. Exit status: 0, or 1 if a bit of any candidate is wrong or
    every candidate is refused.
    """
    options = StudyOptions(**given)
    options.check_together()
    choice = Choice.of(options)
    check_files(options.out, [*_FILES, *(() if options.no_plot else PICTURES)])
    jobs, n_left_out = choice.jobs(options)
    spec = _spec(options, jobs)
    journal = open_journal(options.out, spec, options.restart, options.threads)
    effort = Effort(pairs=options.pairs, most=max(Effort.most, options.pairs))
    interrupted = False
    try:
        with own_plan_is_exact():
            try:
                run_jobs(jobs, journal, effort, options)
            except KeyboardInterrupt:
                interrupted = True
        rows = with_limits(journal.rows, journal.rates, cold=bool(journal.facts.get("cold")))
        _write(options, journal, spec, rows)
        _show(options, rows, n_left_out)
        _draw(options, {**_facts(options, journal, rows), "sweep": spec}, rows)
    except BrokenPipeError:  # whoever reads the report has gone: click ends the command
        raise
    except OSError as error:
        raise click.ClickException(f"--out: expected to write there, got {error}") from None
    if interrupted:
        click.echo(f"interrupted: {len(jobs) - len(rows)} candidates are left; give the same command again to continue")
        ctx.exit(130)
    if any(row.status == "wrong" for row in rows):
        ctx.exit(1)


def _spec(options: StudyOptions, jobs: Sequence[Job]) -> dict[str, Any]:
    """What is studied; a journal of the same is continued."""
    return {
        "tokens": options.tokens, "phase": options.phase, "dims": asdict(options.sizes), "threads": options.threads,
        "pairs": options.pairs, "weight_sets": options.weight_sets, "seed": options.seed, "version": __version__,
        "machine": str(this_machine()),
        "jobs": [[job.number, job.t, job.quant, str(job.candidate), options.base or ""] for job in jobs],
    }  # fmt: skip


def _tables(out: Path) -> tuple[Path, Path]:
    return out / "sweep.csv", out / "sweep.json"


def _write(options: StudyOptions, journal: Journal, spec: dict[str, Any], rows: list[Row]) -> None:
    csv, json = _tables(options.out)
    write_csv(csv, rows)
    write_json(json, _facts(options, journal, rows), spec, rows)


def _facts(options: StudyOptions, journal: Journal, rows: list[Row]) -> dict[str, Any]:
    """What the journal knows of the machine, and the planner's own plan of each T and quant mode."""
    groups = dict.fromkeys((row.t, row.quant) for row in rows)
    own = [{"t": t, "quant": quant, "plan": str(own_plan(options, t, quant))} for t, quant in groups]
    return {**journal.facts, "own_plans": own}


def _show(options: StudyOptions, rows: list[Row], n_left_out: int) -> None:
    """Shows the best, and where all of it is."""
    print_wide(show_rows(rows, None if options.presets else _MOST_SHOWN), _TABLE_WIDTH)
    click.echo(_summary(rows, n_left_out))
    click.echo(", ".join(map(str, _tables(options.out))))


def _draw(options: StudyOptions, record: dict[str, Any], rows: list[Row]) -> None:
    """Draws the pictures, if they are wanted and matplotlib is there."""
    if options.no_plot:
        return
    try:
        click.echo(", ".join(map(str, draw_all(options.out, record, rows))))
    except ImportError:
        click.echo("no pictures: they need matplotlib (pip install 'mla_numba[plot]'); then give this command again")


def _summary(rows: list[Row], n_left_out: int) -> str:
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    exact = [row for row in rows if row.exact is not None]
    wrong = [row for row in exact if not row.exact]
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    bits = f"{len(exact) - len(wrong)} of {len(exact)} plans gave every bit of the reference"
    lines = [f"{said}; {n_left_out} left out by restrictions; {bits}"]
    lines += reasons_of([row.reason for row in rows if row.status == "refused"])
    return "\n".join([*lines, *(f"wrong: {row.settings} at {row.t} tokens: {row.reason}" for row in wrong)])
