"""The command `mla-numba`."""

from .main import main

__all__ = ["main"]
