"""The command `mla-numba dump`: golden data for an operator."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..base.checks import check_choice
from ..base.modes import QuantMode
from ..dumps import DumpSettings, write_dump
from ..dumps.arguments import ARGUMENTS
from ..dumps.operators import OPERATORS
from .dump_options import check_read
from .faults import blame, said_plainly
from .options import check_smooth
from .progress import Advance, Steps

__all__ = ["dump"]


def dump(ctx: click.Context, folder: Path, tokens: int, quant: QuantMode, smooth: bool, **given: Any) -> None:
    """Writes the files, and says where."""
    check_smooth(smooth, quant)
    settings = {field.name: given.pop(field.name) for field in fields(DumpSettings)}
    check_read(ctx, settings["operator"])
    with blame("--quant"):
        check_choice("quant", quant, OPERATORS[settings["operator"]].modes)
    n_files = len(ARGUMENTS[settings["operator"]].by_key)
    with said_plainly(), Steps() as steps, ExitStack() as stack:
        advance: Advance | None = None

        def finished(name: str) -> None:
            nonlocal advance
            if advance is None:
                stack.close()
                advance = stack.enter_context(steps.step("writing files", n_files))
            advance()

        stack.enter_context(steps.step("computing the reference"))
        paths = write_dump(
            folder, tokens, quant, settings=DumpSettings(**settings), smooth=smooth, finished=finished, **given
        )
    n_bytes = sum(path.stat().st_size for path in paths)
    click.echo(f"{folder}: {len(paths)} files, {n_bytes / 1e6:.2f} MB; mla-numba check {folder}")
