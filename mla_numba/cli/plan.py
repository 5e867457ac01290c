"""The command `mla-numba plan`: how a call would be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from tiling import CpuTiling, MlaTileConfig, plan_prolog

from ..call.planning import MICRO_TILES, stored_choice, this_machine
from ..threads import usual_threads
from .faults import blame
from .options import WhatToPlan

__all__ = ["plan"]


@dataclass(frozen=True, kw_only=True)
class PlanOptions(WhatToPlan):
    """The command's options."""

    tokens: int
    threads: int | None
    explain: bool
    as_json: bool


def plan(**given: Any) -> None:
    """Prints the plan."""
    options = PlanOptions(**given)
    if options.explain and options.as_json:
        raise click.UsageError("--explain, --json: expected one of them (JSON has the reasons), got both")
    tiles = options.tile_settings(options.tokens)
    n_threads, costs, note = options.threads or usual_threads(), None, ""
    with blame("--dims"):
        config: MlaTileConfig | CpuTiling | None
        if tiles.config == "auto":
            config, costs, note = stored_choice(this_machine(), options.sizes, options.quant, n_threads, options.tokens)
        else:
            config = tiles.config
        planned = plan_prolog(
            options.sizes, options.tokens, config, this_machine(), micro=MICRO_TILES, phase=options.phase,
            quant=options.quant, n_threads=n_threads, options=tiles.options, costs=costs, note=note,
        )  # fmt: skip
    if options.as_json:
        click.echo(planned.to_json())
    else:
        click.echo(planned.explain() if options.explain else planned)
