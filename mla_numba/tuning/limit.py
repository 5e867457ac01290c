"""The share of the machine's limit that a time reaches, or why there is none."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FROM_CACHES", "SLOW_PROBES", "Share", "share_of"]

FROM_CACHES = "weights came from caches in part"
SLOW_PROBES = "the machine was slower while its rates were measured"


class Share(NamedTuple):
    """The share of the machine's limit that a time reaches; `do_bench` has an example.

    | field    | what it is                                                               |
    |----------|--------------------------------------------------------------------------|
    | `value`  | the least possible time over the measured one; None where it would be above 1 |
    | `reason` | why there is none, else empty                                            |
    """

    value: float | None
    reason: str = ""


def share_of(least: float, measured: float, cold: bool) -> Share:
    """The share of the limit, of times in the same unit; `cold` as `copies.are_cold` says.

    A call cannot be faster than the limit. If it seems so, either its weights did not come from memory, or the rates
    that the limit follows from were measured in a slower moment: that is no share.
    """
    share = least / measured
    return Share(share) if share <= 1 else Share(None, SLOW_PROBES if cold else FROM_CACHES)
