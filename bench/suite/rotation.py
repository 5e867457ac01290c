"""What lies in the caches when a call begins: calls over several copies of the weights, taken in turns.

"cold": as many copies as together are several times the last-level cache, so that a call finds none of its weights
there, as in a model whose 60 other layers ran since. "warm": one copy, called again and again; of what is larger than
the last-level cache a part is cold all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

__all__ = ["STATES", "rotate"]

STATES = ("cold", "warm")


def rotate(calls: Sequence[Callable[[], Any]], state: str) -> Callable[[], Any]:
    """A call that makes the next of `calls` each time; for "warm" always the first."""
    if state == "warm":
        return calls[0]
    following = cycle(calls).__next__
    return lambda: following()()
