"""The share of the machine's limit that a time reaches, or why there is none."""

from __future__ import annotations

from typing import NamedTuple

from ..call.planning import this_machine

__all__ = ["FROM_CACHES", "SLOW_PROBES", "Share", "are_cold", "share_of"]

CACHES = 4  # last-level caches that all copies of weights fill together, so that a call finds none of its own there

FROM_CACHES = "weights came from caches in part"
SLOW_PROBES = "the machine was slower while its rates were measured"


class Share(NamedTuple):
    """The least possible time over a measured one, from 0 to 1; None with the reason where it would be more."""

    value: float | None
    reason: str = ""


def are_cold(n_copies: int, n_bytes: int) -> bool:
    """Whether copies of weights of `n_bytes` each, that take turns, push each other out of the last-level cache."""
    return n_copies > 1 and n_copies * n_bytes >= CACHES * this_machine().l3_bytes


def share_of(least: float, measured: float, cold: bool) -> Share:
    """The share of the limit, of times in the same unit; `cold` as `are_cold` says.

    A call cannot be faster than the limit. If it seems so, either its weights did not come from memory, or the rates
    that the limit follows from were measured in a slower moment: that is no share.
    """
    share = least / measured
    return Share(share) if share <= 1 else Share(None, SLOW_PROBES if cold else FROM_CACHES)
