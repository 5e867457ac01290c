"""The parts of the suite that `mla-numba bench` runs, and the page that it writes if no other is named."""

from pathlib import Path

__all__ = ["PAGE", "PARTS"]

PARTS = ("prolog", "attention", "sweeps", "products", "packing", "cold_start")
PAGE = Path("mla-numba-bench.html")
