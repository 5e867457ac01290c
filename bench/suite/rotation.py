"""What lies in the caches when a call begins: calls over several copies of the weights, taken in turns.

"cold": as many copies as together are several times the last-level cache, so that a call finds none of its weights
there, as in a model whose 60 other layers ran since. "warm": one copy, called again and again; of what is larger than
the last-level cache a part is cold all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from mla_numba.call.planning import this_machine
from tiling import ceil_div

__all__ = ["STATES", "copies", "rotate"]

STATES = ("cold", "warm")
CACHES = 4  # last-level caches that all copies together fill
LEAST_BYTES, MOST_BYTES = 2**28, 2**30


def copies(weight_bytes: int) -> int:
    """How many copies of weights of that size to hold: of small ones more."""
    total = min(max(CACHES * this_machine().l3_bytes, LEAST_BYTES), MOST_BYTES)
    return max(2, ceil_div(total, weight_bytes))


def rotate(calls: Sequence[Callable[[], Any]], state: str) -> Callable[[], Any]:
    """A call that makes the next of `calls` each time; for "warm" always the first."""
    if state == "warm":
        return calls[0]
    following = cycle(calls).__next__
    return lambda: following()()
