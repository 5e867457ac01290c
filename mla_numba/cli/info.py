"""The command `mla-numba info`: versions, this machine, its rates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from tiling import Rates

from ..base.dims import MlaDims
from ..call.planning import MICRO_TILES, this_machine
from ..kernels import ISA, cache_folder, max_threads
from ..tuning.rates import least_ms, measure_all, rates_as_dict
from .progress import Steps
from .rates_table import show_rates
from .shown import folder_size, megabytes
from .versions import versions

__all__ = ["info"]

_LEAST_TOKENS = (1, 8, 32, 128, 512)


def info(ctx: click.Context, measure: bool, threads: int, as_json: bool) -> None:
    """Prints what is known, and what was measured."""
    if not measure and ctx.get_parameter_source("threads") is not ParameterSource.DEFAULT:
        raise click.UsageError(f"--threads: expected together with --measure, got {threads} alone")
    facts, measured = Facts.found(), Measured.now(threads) if measure else None
    if as_json:
        click.echo(json.dumps(facts.as_dict() | (measured.as_dict() if measured else {}), indent=2))
        return
    for name, text in facts.lines().items():
        click.echo(f"{name:<16} {text}")
    if measured:
        Console().print(show_rates(measured.rates, measured.least_ms))


@dataclass(frozen=True)
class Facts:
    """What is known without measuring; of the kernel cache None where there is no folder for it."""

    versions: Mapping[str, str]
    threading_layer: str
    folder: Path | None
    n_bytes: int
    n_files: int

    @classmethod
    def found(cls) -> Facts:
        """Looks at the environment and into the folder of kernels."""
        folder = cache_folder()
        n_bytes, n_files = (0, 0) if folder is None else folder_size(folder)
        return cls(versions(), os.environ.get("NUMBA_THREADING_LAYER", "default"), folder, n_bytes, n_files)

    def lines(self) -> dict[str, object]:
        """What is shown, by heading."""
        return {
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions.items()),
            "machine": this_machine(),
            "instruction set": f"{ISA.name}, {ISA.lanes} lanes of fp32",
            "register tiles": ", ".join(f"{dtype} {micro}" for dtype, micro in MICRO_TILES.items()),
            "threading layer": f"{self.threading_layer} (NUMBA_THREADING_LAYER)",
            "threads": f"{max_threads()} (NUMBA_NUM_THREADS)",
            "kernel cache": f"{self.folder} ({megabytes(self.n_bytes)} in {self.n_files} files)"
            if self.folder
            else "none: neither a home folder nor NUMBA_CACHE_DIR",
        }

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "versions": self.versions,
            "machine": asdict(this_machine()),
            "isa": ISA.facts,
            "register_tiles": {dtype: asdict(micro) for dtype, micro in MICRO_TILES.items()},
            "threading_layer": self.threading_layer,
            "n_threads": max_threads(),
            "kernel_cache": {
                "folder": self.folder and str(self.folder),
                "bytes": self.n_bytes,
                "n_files": self.n_files,
            },
        }


@dataclass(frozen=True)
class Measured:
    """Rates by number of threads, and the least milliseconds that the last of them allow, by number of tokens."""

    rates: Mapping[int, Rates]
    least_ms: Mapping[int, float]

    @classmethod
    def now(cls, n_threads: int) -> Measured:
        """Measures 1 to `n_threads` threads."""
        with Steps() as steps, steps.step("measuring", n_threads, timed=True) as advance:
            rates = measure_all(n_threads, finished=advance)
        return cls(rates, least_ms(MlaDims.deepseek_v32(), _LEAST_TOKENS, n_threads, rates[n_threads]))

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "rates": [{"threads": n} | rates_as_dict(of_n) for n, of_n in self.rates.items()],
            "least_ms": self.least_ms,
        }
