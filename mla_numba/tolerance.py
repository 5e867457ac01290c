"""Comparison within the tolerances of the reference operator's test; it lives in `oracle`."""

from .oracle.index_agreement import IndexAgreement, compare_index
from .oracle.tolerance import TOLERANCES, Agreement, Tolerance, compare_within, tolerance_of

__all__ = ["TOLERANCES", "Agreement", "IndexAgreement", "Tolerance", "compare_index", "compare_within", "tolerance_of"]
