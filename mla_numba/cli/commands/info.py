"""The command `mla-numba info`: versions, this machine, its rates."""

from __future__ import annotations

from typing import Any

import click

from ..options import json_option, threads_option

__all__ = ["info"]


@click.command()
@click.option("--measure", is_flag=True, help="Measure the rates of 1 to --threads threads; some seconds for each.")
@threads_option
@json_option
@click.pass_context
def info(ctx: click.Context, /, **given: Any) -> None:
    """Show versions and extras, this machine, its instruction set, and where kernels and tuned tilings are kept.

    With --measure also the rates that threads reach together (bytes read from memory, fp32 multiply-adds, int8 dot
    products) and the least time that they allow a decode call at DeepSeek-V3.2's dimensions, --quant b.
    """
    from ..info import info as work

    work(ctx, **given)
