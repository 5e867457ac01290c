"""The command `mla-numba plan`: how a call would be computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import json_option, token_list, what_to_plan

__all__ = ["plan"]


@click.command()
@what_to_plan
@click.option("--tokens", type=token_list, required=True, help="Tokens of a call; with --ranks several, with commas.")
@click.option(
    "--threads", type=click.IntRange(1),
    help="Threads, with --ranks of each.  [default: as mla-numba info says; with --machine the cores of a socket]",
)  # fmt: skip
@click.option(
    "--machine", "machine_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Plan for the machine that this JSON file describes.",
)  # fmt: skip
@click.option(
    "--ranks", type=click.IntRange(1),
    help="With --machine: predict the times of 1, 2, 4, ... ranks that share the heads, up to so many.",
)  # fmt: skip
@click.option(
    "--explain", is_flag=True, help="Add the reason of each choice, the candidates, and what each setting does."
)
@json_option
def plan(**given: Any) -> None:
    """Show how a call would be computed; nothing is compiled or run.

    With --machine and --ranks show what the ranks would take by the planner's model, with the down-projection on each
    rank whole or split among them. docs/scaling.md describes the file.
    """
    from ..plan import plan as work

    work(**given)
