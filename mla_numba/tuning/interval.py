"""A median, and how far it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

__all__ = ["CONFIDENCE", "Interval", "median_interval"]

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """The median of some values, and how far it is known; `median_interval` has an example.

    | field         | what it is                                                                               |
    |---------------|------------------------------------------------------------------------------------------|
    | `median`      | the median                                                                               |
    | `low`, `high` | an interval that holds the true median with 95 % at least; None for fewer than six values |
    | `n`           | how many values there are                                                                |
    """

    median: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None

    def __str__(self) -> str:
        """Such as "0.957 (0.951 to 0.963)"."""
        if self.low is None or self.high is None:
            return f"{self.median:.3f} (no interval: {self.n} values)"
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median of independent values and its interval, from the order of the values alone.

    The number of values below the true median is binomial, whatever their distribution. So the k-th least and the
    k-th largest value enclose it with a probability that is known exactly, and nothing is drawn at random. Of all k
    that reach `confidence` the largest is taken.

    Args:
        values: At least one number.
        confidence: The least probability, between 0 and 1.

    Returns:
        The median with its interval.

    Raises:
        ValueError: There is no value, or `confidence` is not between 0 and 1.

    Examples:
        >>> from mla_numba.testing import median_interval
        >>> median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0])
        Interval(median=4.0, low=1.0, high=7.0, n=7)
    """
    if not values:
        raise ValueError("values: expected at least one, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    n, ordered = len(values), sorted(values)
    k, outside = 0, 0  # of 2^n equally likely cases, those in which fewer than k values are below
    while 2 * (outside + math.comb(n, k)) <= (1 - confidence) * 2**n:
        outside += math.comb(n, k)
        k += 1
    if k == 0:
        return Interval(median(ordered), None, None, n)
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], n)
