"""The versions that results depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version

from .._version import __version__

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Of this package, of Python, and of the packages that compile and compute."""
    packages = ("numba", "llvmlite", "numpy", "ml_dtypes")
    return {"mla_numba": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}
