"""The command `mla-numba run`: make weights, plan, time the sweeps, compare with the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...base.modes import DOWN_WAYS, PAGED_MODES
from ..indexer_options import indexer_options
from ..options import (
    block_size_type,
    json_option,
    numerics_option,
    smooth_option,
    text_to_write,
    threads_option,
    tokens_option,
    what_to_plan,
)

__all__ = ["run"]


@click.command()
@what_to_plan
@tokens_option
@smooth_option
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
@click.option("--block-size", type=block_size_type, default=128, show_default=True, help="Tokens of a cache block.")
@numerics_option
@click.option(
    "--with-indexer", is_flag=True, help="Compute the prolog of the lightning indexer in the same calls."
)  # fmt: skip
@indexer_options
@click.option("--no-check", is_flag=True, help="Do not compare the result with the reference.")
@click.option(
    "--trace", "trace_file", type=click.Path(path_type=Path), metavar="FILE", callback=text_to_write,
    help="Write when each thread did what in each timed call, for chrome://tracing or ui.perfetto.dev.",
)  # fmt: skip
@click.option(
    "--mpi", is_flag=True,
    help="Share the heads among the ranks of mpiexec -n N python -m mpi4py -m mla_numba run --mpi.",
)  # fmt: skip
@click.option(
    "--down", type=click.Choice(DOWN_WAYS), default="auto", show_default=True,
    help="With --mpi: whether each rank computes the down-projection whole or a share of it.",
)  # fmt: skip
@json_option
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """Run the prolog on random weights, time its sweeps and compare every bit with the reference.

    Exit status: 0 if every bit is equal or --no-check is given, 1 if one is not, 2 for a wrong option.
    """
    from ..run import run as work

    work(ctx, **given)
