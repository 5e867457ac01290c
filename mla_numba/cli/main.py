"""The command `mla-numba`: a group of commands, each in a file of its own."""

from __future__ import annotations

from typing import Any

import click

from .._version import __version__
from .bench.command import bench
from .check import check
from .dump import dump
from .info import info
from .pack import pack
from .plan import plan
from .run import run
from .study.command import sweep
from .tune import tune
from .warmup import warmup

__all__ = ["main"]


class Commands(click.Group):
    """A group whose commands end with one line when memory runs out."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}" if str(error) else "not enough memory") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mla-numba")
def main() -> None:
    """The quantised MLA prolog of DeepSeek-V3.2 on this CPU: time it, check it, look at its plan."""


for command in (run, plan, info, pack, warmup, check, dump, sweep, tune, bench):
    main.add_command(command)

if __name__ == "__main__":
    main()
