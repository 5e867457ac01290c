"""The command `mla-numba`."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from tiling import CpuTiling, MlaTileConfig, plan_prolog

from .._version import __version__
from ..base.dims import MlaDims
from ..base.modes import NUMERICS, QUANT_MODES
from ..cache import PAGED_MODES
from ..call.planning import MICRO_TILES, stored_choice, this_machine
from ..kernels import (
    ISA,
    cache_folder,
    make_cache_folder,
    max_threads,
    why_not_kept,
)
from ..tuning.rates import (
    least_ms,
    measure_all,
    rates_as_dict,
)
from ..weights.checkpoint import Checkpoint
from ..weights.plain import MlaWeights
from .bench.command import bench
from .check import check, dump
from .options import (
    blame,
    file_to_write,
    json_option,
    text_to_write,
    threads_option,
    tile_settings,
    tokens_type,
    what_to_plan,
)
from .pack import pack_layer
from .rates_table import show_rates
from .report import (
    Steps,
    folder_size,
    megabytes,
    sweep_table,
    trace_table,
)
from .run import Job, allocate_cache, run_job
from .sweep import sweep
from .tune import tune
from .warmup import compile_all

__all__ = ["main"]

_LEAST_TOKENS = (1, 8, 32, 128, 512)


class Commands(click.Group):
    """A group whose commands end with one line when memory runs out."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}" if str(error) else "not enough memory") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mla-numba")
def main() -> None:
    """The quantised MLA prolog of DeepSeek-V3.2 on this CPU: time it, check it, look at its plan."""


main.add_command(bench)


@main.command()
@what_to_plan
@click.option("--tokens", type=tokens_type, default=8, show_default=True, help="Tokens of a call.")
@click.option("--smooth", is_flag=True, help="SmoothQuant scales on the normalised query; with --quant b or ab.")
@threads_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights and inputs.")
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Calls that are timed.")
@click.option(
    "--cache-mode",
    type=click.Choice(PAGED_MODES),
    default="PA_BSND",
    show_default=True,
    help="Order of the cache.",
)
@click.option(
    "--block-size", type=click.IntRange(1, 2**16), default=128, show_default=True, help="Tokens of a cache block."
)
@click.option(
    "--numerics", type=click.Choice(NUMERICS), default="pypto", show_default=True, help="Quantiser of this system."
)
@click.option("--no-check", is_flag=True, help="Do not compare the result with the reference.")
@click.option(
    "--trace", "trace_file", type=click.Path(path_type=Path), metavar="FILE", callback=text_to_write,
    help="Write when each thread did what in the last call, for chrome://tracing or ui.perfetto.dev.",
)  # fmt: skip
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    phase: str,
    quant: str,
    preset: str | None,
    tuned: bool,
    npuarch: str | None,
    dims: MlaDims | None,
    tokens: int,
    smooth: bool,
    threads: int,
    seed: int,
    repeats: int,
    cache_mode: str,
    block_size: int,
    numerics: str,
    no_check: bool,
    trace_file: Path | None,
    as_json: bool,
) -> None:
    """Run the prolog on random weights, time its sweeps and compare every bit with the reference.

    Exit status: 0 if every bit is equal or --no-check is given, 1 if one is not, 2 for a wrong option.
    """
    if smooth and "b" not in quant:
        raise click.UsageError(f"--smooth: expected with --quant b or ab, got --quant {quant}")
    dims = dims or MlaDims.deepseek_v32()
    tile_config, options = tile_settings(preset, npuarch, tuned, phase, tokens)
    with blame("--cache-mode"):
        cache = allocate_cache(dims, tokens, quant, block_size, cache_mode)
    with Steps() as steps:
        with steps.step("making weights"), blame("--dims"):
            weights = MlaWeights.random(dims, seed, quant, smooth)
        job = Job(dims, tokens, phase, tile_config, options, threads, seed, repeats, numerics, not no_check)
        report = run_job(job, weights, cache, steps)
    if trace_file is not None:
        try:
            report.trace.to_chrome(trace_file)
        except (OSError, ValueError) as error:
            raise click.ClickException(f"--trace: {error}") from None
    if as_json:
        unsaid = ("dims", "as_json", "trace_file")
        settings = {name: value for name, value in ctx.params.items() if name not in unsaid}
        head = {"version": __version__, "machine": asdict(this_machine()), "options": settings, "dims": asdict(dims)}
        click.echo(json.dumps(head | report.as_dict(), indent=2))
    else:
        click.echo(f"{this_machine()}\n{report.plan}")
        Console().print(sweep_table(report.sweeps))
        if trace_file is not None:
            Console().print(trace_table(report.trace))
        click.echo(report.verdict)
    if report.exact is False:
        ctx.exit(1)


@main.command()
@what_to_plan
@click.option("--tokens", type=tokens_type, required=True, help="Tokens of a call.")
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: NUMBA_NUM_THREADS]")
@click.option(
    "--explain", is_flag=True, help="Add the reason of each choice, the candidates, and what each setting does."
)
@json_option
def plan(
    phase: str,
    quant: str,
    preset: str | None,
    tuned: bool,
    npuarch: str | None,
    dims: MlaDims | None,
    tokens: int,
    threads: int | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Show how a call would be computed; nothing is compiled or run."""
    if explain and as_json:
        raise click.UsageError("--explain, --json: expected one of them (JSON has the reasons), got both")
    tile_config, options = tile_settings(preset, npuarch, tuned, phase, tokens)
    sizes, n_threads, costs, note = dims or MlaDims.deepseek_v32(), threads or max_threads(), None, ""
    with blame("--dims"):
        config: MlaTileConfig | CpuTiling | None
        if isinstance(tile_config, str):
            config, costs, note = stored_choice(this_machine(), sizes, quant, n_threads, tokens)
        else:
            config = tile_config
        planned = plan_prolog(
            sizes, tokens, config, this_machine(), micro=MICRO_TILES, phase=phase, quant=quant,
            n_threads=n_threads, options=options, costs=costs, note=note,
        )  # fmt: skip
    if as_json:
        click.echo(planned.to_json())
    else:
        click.echo(planned.explain() if explain else planned)


@main.command()
@click.option("--measure", is_flag=True, help="Measure the rates of 1 to --threads threads; some seconds for each.")
@threads_option
@json_option
@click.pass_context
def info(ctx: click.Context, measure: bool, threads: int, as_json: bool) -> None:
    """Show versions, this machine, its register tiles and where compiled kernels are kept.

    With --measure also the rates that threads reach together (bytes read from memory, fp32 multiply-adds, int8 dot
    products) and the least time that they allow a decode call at DeepSeek-V3.2's dimensions, --quant b.
    """
    if not measure and ctx.get_parameter_source("threads") is not ParameterSource.DEFAULT:
        raise click.UsageError(f"--threads: expected together with --measure, got {threads} alone")
    folder = cache_folder()
    n_bytes, n_files = (0, 0) if folder is None else folder_size(folder)
    layer = os.environ.get("NUMBA_THREADING_LAYER", "default")
    versions = {name: version(name) for name in ("numba", "llvmlite", "numpy", "ml_dtypes")}
    versions = {"mla_numba": __version__, "python": platform.python_version()} | versions
    machine = this_machine()
    if measure:
        with Steps() as steps, steps.step("measuring", threads) as advance:
            rates = measure_all(threads, finished=advance)
        least = least_ms(MlaDims.deepseek_v32(), _LEAST_TOKENS, threads, rates[threads])
    if as_json:
        facts: dict[str, Any] = {
            "versions": versions,
            "machine": asdict(machine),
            "isa": ISA.facts,
            "register_tiles": {dtype: asdict(micro) for dtype, micro in MICRO_TILES.items()},
            "threading_layer": layer,
            "n_threads": max_threads(),
            "kernel_cache": {"folder": folder and str(folder), "bytes": n_bytes, "n_files": n_files},
        }
        if measure:
            facts["rates"] = [{"threads": n} | rates_as_dict(of_n) for n, of_n in rates.items()]
            facts["least_ms"] = least
        click.echo(json.dumps(facts, indent=2))
        return
    lines = {
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": machine,
        "instruction set": f"{ISA.name}, {ISA.lanes} lanes of fp32",
        "register tiles": ", ".join(f"{dtype} {micro}" for dtype, micro in MICRO_TILES.items()),
        "threading layer": f"{layer} (NUMBA_THREADING_LAYER)",
        "threads": f"{max_threads()} (NUMBA_NUM_THREADS)",
        "kernel cache": f"{folder} ({megabytes(n_bytes)} in {n_files} files)"
        if folder
        else "none: neither a home folder nor NUMBA_CACHE_DIR",
    }
    for name, text in lines.items():
        click.echo(f"{name:<16} {text}")
    if measure:
        Console().print(show_rates(rates, least))


@main.command()
@click.argument("folder", metavar="CHECKPOINT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--layer", type=click.IntRange(0), required=True, help="Layer to pack.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, callback=file_to_write, help="File to write."
)  # fmt: skip
@click.option(
    "--quant", type=click.Choice(QUANT_MODES), default="b", show_default=True,
    help="int8 parts: a for the down-projections, b for the up-projection and the cache.",
)  # fmt: skip
@threads_option
@json_option
def pack(folder: Path, layer: int, out: Path, quant: str, threads: int, as_json: bool) -> None:
    """Pack the attention projections of a layer of a DeepSeek CHECKPOINT folder for this CPU's kernels.

    MlaProlog.load maps the file. An older file is replaced once the new one is complete; for a symbolic link that is
    its target. Anything but a regular file is refused. Needs the extra hf.
    """
    try:
        with Steps() as steps:
            packed = pack_layer(Checkpoint(folder), layer, quant, out, threads, steps)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(packed.as_dict(), indent=2))
        return
    if packed.quantization:
        click.echo(packed.quantization)
    click.echo(f"{out}: {megabytes(packed.n_bytes)}, maps in {packed.load_s * 1e3:.1f} ms")


@main.command()
@threads_option
def warmup(threads: int) -> None:
    """Compile the kernels of every mode ahead of use and keep them; --threads 1: only those for one thread."""
    try:
        folder = make_cache_folder()
    except OSError as error:
        raise click.ClickException(f"kernel cache: expected a folder that can be written, got {error}") from None
    begin = time.perf_counter()
    with Steps() as steps:
        compile_all(threads, steps)
    if why_not_kept():
        raise click.ClickException(f"kernel cache: expected to keep what was compiled, got {why_not_kept()}")
    n_bytes, n_files = folder_size(folder)
    click.echo(
        f"ready after {time.perf_counter() - begin:.1f} s; kernels are kept in {folder} "
        f"({megabytes(n_bytes)} in {n_files} files)"
    )


main.add_command(check)
main.add_command(dump)
main.add_command(sweep)
main.add_command(tune)

if __name__ == "__main__":
    main()
