"""Comparison within the tolerances of the reference operators' tests; it lives in `oracle`."""

from .oracle.index_agreement import IndexAgreement, compare_index
from .oracle.indexer_tolerance import (
    ATTENTION_TOLERANCE,
    FUSED_TOLERANCES,
    INDEXER_TOLERANCES,
    compare_attention,
    compare_indexer,
)
from .oracle.tolerance import TOLERANCES, Agreement, Tolerance, compare_within, tolerance_of

__all__ = [
    "ATTENTION_TOLERANCE",
    "FUSED_TOLERANCES",
    "INDEXER_TOLERANCES",
    "TOLERANCES",
    "Agreement",
    "IndexAgreement",
    "Tolerance",
    "compare_attention",
    "compare_index",
    "compare_indexer",
    "compare_within",
    "tolerance_of",
]
