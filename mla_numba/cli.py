"""The command `mla-numba`."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tiling import PRESETS, MlaTileConfig, PassOptions, pass_options, plan_prolog, preset

from ._report import Steps, folder_size, megabytes, sweep_table
from ._version import __version__
from .cache import CACHE_MODES
from .cli_run import Job, allocate_cache, run_job
from .cli_warmup import compile_all
from .dims import MlaDims
from .engine import MICRO_TILES, this_machine
from .kernels import ISA, cache_folder, max_threads
from .weights import QUANT_MODES, MlaWeights

__all__ = ["main"]

NPU_ARCHS = ("DAV_3510", "950", "DAV_2201", "910")
MAX_TOKENS = 2**20
DIMS_FORM = ", ".join(field.name for field in fields(MlaDims))

Command = Callable[..., Any]


class DimsType(click.ParamType):
    """Six integers with commas, or the path of a model's `config.json`."""

    name = "dims"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> MlaDims:
        """The dimensions."""
        if isinstance(value, MlaDims):
            return value
        numbers = value.split(",")
        try:
            if len(numbers) == 6 and all(n.strip().removeprefix("-").isdecimal() for n in numbers):
                return MlaDims(*map(int, numbers))
            if Path(value).is_file():
                return MlaDims.from_hf(json.loads(Path(value).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        self.fail(f"expected six integers with commas or the path of a config.json, got {value!r}", param, ctx)


class Commands(click.Group):
    """A group whose commands end with one line where the memory does not suffice."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}" if str(error) else "not enough memory") from None


@contextmanager
def _blame(option: str) -> Iterator[None]:
    """Turns the library's complaint about a value into one about the option that it came from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


def _available_threads(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
    """Checks a number of threads against what Numba has; None is all of them."""
    if value is not None and value > max_threads():
        raise click.BadParameter(f"expected at most {max_threads()} (NUMBA_NUM_THREADS), got {value}")
    return max_threads() if value is None else value


def _options(*decorators: Command) -> Command:
    """Several options as one decorator, shown in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


what_to_plan = _options(
    click.option(
        "--phase", type=click.Choice(["decode", "prefill"]), default="decode", show_default=True,
        help="Phase: with --preset it decides the scheduling settings.",
    ),
    click.option(
        "--quant", type=click.Choice(QUANT_MODES), default="b", show_default=True,
        help="What is int8: a the down projections, b the up projection and the cache.",
    ),
    click.option("--preset", "preset_name", type=click.Choice(PRESETS), help="Tile settings of the reference operator."),
    click.option(
        "--npuarch", type=click.Choice(NPU_ARCHS), help="NPU generation whose preset is meant.  [default: DAV_3510]"
    ),
    click.option(
        "--dims", type=DimsType(), metavar="H,N,Rq,C,D,R|PATH",
        help=f"{DIMS_FORM}; or the path of a model's config.json.  [default: those of DeepSeek-V3.2]",
    ),
)  # fmt: skip
tokens_type = click.IntRange(1, MAX_TOKENS)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output, and nothing else.")
threads_option = click.option(
    "--threads", type=click.IntRange(1), callback=_available_threads, help="Threads.  [default: NUMBA_NUM_THREADS]"
)


def _tile_settings(
    preset_name: str | None, npuarch: str | None, phase: str, t: int
) -> tuple[MlaTileConfig | None, PassOptions | None]:
    """Tile config and scheduling settings of a preset; two Nones where the planner is to choose."""
    if preset_name is None:
        if npuarch is not None:
            raise click.UsageError(f"--npuarch: expected together with --preset, got {npuarch} alone")
        return None, None
    arch = npuarch or NPU_ARCHS[0]
    return preset(preset_name, arch), pass_options(phase, t, arch)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mla-numba")
def main() -> None:
    """The quantised MLA prolog of DeepSeek-V3.2 on this CPU: time it, check it, look at its plan."""


@main.command()
@what_to_plan
@click.option("--tokens", type=tokens_type, default=8, show_default=True, help="Tokens of a call.")
@click.option("--smooth", is_flag=True, help="SmoothQuant scales on the normalised query; with --quant b or ab.")
@threads_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights and inputs.")
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Calls that are timed.")
@click.option(
    "--cache-mode", type=click.Choice(CACHE_MODES), default="PA_BSND", show_default=True, help="Order of the paged cache."
)
@click.option(
    "--block-size", type=click.IntRange(1, 2**16), default=128, show_default=True, help="Tokens of a cache block."
)
@click.option("--no-check", is_flag=True, help="Do not compare the result with the reference.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    phase: str,
    quant: str,
    preset_name: str | None,
    npuarch: str | None,
    dims: MlaDims | None,
    tokens: int,
    smooth: bool,
    threads: int,
    seed: int,
    repeats: int,
    cache_mode: str,
    block_size: int,
    no_check: bool,
    as_json: bool,
) -> None:
    """Run the prolog on random weights, time its sweeps and compare every bit with the reference.

    Exit status: 0 if every bit is equal or --no-check is given, 1 if one is not, 2 for a wrong option.
    """
    if smooth and "b" not in quant:
        raise click.UsageError(f"--smooth: expected with --quant b or ab, got --quant {quant}")
    dims = dims or MlaDims.deepseek_v32()
    tile_config, options = _tile_settings(preset_name, npuarch, phase, tokens)
    with _blame("--cache-mode"):
        cache = allocate_cache(dims, tokens, quant, block_size, cache_mode)
    with Steps() as steps:
        with steps.step("making weights"), _blame("--dims"):
            weights = MlaWeights.random(dims, seed, quant, smooth)
        job = Job(dims, tokens, phase, quant, smooth, tile_config, options, threads, seed, repeats, not no_check)
        report = run_job(job, weights, cache, steps)
    if as_json:
        settings = {name: value for name, value in ctx.params.items() if name not in ("dims", "as_json")}
        head = {"version": __version__, "machine": asdict(this_machine()), "options": settings, "dims": asdict(dims)}
        click.echo(json.dumps(head | report.as_dict(), indent=2))
    else:
        click.echo(f"{this_machine()}\n{report.plan}")
        Console().print(sweep_table(report.sweeps))
        click.echo(report.verdict)
    if report.exact is False:
        ctx.exit(1)


@main.command()
@what_to_plan
@click.option("--tokens", type=tokens_type, required=True, help="Tokens of a call.")
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: NUMBA_NUM_THREADS]")
@click.option("--explain", is_flag=True, help="Add the reason of each choice and what each setting does.")
@json_option
def plan(
    phase: str,
    quant: str,
    preset_name: str | None,
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
    tile_config, options = _tile_settings(preset_name, npuarch, phase, tokens)
    with _blame("--dims"):
        planned = plan_prolog(
            dims or MlaDims.deepseek_v32(), tokens, tile_config, this_machine(), micro=MICRO_TILES, phase=phase,
            quant=quant, n_threads=threads or max_threads(), options=options,
        )  # fmt: skip
    if as_json:
        click.echo(planned.to_json())
    else:
        click.echo(planned.explain() if explain else planned)


@main.command()
@json_option
def info(as_json: bool) -> None:
    """Show versions, this machine, its register tiles and where compiled kernels are kept."""
    folder = cache_folder()
    n_bytes, n_files = folder_size(folder)
    layer = os.environ.get("NUMBA_THREADING_LAYER", "default")
    versions = {name: version(name) for name in ("numba", "llvmlite", "numpy", "ml_dtypes")}
    versions = {"mla_numba": __version__, "python": platform.python_version()} | versions
    machine = this_machine()
    if as_json:
        facts = {
            "versions": versions,
            "machine": asdict(machine),
            "isa": asdict(ISA),
            "register_tiles": {dtype: asdict(micro) for dtype, micro in MICRO_TILES.items()},
            "threading_layer": layer,
            "n_threads": max_threads(),
            "kernel_cache": {"folder": str(folder), "bytes": n_bytes, "n_files": n_files},
        }
        click.echo(json.dumps(facts, indent=2))
        return
    lines = {
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": machine,
        "instruction set": f"{ISA.name}, {ISA.lanes} lanes of fp32",
        "register tiles": ", ".join(f"{dtype} {micro}" for dtype, micro in MICRO_TILES.items()),
        "threading layer": f"{layer} (NUMBA_THREADING_LAYER)",
        "threads": f"{max_threads()} (NUMBA_NUM_THREADS)",
        "kernel cache": f"{folder} ({megabytes(n_bytes)} in {n_files} files)",
    }
    for name, text in lines.items():
        click.echo(f"{name:<16} {text}")


@main.command()
@threads_option
def warmup(threads: int) -> None:
    """Compile the kernels of every mode ahead and keep them; with --threads 1 only those of one thread."""
    begin = time.perf_counter()
    with Steps() as steps:
        compile_all(threads, steps)
    n_bytes, n_files = folder_size(cache_folder())
    click.echo(
        f"compiled in {time.perf_counter() - begin:.1f} s, kept in {cache_folder()} "
        f"({megabytes(n_bytes)} in {n_files} files)"
    )


if __name__ == "__main__":
    main()
