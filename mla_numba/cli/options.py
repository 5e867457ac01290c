"""Options that several commands share, and how their values are checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from tiling import PRESETS, MlaTileConfig, PassOptions, pass_options, preset
from tiling.pypto.presets import NPU_ARCHS

from ..base.dims import MlaDims
from ..base.model_config import read_config_file
from ..base.modes import QUANT_MODES
from ..base.output_path import fault_of_file, fault_of_folder
from ..kernels import max_threads

__all__ = [
    "DIMS_FORM",
    "blame",
    "file_to_write",
    "finite",
    "folder_to_write",
    "json_option",
    "layer_options",
    "parse_dims",
    "seed_option",
    "text_to_write",
    "threads_option",
    "tile_settings",
    "token_list",
    "tokens_type",
    "weight_sets_option",
    "what_to_plan",
]

MAX_COMMAND_TOKENS = 2**20
DIMS_FORM = ", ".join(field.name for field in fields(MlaDims))

Command = Callable[..., Any]


def parse_dims(text: str) -> MlaDims:
    """Dimensions given as six integers with commas or as the path of a model's `config.json`."""
    numbers = text.split(",")
    try:
        if len(numbers) == 6 and all(n.strip().removeprefix("-").isdecimal() for n in numbers):
            return MlaDims(*map(int, numbers))
        if Path(text).is_file():
            return MlaDims.from_hf(read_config_file(Path(text)))
    except (OSError, TypeError, ValueError) as error:
        raise click.BadParameter(f"{text!r}: {error}") from None
    raise click.BadParameter(f"expected six integers with commas or the path of a config.json, got {text!r}")


@contextmanager
def blame(option: str) -> Iterator[None]:
    """Turns the library's complaint about a value into one about the option that it came from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


def file_to_write(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refuses a file that cannot be written, before any work."""
    fault = "" if value is None else fault_of_file(value)
    if fault:
        raise click.BadParameter(fault)
    return value


def text_to_write(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """The same for a text, which may also go to a terminal or a pipe."""
    fault = "" if value is None else fault_of_file(value, streams=True)
    if fault:
        raise click.BadParameter(fault)
    return value


def folder_to_write(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    """Refuses a folder that cannot be written or made, before any work."""
    fault = fault_of_folder(value)
    if fault:
        raise click.BadParameter(fault)
    return value


def finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Refuses NaN, which is in every range of click's."""
    if not math.isfinite(value):
        raise click.BadParameter(f"expected a finite number, got {value}")
    return value


class _IntList(click.ParamType[tuple[int, ...]]):
    """Integers of a range with commas between them."""

    name = "integers"

    def __init__(self, each: click.IntRange) -> None:
        self._each = each

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The integers, each once."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(self._each.convert(part.strip(), param, ctx) for part in value.split(",")))


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
        help="int8 parts: a for the down-projections, b for the up-projection and the cache.",
    ),
    click.option("--preset", type=click.Choice(PRESETS), help="The reference operator's tile settings."),
    click.option("--tuned", is_flag=True, help="Use the plan that mla-numba tune found on this machine, if any."),
    click.option(
        "--npuarch", type=click.Choice(NPU_ARCHS), help="NPU generation of the preset.  [default: DAV_3510]"
    ),
    click.option(
        "--dims", type=parse_dims, metavar="H,N,Rq,C,D,R|PATH",
        help=f"{DIMS_FORM}; or the path of a model's config.json.  [default: those of DeepSeek-V3.2]",
    ),
)  # fmt: skip
tokens_type = click.IntRange(1, MAX_COMMAND_TOKENS)
token_list = _IntList(tokens_type)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output, and nothing else.")
threads_option = click.option(
    "--threads", type=click.IntRange(1), callback=_available_threads, help="Threads.  [default: NUMBA_NUM_THREADS]"
)
layer_options = _options(
    click.option(
        "--quant",
        type=click.Choice(QUANT_MODES),
        default="b",
        show_default=True,
        help="int8 parts, as in mla-numba run.",
    ),
    click.option(
        "--dims", type=parse_dims, metavar="H,N,Rq,C,D,R|PATH",
        help="Dimensions, or a model's config.json.  [default: DeepSeek-V3.2's]",
    ),
    click.option("--small", is_flag=True, help="Small dimensions, to try the command itself."),
    threads_option,
)  # fmt: skip
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of weights, inputs and the order.",
)
weight_sets_option = click.option(
    "--weight-sets", type=click.IntRange(1, 1024), default=2, show_default=True,
    help="Sets of weights that take turns, so that weights come from memory.",
)  # fmt: skip


def tile_settings(
    preset_name: str | None, npuarch: str | None, tuned: bool, phase: str, t: int
) -> tuple[MlaTileConfig | str | None, PassOptions | None]:
    """Tile config and scheduling settings of a preset, or "auto" and None; two Nones where the planner is to choose."""
    if tuned and preset_name is not None:
        raise click.UsageError(f"--tuned: expected without --preset, got {preset_name}")
    if preset_name is None:
        if npuarch is not None:
            raise click.UsageError(f"--npuarch: expected together with --preset, got {npuarch} alone")
        return "auto" if tuned else None, None
    arch = npuarch or NPU_ARCHS[0]
    return preset(preset_name, arch), pass_options(phase, t, arch)
