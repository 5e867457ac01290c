"""The command `mla-numba pack`: pack one layer of a checkpoint into a file."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..base.modes import QuantMode
from ..weights.checkpoint import Checkpoint
from ..weights.indexer import IndexerWeights
from ..weights.plain import MlaWeights
from .faults import said_plainly
from .indexer_options import check_quant_of_indexer
from .progress import Steps
from .shown import megabytes

__all__ = ["pack"]

_N_TENSORS = {"layer": 6, "indexer": 5}


class PackOptions(NamedTuple):
    """The command's options."""

    folder: Path
    layer: int
    out: Path
    indexer_out: Path | None
    shard: tuple[int, int] | None
    quant: QuantMode
    threads: int
    as_json: bool

    def check(self) -> None:
        """Refuses options that do not go together."""
        if self.indexer_out is None:
            return
        check_quant_of_indexer("--indexer-out", self.quant)
        if self.indexer_out.resolve() == self.out.resolve():
            raise click.UsageError(f"--indexer-out: expected another file than --out, got {self.indexer_out} for both")

    def __str__(self) -> str:
        rank = "" if self.shard is None else f", heads of rank {self.shard[0]} of {self.shard[1]}"
        return f"layer {self.layer}, mode {self.quant}{rank}"


def pack(**given: Any) -> None:
    """Packs, and says what came of it."""
    options = PackOptions(**given)
    options.check()
    with said_plainly(), Steps() as steps:
        packed = pack_layer(Checkpoint(options.folder), options, steps)
    if options.as_json:
        of_layer, *of_indexer = (file.as_dict() for file in packed)
        found = of_layer | {"indexer": of_indexer[0] if of_indexer else None, "seconds": dict(steps.seconds)}
        click.echo(json.dumps(found, indent=2))
        return
    for file in packed:
        if file.quantization:
            click.echo(file.quantization)
        click.echo(f"{file.path}: {megabytes(file.n_bytes)}, maps in {file.load_s * 1e3:.1f} ms")


@dataclass(frozen=True, slots=True)
class Packed:
    """A file that came of it. `quantization` is the error that int8 brought, as text, where there is a report of it."""

    path: Path
    n_bytes: int
    load_s: float
    quantization: str | None

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "out": str(self.path),
            "bytes": self.n_bytes,
            "load_s": self.load_s,
            "quantization": self.quantization,
        }


def pack_layer(checkpoint: Checkpoint, given: PackOptions, steps: Steps) -> list[Packed]:
    """Reads, quantises, packs and writes a layer and, where it has a file, its indexer; nothing before both are read.

    Each file is read back with its checksums, and a plain load of it is timed.
    """
    indexer = None
    with steps.step(f"reading {given}", _N_TENSORS["layer"]) as advance:
        weights = checkpoint.load_layer(
            given.layer, given.quant, shard=given.shard, finished=lambda name: advance()
        ).weights
    if given.indexer_out is not None:
        with steps.step(f"reading the indexer of layer {given.layer}", _N_TENSORS["indexer"]) as advance:
            indexer = checkpoint.load_indexer(given.layer, finished=lambda name: advance())
    files = [_packed(weights, given.out, given.threads, steps, ("weights", "the file"))]
    if indexer is not None and given.indexer_out is not None:
        files.append(_packed(indexer, given.indexer_out, given.threads, steps, ("the indexer", "the indexer's file")))
    return files


def _packed(
    weights: MlaWeights | IndexerWeights, out: Path, n_threads: int, steps: Steps, called: tuple[str, str]
) -> Packed:
    """One file, `called` so in the steps: its weights, and itself."""
    with steps.step(f"packing {called[0]}"):
        packed = weights.pack(n_threads)
    with steps.step(f"writing {called[1]}"):
        packed.save(out)
    with steps.step(f"verifying {called[1]}"):
        packed.load(out, verify=True)
    begin = time.perf_counter()
    packed.load(out)
    load_s = time.perf_counter() - begin
    report = weights.quantization
    shown = str(report) if report is not None and report.errors else None
    return Packed(out, os.stat(out).st_size, load_s, shown)
