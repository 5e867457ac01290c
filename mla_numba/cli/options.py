"""Options that several commands share, and how their values are checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from tiling import PRESETS, MlaTileConfig, PassOptions, pass_options, preset
from tiling.pypto.presets import NPU_ARCHS

from ..base.dims import MlaDims
from ..base.modes import CALL_PHASES, NUMERICS, QUANT_MODES, CallPhase, NpuArch, PresetName, QuantMode
from ..base.output_path import fault_of_file, fault_of_folder
from .model_option import DIMS_HELP, Model, model_option

__all__ = [
    "SMALL_DIMS",
    "LayerOptions",
    "TileSettings",
    "WhatToPlan",
    "block_size_type",
    "check_smooth",
    "epsilon_type",
    "file_to_write",
    "finite",
    "finite_float32",
    "folder_to_write",
    "json_option",
    "layer_options",
    "numerics_option",
    "quant_as_in_run_option",
    "quant_option",
    "seed_option",
    "smooth_option",
    "text_to_write",
    "threads_option",
    "token_list",
    "tokens_option",
    "tokens_type",
    "weight_sets_option",
    "what_to_plan",
]

MAX_COMMAND_TOKENS = 2**20
SMALL_DIMS = MlaDims(512, 8, 128, 64, 32, 16)

Command = Callable[..., Any]


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


def finite_float32(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """The same for what the kernels take as a float32, if it is given."""
    if value is not None:
        try:
            struct.pack("<f", finite(ctx, param, value))
        except OverflowError:
            raise click.BadParameter(f"expected a number that is finite in float32, got {value}") from None
    return value


if TYPE_CHECKING:
    _IntTupleType = click.ParamType[tuple[int, ...]]
else:
    _IntTupleType = click.ParamType  # which takes no parameters in older versions of click


class _IntList(_IntTupleType):
    """Integers of a range with commas between them."""

    name = "integers"

    def __init__(self, each: click.IntRange) -> None:
        self._each = each

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The integers, each once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.removeprefix("-").isdecimal() for part in parts):
            self.fail(f"expected integers with commas, got {value!r}", param, ctx)
        return tuple(dict.fromkeys(self._each.convert(part, param, ctx) for part in parts))


def _available_threads(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Checks a number of threads against what Numba has; None is the usual number."""
    if ctx.resilient_parsing:  # for a shell's completion, which must not import Numba
        return value
    from ..base.checks import check_threads
    from ..kernels import max_threads

    try:
        return check_threads("threads", value, max_threads())
    except ValueError as error:
        raise click.BadParameter(str(error).partition(": ")[2]) from None


def _options(*decorators: Command) -> Command:
    """Several options as one decorator, shown in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _quant(help_text: str) -> Command:
    return click.option(
        "--quant", type=click.Choice(QUANT_MODES), default="b", show_default=True, help=help_text
    )  # fmt: skip


quant_option = _quant("int8 parts: a for the down-projections, b for the up-projection and the cache.")
quant_as_in_run_option = _quant("int8 parts, as in mla-numba run.")
tokens_type = click.IntRange(1, MAX_COMMAND_TOKENS)
token_list = _IntList(tokens_type)
block_size_type = click.IntRange(1, 2**16)
epsilon_type = click.FloatRange(0)
tokens_option = click.option("--tokens", type=tokens_type, default=8, show_default=True, help="Tokens of a call.")
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output, and nothing else.")
threads_option = click.option(
    "--threads", type=click.IntRange(1), callback=_available_threads, help="Threads.  [default: as mla-numba info says]"
)
smooth_option = click.option(
    "--smooth", is_flag=True, help="SmoothQuant scales on the normalised query; with --quant b or ab."
)
numerics_option = click.option(
    "--numerics",
    type=click.Choice(NUMERICS),
    default="pypto",
    show_default=True,
    help="How rows are quantised: as by the reference operator of pypto, or as by those of CANN.",
)
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


def check_smooth(smooth: bool, quant: QuantMode) -> None:
    """Refuses `--smooth` where the normalised query is not quantised."""
    if smooth and "b" not in quant:
        raise click.UsageError(f"--smooth: expected with --quant b or ab, got --quant {quant}")


what_to_plan = _options(
    click.option(
        "--phase", type=click.Choice(CALL_PHASES), default="decode", show_default=True,
        help="Phase: with --preset it decides the scheduling settings.",
    ),
    quant_option,
    click.option("--preset", type=click.Choice(PRESETS), help="The reference operator's tile settings."),
    click.option("--tuned", is_flag=True, help="Use the plan that mla-numba tune found on this machine, if any."),
    click.option(
        "--npuarch", type=click.Choice(NPU_ARCHS), help="NPU generation of the preset.  [default: DAV_3510]"
    ),
    model_option(f"{DIMS_HELP}  [default: those of DeepSeek-V3.2]"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WhatToPlan:
    """The values of `what_to_plan`."""

    phase: CallPhase
    quant: QuantMode
    preset: PresetName | None
    tuned: bool
    npuarch: NpuArch | None
    model: Model | None

    @property
    def sizes(self) -> MlaDims:
        """The dimensions, DeepSeek-V3.2's if none are given."""
        return MlaDims.deepseek_v32() if self.model is None else self.model.dims

    def tile_settings(self, t: int) -> TileSettings:
        """Those of the preset, "auto" with `--tuned`, or nothing: then the planner chooses."""
        if self.tuned and self.preset is not None:
            raise click.UsageError(f"--tuned: expected without --preset, got {self.preset}")
        if self.preset is None:
            if self.npuarch is not None:
                raise click.UsageError(f"--npuarch: expected together with --preset, got {self.npuarch} alone")
            return TileSettings("auto" if self.tuned else None, None)
        arch = self.npuarch or NPU_ARCHS[0]
        return TileSettings(preset(self.preset, arch), pass_options(self.phase, t, arch))


class TileSettings(NamedTuple):
    """A tile config, or "auto" for what was tuned, and the scheduling settings beside it."""

    config: MlaTileConfig | Literal["auto"] | None
    options: PassOptions | None


layer_options = _options(
    quant_as_in_run_option,
    model_option("Dimensions, or a model's config.json or its folder.  [default: DeepSeek-V3.2's]"),
    click.option("--small", is_flag=True, help="Small dimensions, to try the command itself."),
    threads_option,
)


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """The values of `layer_options`, `weight_sets_option` and `seed_option`: the layer on which plans are compared."""

    quant: QuantMode
    model: Model | None
    small: bool
    threads: int
    weight_sets: int
    seed: int

    def check_dims(self) -> None:
        """Refuses --small together with --dims."""
        if self.small and self.model:
            raise click.UsageError("--small: expected without --dims, got both")

    @property
    def sizes(self) -> MlaDims:
        """The dimensions, DeepSeek-V3.2's if none are given."""
        if self.model is not None:
            return self.model.dims
        return SMALL_DIMS if self.small else MlaDims.deepseek_v32()
