"""The options of `mla-numba sweep`, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ...base.modes import CallPhase, NpuArch, PresetName
from ...base.output_path import fault_of_file
from ..options import LayerOptions

__all__ = ["StudyOptions", "check_files", "parse_axes"]


@dataclass(frozen=True, kw_only=True)
class StudyOptions(LayerOptions):
    """The command's options. `axes`: the values of each field that is varied."""

    tokens: tuple[int, ...]
    axes: dict[str, list[Any]]
    where: tuple[str, ...]
    base: PresetName | None
    presets: bool
    npuarch: NpuArch
    phase: CallPhase
    pairs: int
    out: Path
    restart: bool
    no_plot: bool

    def check_together(self) -> None:
        """Refuses options that have no effect, or that exclude each other."""
        if self.presets and (self.axes or self.base):
            raise click.UsageError("--presets: expected without --set and --base, got both")
        if self.base and not self.axes:
            raise click.UsageError(f"--base: expected together with --set, got {self.base} alone")
        self.check_dims()


def parse_axes(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, list[Any]]:
    """The values of each FIELD=VALUES."""
    from ...tuning.space import parse_values

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


def check_files(out: Path, names: Sequence[str]) -> None:
    """Refuses a folder in which something stands in the place of a file to be written."""
    for name in names if out.is_dir() else []:
        fault = fault_of_file(out / name)
        if fault:
            raise click.BadParameter(fault, param_hint="'--out'")
