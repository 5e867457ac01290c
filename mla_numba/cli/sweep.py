"""The command `mla-numba sweep`: time many plans, check each, draw what came of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tiling import PRESETS, CpuTiling, PrologPlan, plan_prolog, preset
from tiling.pypto.presets import NPU_ARCHS

from .._version import __version__
from ..base.dims import MlaDims
from ..base.output_path import fault_of_file
from ..call.planning import MICRO_TILES, this_machine
from ..tuning.contest import ExactnessError
from ..tuning.journal import Journal
from ..tuning.rates import rates_as_dict
from ..tuning.space import (
    MAX_CANDIDATES,
    Candidate,
    Grid,
    check_restriction,
    parse_values,
)
from ..tuning.sweep import (
    MAX_PAIRS,
    Effort,
    Job,
    Row,
    list_jobs,
    reasons_of,
    with_limits,
)
from .options import (
    blame,
    folder_to_write,
    layer_options,
    seed_option,
    token_list,
    weight_sets_option,
)
from .sweep_plots import PICTURES, draw_all
from .sweep_run import open_journal, progress_bar, run_jobs
from .sweep_tables import show_rows, write_csv, write_json

__all__ = ["SMALL_DIMS", "sweep"]

SMALL_DIMS = MlaDims(512, 8, 128, 64, 32, 16)
# What a sweep varies that is not told: k blocks and panels of the down sweep, then the tiles of tokens.
_DEFAULT = (
    {"down_kc": "256,512,896,1792,3584", "down_walk": "1,2,4,8"},
    {"unroll_list": "[512,256,128,64,32,16,8,4,2,1],[64,32,16,8,4,2,1],[32,16,8,4,2,1],[8,4,2,1]"},
)
_FILES = ("journal.jsonl", "sweep.csv", "sweep.json")
_PLANNED_UNSEEN = 500  # about a second
_TABLE_WIDTH = 110


def _assignment(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, list[Any]]:
    axes = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not equals:
            raise click.BadParameter(f"expected FIELD=VALUES, got {text!r}")
        try:
            axes[name.strip()] = parse_values(values)
        except ValueError as error:
            raise click.BadParameter(f"{name.strip()}: {error}") from None
    return axes


def _grids(axes: dict[str, list[Any]], base: str | None, npuarch: str) -> list[Grid]:
    """What is to be swept: the given fields, or what is swept by default."""
    if not axes:
        return [Grid({name: parse_values(v) for name, v in given.items()}, CpuTiling()) for given in _DEFAULT]
    if base is not None:
        return [Grid(axes, preset(base, npuarch))]
    return [Grid(axes, Grid.base_of(list(axes)))]


def _presets(npuarch: str) -> list[tuple[Candidate, str]]:
    """The reference operator's presets, each in the mode that it is made for."""
    return [
        (Candidate((("preset", name),), preset(name, npuarch)), "none" if name.endswith("_bf16") else "b")
        for name in PRESETS
    ]


@click.command()
@click.option("--tokens", type=token_list, default="8,32,128", show_default=True, help="Tokens of a call, with commas.")
@click.option(
    "--set",
    "axes",
    multiple=True,
    callback=_assignment,
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
    "--pairs", type=click.IntRange(3, MAX_PAIRS), default=7, show_default=True,
    help="Fewest pairs of calls for a candidate.",
)  # fmt: skip
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
def sweep(
    ctx: click.Context,
    tokens: tuple[int, ...],
    axes: dict[str, list[Any]],
    where: tuple[str, ...],
    base: str | None,
    presets: bool,
    npuarch: str,
    phase: str,
    quant: str,
    dims: MlaDims | None,
    small: bool,
    threads: int,
    pairs: int,
    weight_sets: int,
    seed: int,
    out: Path,
    restart: bool,
    no_plot: bool,
) -> None:
    """Time many plans against the planner's own, check every bit of each, and draw the results.

    Candidates come in random order and are timed in pairs with the planner's own plan; clearly slower ones are
    dropped early. After Ctrl-C the same command continues. Exit status: 0, or 1 if a bit of any candidate is wrong or
    every candidate is refused.
    """
    _check_together(presets, axes, base, small, dims)
    sizes = dims or (SMALL_DIMS if small else MlaDims.deepseek_v32())
    with blame("--set"):
        grids = [] if presets else _grids(axes, base, npuarch)
        candidates = _presets(npuarch) if presets else [(c, quant) for grid in grids for c in grid.candidates()]
    with blame("--where"):
        names = [name for grid in grids for name in grid.axes]
        restrictions = [check_restriction(text, names) for text in where]
    _check_files(out, [*_FILES, *(() if no_plot else PICTURES)])

    def plan(job: Job) -> PrologPlan:
        return plan_prolog(
            sizes, job.t, job.candidate.config, this_machine(), micro=MICRO_TILES, phase=phase, quant=job.quant,
            n_threads=threads, options=job.options,
        )  # fmt: skip

    jobs, n_left_out = _jobs(candidates, tokens, restrictions, plan, phase, npuarch)
    spec = {
        "tokens": tokens, "phase": phase, "dims": asdict(sizes), "threads": threads, "pairs": pairs,
        "weight_sets": weight_sets, "seed": seed, "version": __version__, "machine": str(this_machine()),
        "jobs": [[job.number, job.t, job.quant, str(job.candidate), base or ""] for job in jobs],
    }  # fmt: skip
    journal = open_journal(out, spec, restart, threads)
    effort = Effort(pairs=pairs, most=max(Effort.most, pairs))
    interrupted = False
    try:
        try:
            run_jobs(jobs, journal, effort, sizes, phase, threads, seed, weight_sets)
        except KeyboardInterrupt:
            interrupted = True
        rows = with_limits(journal.rows, journal.rates)
        _report(out, journal, spec, rows, n_left_out, None if presets else 5, not no_plot)
    except ExactnessError as error:
        raise click.ClickException(f"the planner's own plan differs from the reference: {error}") from None
    except BrokenPipeError:  # whoever reads the report has gone: click ends the command
        raise
    except OSError as error:
        raise click.ClickException(f"--out: expected to write there, got {error}") from None
    if interrupted:
        click.echo(f"interrupted: {len(jobs) - len(rows)} candidates are left; give the same command again to continue")
        ctx.exit(130)
    if any(row.status == "wrong" for row in rows):
        ctx.exit(1)


def _check_together(
    presets: bool, axes: dict[str, list[Any]], base: str | None, small: bool, dims: MlaDims | None
) -> None:
    """Refuses options that say nothing, or two things, beside each other."""
    if presets and (axes or base):
        raise click.UsageError("--presets: expected without --set and --base, got both")
    if base and not axes:
        raise click.UsageError(f"--base: expected together with --set, got {base} alone")
    if small and dims:
        raise click.UsageError("--small: expected without --dims, got both")


def _check_files(out: Path, names: list[str]) -> None:
    """Refuses a folder in which something stands in the place of a file to be written."""
    for name in names if out.is_dir() else []:
        fault = fault_of_file(out / name)
        if fault:
            raise click.BadParameter(fault, param_hint="'--out'")


def _jobs(
    candidates: list[tuple[Candidate, str]],
    tokens: tuple[int, ...],
    restrictions: list[str],
    plan: Callable[[Job], PrologPlan],
    phase: str,
    npuarch: str,
) -> tuple[list[Job], int]:
    """The jobs, and how many restrictions left out; an error where none is left that could be timed."""
    n = len(candidates) * len(tokens)
    if n > MAX_CANDIDATES:
        got = f"{len(candidates)} times {len(tokens)}"
        raise click.UsageError(f"--set, --tokens: expected at most {MAX_CANDIDATES} combinations in all, got {got}")
    shown = progress_bar("plan", n) if n > _PLANNED_UNSEEN else nullcontext(lambda note, by: None)
    with blame("--where"), shown as planned:
        jobs, n_left_out = list_jobs(candidates, tokens, restrictions, plan, phase, npuarch, lambda: planned("", 1))
    if not jobs:
        raise click.UsageError(f"--where: expected to leave a candidate, got none of {n_left_out}")
    if all(job.refused for job in jobs):
        reasons = "\n".join(reasons_of([job.refused for job in jobs]))
        raise click.ClickException(f"every candidate is refused, so nothing was timed\n{reasons}")
    return jobs, n_left_out


def _report(
    out: Path,
    journal: Journal,
    spec: dict[str, Any],
    rows: list[Row],
    n_left_out: int,
    most: int | None,
    with_plots: bool,
) -> None:
    """Writes the files and shows the best, at most `most` of each T, and where all of it is."""
    write_csv(out / "sweep.csv", rows)
    write_json(out / "sweep.json", journal.facts, spec, rows)
    console = Console()
    console = Console(width=max(console.width, _TABLE_WIDTH))  # a file has no width, and names take room
    console.print(show_rows(rows, most))
    click.echo(_summary(rows, n_left_out))
    click.echo(f"{out / 'sweep.csv'}, {out / 'sweep.json'}")
    if not with_plots:
        return
    modes = ", ".join(dict.fromkeys(row.quant for row in rows))
    title = f"{this_machine().name}, {spec['threads']} threads, quant {modes}"
    try:
        click.echo(", ".join(map(str, draw_all(out, rows, rates_as_dict(journal.rates), title))))
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
