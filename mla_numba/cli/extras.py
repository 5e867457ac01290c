"""Packages that only some parts of this one need: which are there, and how the others are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from ..base.extras import how_to_install

__all__ = ["EXTRAS", "Extra", "extras"]

EXTRAS = {
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "hf",
    "matplotlib": "plot",
    "jinja2": "plot",
    "optuna": "tune",
    "mpi4py": "mpi",
    "pytest-benchmark": "bench",
    "onnxruntime": "bench",
}  # each with the extra that installs it


class Extra(NamedTuple):
    """A package, its version or None where it is missing, and the command that installs it."""

    name: str
    version: str | None
    install: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}" if self.version else f"no {self.name} ({self.install})"


def extras() -> list[Extra]:
    """Looks for all of them, without importing any."""
    return [Extra(name, _version(name), how_to_install(extra, name)) for name, extra in EXTRAS.items()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
