"""Weights of the entry points that may be in FRACTAL_NZ."""

from __future__ import annotations

import numpy as np

from ..base import checks as check
from ..base.checks import Array
from ..layouts import from_fractal_nz

__all__ = ["as_nd", "columns", "is_fractal"]


def is_fractal(weight: object) -> bool:
    """Whether a weight is in FRACTAL_NZ: those arrays have four axes."""
    return isinstance(weight, np.ndarray) and weight.ndim == 4


def as_nd(name: str, weight: Array, k: int, n: int) -> Array:
    """A (k, n) weight in ND layout, whichever of the two it came in."""
    if not is_fractal(weight):
        return weight
    with check.renamed({"fractals": name}):
        return from_fractal_nz(weight, k, n)


def columns(weight: Array, scale: Array | None) -> int:
    """Columns of a weight that may be in FRACTAL_NZ: as many as its scale has, else all that the fractals hold."""
    if isinstance(scale, np.ndarray):
        return scale.size
    return weight.shape[0] * weight.shape[3] if is_fractal(weight) else 0
