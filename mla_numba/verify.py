"""Comparison of a call with the reference, bit for bit; it lives in `oracle`."""

from .oracle.bits import Mismatch, check_indexer_output, check_output, compare_bits, poison, reference_run

__all__ = ["Mismatch", "check_indexer_output", "check_output", "compare_bits", "poison", "reference_run"]
