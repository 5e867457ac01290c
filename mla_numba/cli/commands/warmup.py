"""The command `mla-numba warmup`: compile kernels ahead of use."""

from __future__ import annotations

from typing import Any

import click

from ..options import threads_option

__all__ = ["warmup"]


@click.command()
@threads_option
@click.option(
    "--with-indexer", is_flag=True,
    help="Also the kernels of the indexer's prolog, the lightning index and sparse attention.",
)  # fmt: skip
def warmup(**given: Any) -> None:
    """Compile the kernels of every mode ahead of use and keep them; --threads 1: only those for one thread."""
    from ..warmup import warmup as work

    work(**given)
