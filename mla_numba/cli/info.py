"""The command `mla-numba info`: versions, this machine and what was chosen for it, its rates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from tiling import Rates
from tiling.plan.groups import groups_of_nodes, groups_text
from tiling.system.usable import Usable

from .._version import __version__
from ..base.dims import MlaDims
from ..base.threads import usual_threads, why_usual_threads
from ..call.planning import MICRO_TILES, this_machine
from ..call.tuned import FOLDER_VARIABLE, Stored, count_stored, store_folder
from ..kernels import CHOICE, ISA, ISA_VARIABLE, ISAS, cache_folder, max_threads, threading_layer
from ..tuning.rates import least_ms, measure_all, rates_as_dict, slower_together
from .extras import Extra, extras
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
        for line in slower_together(measured.rates):
            click.echo(f"busy machine, do not trust these rates: {line}")
        Console().print(show_rates(measured.rates, measured.least_ms))


@dataclass(frozen=True)
class Facts:
    """What is known without measuring; of a folder None where the user has none."""

    versions: Mapping[str, str]
    extras: Sequence[Extra]
    threading_layer: str | None
    kernel_folder: Path | None
    tuned_folder: Path | None
    stored: Stored

    @classmethod
    def found(cls) -> Facts:
        """Looks at the environment and into the folders of kernels and of what was tuned."""
        Usable.detect()  # before the threading layer, which may bind this thread to one core
        try:
            layer = threading_layer()
        except ValueError:  # of NUMBA_THREADING_LAYER: the package that it names is missing
            layer = None
        try:
            folder, stored = store_folder(), count_stored(this_machine(), __version__)
        except OSError:
            folder, stored = None, Stored(0, 0, 0)
        return cls(versions(), extras(), layer, cache_folder(), folder, stored)

    def lines(self) -> dict[str, object]:
        """What is shown, by heading."""
        return {
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions.items()),
            "extras": ", ".join(map(str, self.extras)),
            "machine": this_machine(),
            "instruction set": f"{ISA.name}, {ISA.lanes} lanes of fp32: {CHOICE.reason}",
            "can also run": f"{', '.join(CHOICE.others) or 'no other'} ({ISA_VARIABLE})",
            "register tiles": ", ".join(f"{dtype} {micro}" for dtype, micro in MICRO_TILES.items()),
            "threading layer": f"{self.threading_layer or f'none: {_layer_asked()} cannot be loaded'} "
            "(NUMBA_THREADING_LAYER)",
            **Usable.detect().lines(),
            "threads": f"{usual_threads(max_threads())}: {why_usual_threads(max_threads())}",
            **self._groups_line(),
            "kernel cache": self._kernel_line(),
            "tuned": self._tuned_line(),
        }

    def _groups_line(self) -> dict[str, str]:
        """Where there are several NUMA nodes, the groups of threads, and whether threads keep to their nodes."""
        groups = _groups()
        if not groups:
            return {}
        binding = os.environ.get("OMP_PROC_BIND", "")
        if self.threading_layer != "omp" or binding.lower() in ("", "false"):
            kept = "threads may leave their node: only OMP_PROC_BIND=spread on the layer omp keeps them"
        else:
            kept = f"kept there by OMP_PROC_BIND={binding}"
        return {"groups": f"{groups_text(groups)} threads, one a NUMA node; {kept}"}

    def _kernel_line(self) -> str:
        if self.kernel_folder is None:
            return "none: neither a home folder nor NUMBA_CACHE_DIR"
        n_bytes, n_files = folder_size(self.kernel_folder)
        return f"{self.kernel_folder} ({megabytes(n_bytes)} in {n_files} files)"

    def _tuned_line(self) -> str:
        if self.tuned_folder is None:
            return f"none: neither a home folder nor {FOLDER_VARIABLE}"
        n_tilings, n_rates, n_others = self.stored
        others = f", {n_others} of other machines, settings or versions" if n_others else ""
        return f"{self.tuned_folder} ({n_tilings} tilings, {n_rates} rates{others})"

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        n_bytes, n_files = folder_size(self.kernel_folder) if self.kernel_folder else (0, 0)
        return {
            "versions": self.versions,
            "extras": {extra.name: {"version": extra.version, "install": extra.install} for extra in self.extras},
            "machine": asdict(this_machine()),
            "isa": ISA.facts,
            "isa_reason": CHOICE.reason,
            "isa_lacking": {name: CHOICE.lacking(isa) for name, isa in ISAS.items()},
            "register_tiles": {dtype: asdict(micro) for dtype, micro in MICRO_TILES.items()},
            "threading_layer": self.threading_layer,
            "threading_layer_asked": _layer_asked(),
            "usable": asdict(Usable.detect()) | {"allowed": sorted(Usable.detect().allowed)},
            "n_threads": usual_threads(max_threads()),
            "n_threads_reason": why_usual_threads(max_threads()),
            "groups": _groups(),
            "kernel_cache": {
                "folder": self.kernel_folder and str(self.kernel_folder),
                "bytes": n_bytes,
                "n_files": n_files,
            },
            "tuned": {"folder": self.tuned_folder and str(self.tuned_folder)} | self.stored._asdict(),
        }


def _groups() -> tuple[int, ...]:
    """Threads of each group that a call has, nothing for a single one."""
    return groups_of_nodes(usual_threads(max_threads()), this_machine().node_cores)


def _layer_asked() -> str:
    return os.environ.get("NUMBA_THREADING_LAYER", "default")


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
            "slower": slower_together(self.rates),
        }
