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
from ...tuning.study import MAX_PAIRS, Effort, Job
from ..faults import own_plan_is_exact
from ..interrupts import held_back, one_line_if_interrupted
from ..options import folder_to_write, layer_options, seed_option, token_list, weight_sets_option
from ..shown import TABLE_WIDTH, print_wide
from .choice import Choice, own_plan
from .closing import closing, counted
from .found import Found
from .options import StudyOptions, check_files, parse_axes
from .plots import PICTURES, draw_all
from .t4 import write_t4
from .tables import show_rows, write_csv, write_json
from .timing import open_journal, run_jobs

__all__ = ["sweep"]

_FILES = ("journal.jsonl", "sweep.csv", "sweep.json", "sweep.t4.json")
_MOST_SHOWN = 5  # of each T


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
    dropped early. The best of each T meet it in longer contests, and the last lines say whether one is faster by more
    than noise. After Ctrl-C the same command continues. It also times again what it timed while others took too much
    of the machine. Exit status: 0, or 1 if a bit of any candidate is wrong or every candidate is refused, 130 after
    Ctrl-C.
    """
    options = StudyOptions(**given)
    options.check_together()
    with one_line_if_interrupted(lambda: "nothing was timed"):
        choice = Choice.of(options)
        check_files(options.out, [*_FILES, *(() if options.no_plot else PICTURES)])
        jobs, n_left_out = choice.jobs(options)
        spec = _spec(options, jobs)
        journal = open_journal(options.out, spec, options.restart, options.threads)
    effort = Effort(pairs=options.pairs, most=max(Effort.most, options.pairs))
    try:
        with own_plan_is_exact(), one_line_if_interrupted(lambda: _kept(options, journal, spec, jobs)):
            run_jobs(jobs, journal, effort, options, lambda said: click.echo(said, err=True))
            found = Found.of(journal, jobs, options)
            with held_back():
                _write(options, journal, spec, found)
            _show(options, journal, spec, found, (len(jobs), n_left_out))
    except BrokenPipeError:  # whoever reads the report has gone: click ends the command
        raise
    except OSError as error:
        raise click.ClickException(f"--out: expected to write there, got {error}") from None
    if any(row.status == "wrong" for row in found.rows):
        ctx.exit(1)


def _spec(options: StudyOptions, jobs: Sequence[Job]) -> dict[str, Any]:
    """What is studied; a journal of the same is continued."""
    return {
        "tokens": options.tokens, "phase": options.phase, "dims": asdict(options.sizes), "threads": options.threads,
        "pairs": options.pairs, "weight_sets": options.weight_sets, "seed": options.seed, "version": __version__,
        "machine": str(this_machine()),
        "jobs": [[job.number, job.t, job.quant, str(job.candidate), options.base or ""] for job in jobs],
    }  # fmt: skip


def _kept(options: StudyOptions, journal: Journal, spec: dict[str, Any], jobs: Sequence[Job]) -> str:
    """Writes what an interrupted sweep has so far, and says what is left."""
    with held_back():
        found = Found.of(journal, jobs, options)
        try:
            _write(options, journal, spec, found)
        except OSError as error:
            raise click.ClickException(f"--out: expected to write there, got {error}") from None
    left = len(jobs) - len(found.rows)
    kept = f"{left} of {len(jobs)} candidates are left, the others" if left else "all candidates were timed and"
    return f"{kept} are kept in {options.out}; give the same command again to continue"


def _files(out: Path) -> tuple[Path, Path, Path]:
    return out / "sweep.csv", out / "sweep.json", out / "sweep.t4.json"


def _write(options: StudyOptions, journal: Journal, spec: dict[str, Any], found: Found) -> None:
    csv, json, t4 = _files(options.out)
    write_csv(csv, found.rows)
    write_json(json, _facts(options, journal, found), spec, found)
    write_t4(t4, journal.facts, found.rows)


def _facts(options: StudyOptions, journal: Journal, found: Found) -> dict[str, Any]:
    """What the journal knows of the machine, and the planner's own plan of each T and quant mode."""
    groups = dict.fromkeys((row.t, row.quant) for row in found.rows)
    own = [{"t": t, "quant": quant, "plan": str(own_plan(options, t, quant))} for t, quant in groups]
    return {**journal.facts, "own_plans": own}


def _show(options: StudyOptions, journal: Journal, spec: dict[str, Any], found: Found, counts: tuple[int, int]) -> None:
    """Shows what speaks against the figures, the best, what was found and where all of it is; draws the pictures."""
    if found.conditions is not None and found.conditions.is_busy:
        click.echo(found.conditions)
    print_wide(show_rows(found.rows, None if options.presets else _MOST_SHOWN), TABLE_WIDTH)
    click.echo(counted(found.rows, *counts))
    click.echo(", ".join(map(str, _files(options.out))))
    _draw(options, journal, spec, found)
    for finding in found.findings:
        click.echo(closing(finding, found.line_of(finding.best)))


def _draw(options: StudyOptions, journal: Journal, spec: dict[str, Any], found: Found) -> None:
    """Draws the pictures, if they are wanted and matplotlib is there."""
    if options.no_plot:
        return
    record = {**_facts(options, journal, found), "sweep": spec, "findings": found.as_dicts()}
    try:
        click.echo(", ".join(map(str, draw_all(options.out, record, found.rows))))
    except ImportError:
        click.echo("no pictures: they need matplotlib (pip install 'mla_numba[plot]'); then give this command again")
