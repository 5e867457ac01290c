"""Comparison within the tolerances of the reference operator's test; it lives in `oracle`."""

from .oracle.tolerance import TOLERANCES, Agreement, Tolerance, compare_within, tolerance_of

__all__ = ["TOLERANCES", "Agreement", "Tolerance", "compare_within", "tolerance_of"]
