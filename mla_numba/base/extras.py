"""What is said where a package of an extra is missing: how to install it, as it works for this installation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import distributions

__all__ = ["how_to_install", "missing", "needs"]


def how_to_install(extra: str, package: str) -> str:
    """The pip command that installs `package`: by its extra, which pins its versions, or by its own name.

    pip takes the extras of a package that it has installed itself. Where this one only lies on Python's path, pip would
    look for it in an index.
    """
    is_installed = any(found.read_text("RECORD") is not None for found in distributions(name="mla_numba"))
    return f"pip install 'mla_numba[{extra}]'" if is_installed else f"pip install {package}"


def missing(label: str, package: str, extra: str) -> ModuleNotFoundError:
    """The error of a package that is missing; `label` begins its message."""
    said = f"{label}: expected the package {package}, got none: {how_to_install(extra, package)}"
    return ModuleNotFoundError(said, name=package)


@contextmanager
def needs(label: str, extras: Mapping[str, str]) -> Iterator[None]:
    """A block of imports, in which a missing package of `extras` (package to extra) raises the error of `missing`."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = error.name or ""
        if package not in extras:
            raise
        raise missing(label, package, extras[package]) from None
