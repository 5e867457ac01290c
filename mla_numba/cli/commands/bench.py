"""`mla-numba bench`: run the suite of a checkout, and write what it found as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..bench.parts import PAGE, PARTS
from ..options import finite, text_to_write, threads_option, token_list

__all__ = ["bench"]


@click.command()
@click.option("--tokens", type=token_list, help="Tokens of a call, with commas.  [default: 1,8,32,128,512]")
@click.option("--weights", type=click.Choice(["cold", "warm"]), help="Only with weights cold, or only warm.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Only these parts; may be repeated.")
@click.option("--no-peers", is_flag=True, help="Leave other libraries out.")
@click.option("--slow", is_flag=True, help="Also time the first call on an empty kernel cache: half a minute.")
@click.option("--tiny", is_flag=True, help="Small dimensions, to try the command itself.")
@click.option("--seconds", type=click.FloatRange(0.01, 3600), default=0.5, show_default=True, callback=finite,
              help="Time for each bench.")  # fmt: skip
@threads_option
@click.option(
    "--output", type=click.Path(path_type=Path), default=PAGE, show_default=True,
    callback=text_to_write, help="HTML file to write.",
)  # fmt: skip
@click.option(
    "--json",
    "save",
    type=click.Path(path_type=Path),
    callback=text_to_write,
    help="File for the results, as pytest-benchmark's JSON.  [default: beside the page]",
)
@click.option(
    "--from", "saved", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run nothing; make the page from such JSON.",
)  # fmt: skip
@click.pass_context
def bench(ctx: click.Context, /, **given: Any) -> None:
    """Time the prolog, its sweeps and products against other libraries, and write an HTML page.

    Runs pytest-benchmark on the folder bench of a checkout, which is not part of an installation. Every result is
    checked before it is timed. Needs the extras bench and plot. Libraries that are not installed are left out, and so
    are those that fail or are wrong on this CPU; the page says which and why. Beside the page are the results as JSON
    and what pytest wrote, as a log. After Ctrl-C all three hold what was done.

    Exit status: 0 if all benches ran or were left out, 1 if a check of this library failed, 130 after Ctrl-C
    or SIGTERM.
    """
    from ..bench.command import bench as work

    work(ctx, **given)
