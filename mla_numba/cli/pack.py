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
from ..prolog import MlaProlog
from ..weights.checkpoint import Checkpoint
from .faults import said_plainly
from .progress import Steps
from .shown import megabytes

__all__ = ["pack"]

_N_TENSORS = 6


def pack(
    folder: Path, layer: int, out: Path, shard: tuple[int, int] | None, quant: QuantMode, threads: int, as_json: bool
) -> None:
    """Packs, and says what came of it."""
    with said_plainly(), Steps() as steps:
        packed = pack_layer(Checkpoint(folder), Part(layer, quant, shard), out, threads, steps)
    if as_json:
        click.echo(json.dumps(packed.as_dict(), indent=2))
        return
    if packed.quantization:
        click.echo(packed.quantization)
    click.echo(f"{out}: {megabytes(packed.n_bytes)}, maps in {packed.load_s * 1e3:.1f} ms")


class Part(NamedTuple):
    """What to pack: a layer in a mode, or the heads of a rank of so many ranks."""

    layer: int
    quant: QuantMode
    shard: tuple[int, int] | None

    def __str__(self) -> str:
        rank = "" if self.shard is None else f", heads of rank {self.shard[0]} of {self.shard[1]}"
        return f"layer {self.layer}, mode {self.quant}{rank}"


@dataclass(frozen=True, slots=True)
class Packed:
    """What came of it. `quantization` is the error that int8 brought, as text, where there is a report of it."""

    path: Path
    n_bytes: int
    load_s: float
    quantization: str | None
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "out": str(self.path),
            "bytes": self.n_bytes,
            "load_s": self.load_s,
            "quantization": self.quantization,
            "seconds": self.seconds,
        }


def pack_layer(checkpoint: Checkpoint, part: Part, out: Path, n_threads: int, steps: Steps) -> Packed:
    """Reads, quantises, packs and writes a layer, reads the file back with its checksums, and times a plain load."""
    with steps.step(f"reading {part}", _N_TENSORS) as advance:
        weights = checkpoint.load_layer(
            part.layer, part.quant, shard=part.shard, finished=lambda name: advance()
        ).weights
    with steps.step("packing weights"):
        packed = weights.pack(n_threads)
    with steps.step("writing the file"):
        packed.save(out)
    with steps.step("verifying the file"):
        MlaProlog.load(out, verify=True)
    begin = time.perf_counter()
    MlaProlog.load(out)
    load_s = time.perf_counter() - begin
    report = weights.quantization
    shown = str(report) if report is not None and report.errors else None
    return Packed(out, os.stat(out).st_size, load_s, shown, dict(steps.seconds))
