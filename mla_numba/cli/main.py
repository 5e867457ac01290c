"""The command `mla-numba`: a group of commands, each in a file of its own."""

from __future__ import annotations

import errno
from typing import Any

import click

from .._version import __version__
from .commands.attend import attend
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

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO")}


class Commands(click.Group):
    """A group whose commands end with one line after Ctrl-C, when memory or the disk that standard output goes to is
    full, and for a wrong `MLA_NUMBA_ISA`.
    """

    def main(self, *args: Any, **settings: Any) -> Any:
        """Runs the command line; help is written here, outside `invoke`."""
        try:
            return super().main(*args, **settings)
        except OSError as error:  # of a file that a command writes, the command speaks
            if error.errno not in _FULL or error.filename is not None:
                raise
            click.ClickException(f"cannot write: {error.strerror}").show()
            raise SystemExit(1) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was named."""
        try:
            with interruptible():
                return super().invoke(ctx)
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}" if str(error) else "not enough memory") from None
        except ValueError as error:  # kernels raise it when they are imported, in any command
            if not str(error).startswith("MLA_NUMBA_ISA: "):
                raise
            raise click.ClickException(str(error)) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes each command's first sentence whole."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=10**6)) for name, command in found if command])


@click.group(cls=Commands, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="mla-numba")
def main() -> None:
    """The quantised MLA prolog of DeepSeek-V3.2 on this CPU: time it, check it, look at its plan."""


for command in (run, attend, plan, info, pack, warmup, check, dump, sweep, tune, bench):
    main.add_command(command)

if __name__ == "__main__":
    main()
