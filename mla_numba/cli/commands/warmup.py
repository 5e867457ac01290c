"""The command `mla-numba warmup`: compile every kernel ahead of use."""

from __future__ import annotations

import click

from ..options import threads_option

__all__ = ["warmup"]


@click.command()
@threads_option
def warmup(threads: int) -> None:
    """Compile the kernels of every mode ahead of use and keep them; --threads 1: only those for one thread."""
    from ..warmup import warmup as work

    work(threads)
