"""The command `mla-numba plan`: how a call would be computed, here or on a machine that is described."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tiling import CpuTiling, MlaTileConfig, PrologPlan, plan_prolog

from ..base.threads import usual_threads
from ..call.planning import MICRO_TILES, micro_tiles, stored_choice, this_machine
from ..kernels import ISAS, max_threads
from .faults import blame
from .options import TileSettings, WhatToPlan
from .plan_ranks import read_machine, show_ranks

__all__ = ["plan"]


@dataclass(frozen=True, kw_only=True)
class PlanOptions(WhatToPlan):
    """The command's options."""

    tokens: tuple[int, ...]
    threads: int | None
    machine_file: Path | None
    ranks: int | None
    explain: bool
    as_json: bool

    def check(self) -> None:
        """Refuses options that do not go together."""
        if self.explain and self.as_json:
            raise click.UsageError("--explain, --json: expected one of them (JSON has the reasons), got both")
        if self.tuned and self.machine_file is not None:
            raise click.UsageError("--tuned: expected without --machine, for it is what was found on this one")
        if self.ranks is None:
            if len(self.tokens) > 1:
                raise click.UsageError("--tokens: expected several numbers with --ranks only")
            return
        if self.machine_file is None:
            raise click.UsageError(f"--ranks: expected together with --machine, got {self.ranks} alone")
        for name, given in (("--preset", self.preset is not None), ("--explain", self.explain)):
            if given:
                raise click.UsageError(f"{name}: expected without --ranks, got both")


def plan(**given: Any) -> None:
    """Prints the plan, or what ranks would take."""
    options = PlanOptions(**given)
    options.check()
    tiles = options.tile_settings(options.tokens[0])
    if options.machine_file is None:
        planned = _plan_here(options, tiles)
    else:
        cluster = read_machine(options.machine_file)
        n_threads = options.threads or cluster.n_cores
        if options.ranks is not None:
            show_ranks(cluster, options.sizes, options.tokens, options.ranks, n_threads, options.quant, options.as_json)
            return
        with blame("--threads"):
            machine, costs = cluster.machine(n_threads), cluster.costs(1, n_threads)
        assert tiles.config != "auto"  # which is refused above
        with blame("--dims"):
            planned = plan_prolog(
                options.sizes, options.tokens[0], tiles.config, machine, micro=micro_tiles(ISAS[cluster.isa]),
                phase=options.phase, quant=options.quant, n_threads=n_threads, options=tiles.options, costs=costs,
            )  # fmt: skip
    if options.as_json:
        click.echo(planned.to_json())
    else:
        click.echo(planned.explain() if options.explain else planned)


def _plan_here(options: PlanOptions, tiles: TileSettings) -> PrologPlan:
    n_threads, costs, note, t = options.threads or usual_threads(max_threads()), None, "", options.tokens[0]
    with blame("--dims"):
        config: MlaTileConfig | CpuTiling | None
        if tiles.config == "auto":
            config, costs, note = stored_choice(this_machine(), options.sizes, options.quant, n_threads, t)
        else:
            config = tiles.config
        return plan_prolog(
            options.sizes, t, config, this_machine(), micro=MICRO_TILES, phase=options.phase, quant=options.quant,
            n_threads=n_threads, options=tiles.options, costs=costs, note=note,
        )  # fmt: skip
