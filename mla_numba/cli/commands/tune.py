"""The command `mla-numba tune`: search for faster plans and keep what was found."""

from __future__ import annotations

from typing import Any

import click

from ..options import finite, json_option, layer_options, seed_option, token_list, weight_sets_option

__all__ = ["tune"]


@click.command()
@click.option(
    "--tokens", type=token_list, default="1,8,32,128", show_default=True, help="Tokens of a call, with commas."
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 7 * 86400, min_open=True),
    default=120,
    show_default=True,
    callback=finite,
    help="Seconds of search in all, divided among the numbers of tokens.",
)
@layer_options
@weight_sets_option
@seed_option
@click.option("--dry-run", is_flag=True, help="Search only; keep nothing.")
@click.option("--restart", is_flag=True, help="Search anew where the same command was interrupted.")
@click.option("--list", "list_only", is_flag=True, help="Show what is kept, and search nothing.")
@click.option(
    "--forget",
    is_flag=True,
    help="Remove what is kept, and search nothing. With --tokens, --quant, --threads, --dims or --small only what is "
    "kept for these.",
)
@json_option
@click.pass_context
def tune(ctx: click.Context, /, **given: Any) -> None:
    """Search for plans faster than the planner's own, and keep them for MlaProlog(tile_config="auto").

    A plan found for T tokens is used for all numbers of tokens up to the next power of two, on this machine, with these
    dimensions, mode and threads. If nothing is faster by more than noise, that is kept too, and the command says so.
    What was measured while others took too much of the machine is not kept. After Ctrl-C the same command goes on. Exit
    status: 0, or 1 if a bit of any candidate is wrong, if for some T every candidate is wrong or refused, or if the
    machine was busy; 130 after Ctrl-C.
    """
    from ..tune import tune as work

    work(ctx, **given)
