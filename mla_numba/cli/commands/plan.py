"""The command `mla-numba plan`: how a call would be computed."""

from __future__ import annotations

from typing import Any

import click

from ..options import json_option, tokens_type, what_to_plan

__all__ = ["plan"]


@click.command()
@what_to_plan
@click.option("--tokens", type=tokens_type, required=True, help="Tokens of a call.")
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: as mla-numba info says]")
@click.option(
    "--explain", is_flag=True, help="Add the reason of each choice, the candidates, and what each setting does."
)
@json_option
def plan(**given: Any) -> None:
    """Show how a call would be computed; nothing is compiled or run."""
    from ..plan import plan as work

    work(**given)
