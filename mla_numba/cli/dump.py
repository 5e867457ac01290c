"""The command `mla-numba dump`: golden data for an operator."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..base.modes import QuantMode
from ..dumps import DumpSettings, write_dump
from ..dumps.names import INPUTS, OUTPUTS, SCALES
from .faults import said_plainly
from .options import check_smooth
from .progress import Advance, Steps

__all__ = ["dump"]

_N_FILES = len(INPUTS) + len(SCALES) + len(OUTPUTS)


def dump(folder: Path, tokens: int, quant: QuantMode, smooth: bool, **given: Any) -> None:
    """Writes the files, and says where."""
    check_smooth(smooth, quant)
    settings = {field.name: given.pop(field.name) for field in fields(DumpSettings)}
    with said_plainly(), Steps() as steps, ExitStack() as stack:
        advance: Advance | None = None

        def finished(name: str) -> None:
            nonlocal advance
            if advance is None:
                stack.close()
                advance = stack.enter_context(steps.step("writing files", _N_FILES))
            advance()

        stack.enter_context(steps.step("computing the reference"))
        paths = write_dump(
            folder, tokens, quant, settings=DumpSettings(**settings), smooth=smooth, finished=finished, **given
        )
    n_bytes = sum(path.stat().st_size for path in paths)
    click.echo(f"{folder}: {len(paths)} files, {n_bytes / 1e6:.2f} MB; mla-numba check {folder}")
