"""The command `mla-numba`: a group of commands, each in a file of its own."""

from __future__ import annotations

from typing import Any

import click

from .._version import __version__
from .commands.bench import bench
from .commands.check import check
from .commands.dump import dump
from .commands.info import info
from .commands.pack import pack
from .commands.plan import plan
from .commands.run import run
from .commands.sweep import sweep
from .commands.tune import tune
from .commands.warmup import warmup
from .interrupts import interruptible

__all__ = ["main"]


class Commands(click.Group):
    """A group whose commands end with one line after Ctrl-C, and when memory runs out."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was named."""
        try:
            with interruptible():
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
