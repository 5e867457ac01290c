"""Copies of weights that take turns, as a model's layers do, so that a call finds none of its own in the caches."""

from __future__ import annotations

from tiling import ceil_div

from ..base.checks import check_int
from ..call.planning import this_machine

__all__ = ["are_cold", "copies_to_be_cold"]

_CACHES = 4  # last-level caches that all copies together fill
_LEAST_BYTES, _MOST_BYTES = 2**28, 2**30


def copies_to_be_cold(n_bytes: int) -> int:
    """How many copies of weights of `n_bytes` have to take turns for each call to read its own from memory.

    Together they fill the last-level cache four times, 256 MiB at least and 1 GiB at most; there are at least two.

    Args:
        n_bytes: The bytes of one copy, at least 1.

    Returns:
        The number of copies.

    Raises:
        TypeError: `n_bytes` is no integer.
        ValueError: It is below 1.

    Examples:
        >>> from mla_numba.testing import copies_to_be_cold
        >>> copies_to_be_cold(2**31)
        2
    """
    total = min(max(_CACHES * this_machine().l3_bytes, _LEAST_BYTES), _MOST_BYTES)
    return max(2, ceil_div(total, check_int("n_bytes", n_bytes, 1)))


def are_cold(n_copies: int, n_bytes: int) -> bool:
    """Whether copies of `n_bytes` each push each other out of the last-level cache."""
    return n_copies > 1 and n_copies * n_bytes >= _CACHES * this_machine().l3_bytes
