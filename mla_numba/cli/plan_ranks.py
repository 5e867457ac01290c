"""`mla-numba plan --ranks`: what ranks would take on a machine that a file describes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich import box
from rich.table import Column, Table

from tiling import Cluster

from .._version import __version__
from ..base.dims import MlaDims
from ..base.json_file import read_object
from ..base.modes import QuantMode
from ..distributed.predict import Prediction, predict
from .faults import blame
from .shown import print_wide

__all__ = ["read_machine", "show_ranks", "sizes_up_to"]

_MAX_BYTES = 2**20  # of a description, which has some hundred


def read_machine(path: Path) -> Cluster:
    """The machine that a JSON file describes; ends the command where it describes none."""
    try:
        return Cluster.from_json(json.dumps(read_object(path, _MAX_BYTES)))
    except (OSError, TypeError, ValueError) as error:
        said = str(error).removeprefix("text: ")
        text = said if said.startswith(str(path)) else f"{path}: {said}"
        raise click.BadParameter(text, param_hint="'--machine'") from None


def sizes_up_to(ranks: int) -> list[int]:
    """Powers of two below a number of ranks, and that number."""
    return [*(2**i for i in range((ranks - 1).bit_length())), ranks]


def show_ranks(
    cluster: Cluster,
    dims: MlaDims,
    tokens: Sequence[int],
    ranks: int,
    n_threads: int,
    quant: QuantMode,
    as_json: bool,
) -> None:
    """Prints a row for each number of tokens and of ranks."""
    with blame("--threads"):
        cluster.machine(n_threads)
    with blame("--ranks"):
        found = [[predict(cluster, dims, t, size, n_threads, quant) for size in sizes_up_to(ranks)] for t in tokens]
    if as_json:
        facts = {"version": __version__, "machine": asdict(cluster), "dims": asdict(dims), "quant": quant}
        predictions = [prediction.as_dict() for of_t in found for prediction in of_t]
        click.echo(json.dumps(facts | {"predictions": predictions}, indent=2))
        return
    click.echo(f"{cluster}\nmodelled, not measured: quant {quant}, {n_threads} threads a rank")
    table = Table(*(Column(heading, justify="right") for heading in _HEADINGS), box=box.SIMPLE_HEAD)
    for of_t in found:
        for prediction in of_t:
            table.add_row(*_cells(prediction, of_t[0]), end_section=prediction is of_t[-1])
    print_wide(table, 130)


_HEADINGS = (
    "T", "ranks", "nodes", "heads", "MB a rank", "replicated us", "split us", "exchange us", "auto takes", "us",
    "times as fast", "efficiency",
)  # fmt: skip


def _cells(one: Prediction, alone: Prediction) -> list[str]:
    """A row; `alone`: the same tokens on one rank."""
    faster = alone.seconds / one.seconds
    split = [f"{seconds * 1e6:.0f}" if one.size > 1 else "" for seconds in (one.split_s, one.exchange_s)]
    return [
        str(one.t), str(one.size), str(one.n_nodes), str(one.n_heads), f"{one.weight_bytes / 1e6:.1f}",
        f"{one.replicated_s * 1e6:.0f}", *split, one.down if one.size > 1 else "", f"{one.seconds * 1e6:.0f}",
        f"{faster:.2f}", f"{faster / one.size:.0%}",
    ]  # fmt: skip
