"""What a plan moves and computes, and the least time that takes on a machine of given rates."""

from dataclasses import dataclass
from typing import Protocol

from tiling.rates import Rates

__all__ = ["HasWork", "Work", "least_seconds"]


class HasWork(Protocol):
    """Anything that says what it moves and computes: ``Work``, or a plan."""

    @property
    def total_bytes(self) -> int:
        """Bytes moved."""

    @property
    def flops(self) -> int:
        """Operations of bf16 products."""

    @property
    def int8_ops(self) -> int:
        """Operations of int8 products."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is moved and computed; a multiply-add counts as two operations.

    Args:
        total_bytes: Bytes moved.
        flops: Operations of bf16 products.
        int8_ops: Operations of int8 products.

    Examples:
        >>> from tiling import Work
        >>> Work(100, flops=10) + Work(50, int8_ops=5)
        Work(total_bytes=150, flops=10, int8_ops=5)
    """

    total_bytes: int
    flops: int = 0
    int8_ops: int = 0

    @property
    def n_ops(self) -> int:
        """Operations of either kind."""
        return self.flops + self.int8_ops

    def __add__(self, other: "Work") -> "Work":
        """The work of both."""
        return Work(self.total_bytes + other.total_bytes, self.flops + other.flops, self.int8_ops + other.int8_ops)


def least_seconds(work: HasWork, rates: Rates) -> float:
    """Seconds below which ``work`` cannot be done: moving its bytes or doing its arithmetic, whichever takes longer.

    A plan's bytes are the weights, once per tile of tokens, and the inputs and outputs; weights that stay in a cache
    between tiles can be read faster than that. fp32 and int8 arithmetic share the cores' ports, so their times add up;
    bf16 products take the faster of the two ways there may be.

    Args:
        work: ``Work``, or a plan.
        rates: What the threads reach together.

    Returns:
        Seconds.

    Examples:
        >>> from tiling import Rates, Work, least_seconds
        >>> rates = Rates(bandwidth_bytes_s=50e9, flops_s=1e12, ops_s=4e12)
        >>> least_seconds(Work(200_000_000, flops=2_000_000_000), rates)  # memory decides
        0.004
    """
    moving = work.total_bytes / rates.bandwidth_bytes_s
    computing = work.flops / max(rates.flops_s, rates.bf16_flops_s or 0) + work.int8_ops / rates.ops_s
    return max(moving, computing)
