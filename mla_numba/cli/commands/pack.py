"""The command `mla-numba pack`: pack one layer of a checkpoint into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import file_to_write, json_option, quant_option, threads_option

__all__ = ["pack"]


def shard_type(text: str) -> tuple[int, int]:
    """A rank and a number of ranks, from text such as "2/4"."""
    rank, slash, size = text.partition("/")
    if not (slash and rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise click.BadParameter(f"expected RANK/SIZE, a rank from 0 below the number of ranks, got {text!r}")
    return int(rank), int(size)


@click.command()
@click.argument("folder", metavar="CHECKPOINT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--layer", type=click.IntRange(0), required=True, help="Layer to pack.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, callback=file_to_write, help="File to write."
)  # fmt: skip
@click.option(
    "--indexer-out", type=click.Path(path_type=Path), callback=file_to_write, metavar="PATH",
    help="File to write the layer's lightning indexer to, whole also with --shard; with --quant b or ab.",
)  # fmt: skip
@click.option(
    "--shard", type=shard_type, metavar="RANK/SIZE",
    help="Pack the heads of one of SIZE ranks that share the layer, counted from 0.",
)  # fmt: skip
@quant_option
@threads_option
@json_option
def pack(**given: Any) -> None:
    """Pack the attention projections of a layer of a DeepSeek CHECKPOINT folder for this CPU's kernels.

    MlaProlog.load maps the file, and PackedIndexer.load that of the indexer. An older file is replaced once the new
    one is complete; for a symbolic link that is its target. Anything but a regular file is refused. Needs the extra hf.
    """
    from ..pack import pack as work

    work(**given)
