"""The command `mla-numba sweep`: time many plans, check each, draw what came of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tiling import PRESETS, CpuTiling, PrologPlan, Rates, plan_prolog, preset

from ._version import __version__
from .cli_options import NPU_ARCHS, blame, layer_options, token_list, weight_sets_option
from .contest import Arena, ExactnessError
from .dims import MlaDims
from .engine import MICRO_TILES, this_machine
from .measure import Probes, rates_as_dict
from .tile_plots import draw_all
from .tile_report import show_rows, write_csv, write_json
from .tile_space import Candidate, Grid, check_restriction, parse_values
from .tile_sweep import Effort, Job, Journal, Row, finals, list_jobs, run_job, time_pairs, with_limits

__all__ = ["SMALL_DIMS", "facts_of", "progress_bar", "sweep"]

SMALL_DIMS = MlaDims(512, 8, 128, 64, 32, 16)
# What a sweep varies that is not told: k blocks and panels of the down sweep, then the tiles of tokens.
_DEFAULT = (
    {"down_kc": "256,512,896,1792,3584", "down_walk": "1,2,4,8"},
    {"unroll_list": "[512,256,128,64,32,16,8,4,2,1],[64,32,16,8,4,2,1],[32,16,8,4,2,1],[8,4,2,1]"},
)
_REDRAW_S = 0.2
_TABLE_WIDTH = 110


@contextmanager
def progress_bar(what: str, total: float | None) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr with the time left; what it gives takes a note and how far on. Drawn between calls only."""
    columns = (TextColumn(what), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    shown = Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
        auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    with shown:
        task = shown.add_task("", total=total, note="")
        drawn = 0.0

        def advance(note: str, by: float) -> None:
            nonlocal drawn
            shown.update(task, advance=by, note=note)
            if time.perf_counter() - drawn > _REDRAW_S:
                shown.refresh()
                drawn = time.perf_counter()

        shown.refresh()
        yield advance
        shown.refresh()


def facts_of(n_threads: int, rates: Rates) -> dict[str, Any]:
    """Machine, versions, threads and rates, as JSON takes them."""
    packages = ("numba", "llvmlite", "numpy", "ml_dtypes")
    versions = {"mla_numba": __version__, "python": platform.python_version()}
    return {
        "machine": asdict(this_machine()),
        "versions": versions | {name: version(name) for name in packages},
        "threads": n_threads,
        "rates": rates_as_dict(rates),
        "rates_exact": asdict(rates),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


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
    "--pairs", type=click.IntRange(3), default=7, show_default=True, help="Fewest pairs of calls for a candidate."
)
@weight_sets_option
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights, inputs and the order."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="sweep",
    show_default=True,
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
    dropped early. After Ctrl-C the same command continues. Exit status: 0, or 1 if a bit of any candidate is wrong.
    """
    if presets and (axes or base):
        raise click.UsageError("--presets: expected without --set and --base, got both")
    if base and not axes:
        raise click.UsageError(f"--base: expected together with --set, got {base} alone")
    if small and dims:
        raise click.UsageError("--small: expected without --dims, got both")
    sizes = dims or (SMALL_DIMS if small else MlaDims.deepseek_v32())
    with blame("--set"):
        grids = [] if presets else _grids(axes, base, npuarch)
        candidates = _presets(npuarch) if presets else [(c, quant) for grid in grids for c in grid.candidates()]
    with blame("--where"):
        names = [name for grid in grids for name in grid.axes]
        restrictions = [check_restriction(text, names) for text in where]

    def plan(job: Job) -> PrologPlan:
        return plan_prolog(
            sizes, job.t, job.candidate.config, this_machine(), micro=MICRO_TILES, phase=phase, quant=job.quant,
            n_threads=threads, options=job.options,
        )  # fmt: skip

    with blame("--where"):
        jobs, n_left_out = list_jobs(candidates, tokens, restrictions, plan, phase, npuarch)
    if not jobs:
        raise click.UsageError(f"--where: expected to leave a candidate, got none of {n_left_out}")
    spec = {
        "tokens": tokens, "phase": phase, "dims": asdict(sizes), "threads": threads, "pairs": pairs,
        "weight_sets": weight_sets, "seed": seed, "version": __version__, "machine": str(this_machine()),
        "jobs": [[job.number, job.t, job.quant, str(job.candidate), base or ""] for job in jobs],
    }  # fmt: skip
    journal = _journal(out, spec, restart, threads)
    effort = Effort(pairs=pairs)
    interrupted = False
    try:
        _sweep(jobs, journal, effort, sizes, phase, threads, seed, weight_sets)
    except KeyboardInterrupt:
        interrupted = True
    except ExactnessError as error:
        raise click.ClickException(f"the planner's own plan differs from the reference: {error}") from None
    rows = with_limits(journal.rows, Rates(**journal.facts["rates_exact"]))
    write_csv(out / "sweep.csv", rows)
    write_json(out / "sweep.json", journal.facts, spec, rows)
    console = Console()
    console = Console(width=max(console.width, _TABLE_WIDTH))  # a file has no width, and names take room
    console.print(show_rows(rows, None if presets else 5))
    click.echo(_summary(rows, n_left_out))
    click.echo(f"{out / 'sweep.csv'}, {out / 'sweep.json'}")
    if not no_plot:
        title = f"{this_machine().name}, {threads} threads, quant {', '.join(dict.fromkeys(r.quant for r in rows))}"
        try:
            click.echo(", ".join(map(str, draw_all(out, rows, journal.facts["rates"], title))))
        except ImportError:
            click.echo(
                "no pictures: they need matplotlib (pip install 'mla_numba[plot]'); then give this command again"
            )
    if interrupted:
        click.echo(f"interrupted: {len(jobs) - len(rows)} candidates are left; give the same command again to continue")
        ctx.exit(130)
    if any(row.status == "wrong" for row in rows):
        ctx.exit(1)


def _journal(out: Path, spec: dict[str, Any], restart: bool, n_threads: int) -> Journal:
    """The journal of this sweep, new or found; rates are measured for a new one."""
    path = out / "journal.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if restart:
            path.unlink(missing_ok=True)
        return Journal(path, spec, lambda: facts_of(n_threads, Probes(n_threads).rates()))
    except OSError as error:
        raise click.ClickException(f"--out: expected a folder that can be written, got {error}") from None
    except ValueError as error:
        raise click.ClickException(f"{error}; give --restart to start again, or another --out") from None


def _sweep(
    jobs: list[Job],
    journal: Journal,
    effort: Effort,
    dims: MlaDims,
    phase: str,
    n_threads: int,
    seed: int,
    n_weight_sets: int,
) -> None:
    """Runs the jobs that the journal lacks, then the finals."""
    arenas: dict[str, Arena] = {}

    def arena_of(quant: str) -> Arena:
        if quant not in arenas:
            tokens = list(dict.fromkeys(job.t for job in jobs if job.quant == quant))
            arenas[quant] = Arena(
                dims, quant, tokens, phase=phase, n_threads=n_threads, seed=seed, n_weight_sets=n_weight_sets
            )
        return arenas[quant]

    with progress_bar("sweep", len(jobs)) as advance:
        advance("making weights and checking the baseline", len(journal.rows))
        for job in journal.left(jobs, seed):
            row = run_job(job, arena_of(job.quant), effort)
            journal.add(row)
            advance(_note(row), 1)
    by_number = {job.number: job for job in jobs}
    left = [number for number in finals(journal.rows) if journal.rows[number].final_ratio is None]
    if not arenas and not left:
        return
    longer = replace(effort, pairs=3 * effort.pairs, seconds=3 * effort.seconds, most=2 * effort.most)
    with progress_bar("final", len(left)) as advance:
        for number in left:
            job = by_number[number]
            arena = arena_of(job.quant)
            timed, _ = time_pairs(arena, arena.contender(job.t, job.candidate.config, job.options), longer)
            row = replace(journal.rows[number], final_ratio=timed.ratio, final_wins=timed.wins)
            journal.add(row)
            advance(_note(row), 1)
    # What the machine was seen to reach, before or after: other tenants take their part at times.
    before, after = Rates(**journal.facts["rates_exact"]), Probes(n_threads).rates()
    rates = Rates(
        max(before.bandwidth_bytes_s, after.bandwidth_bytes_s),
        max(before.flops_s, after.flops_s),
        max(before.ops_s, after.ops_s),
        None if after.bf16_flops_s is None else max(before.bf16_flops_s or 0, after.bf16_flops_s),
    )
    journal.change_facts({"rates": rates_as_dict(rates), "rates_exact": asdict(rates)})


def _note(row: Row) -> str:
    ratio = row.final_ratio or row.ratio
    return f"T {row.t}: {row.status}" if ratio is None else f"T {row.t}: {ratio:.2f} of the baseline's time"


def _summary(rows: list[Row], n_left_out: int) -> str:
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    exact = [row for row in rows if row.exact is not None]
    wrong = [row for row in exact if not row.exact]
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    bits = f"{len(exact) - len(wrong)} of {len(exact)} plans gave every bit of the reference"
    lines = [f"{said}; {n_left_out} left out by restrictions; {bits}"]
    return "\n".join([*lines, *(f"wrong: {row.settings} at {row.t} tokens: {row.reason}" for row in wrong)])
