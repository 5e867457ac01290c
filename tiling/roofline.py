"""The least time a plan can take on a machine of given rates."""

from typing import Protocol

from tiling.rates import Rates

__all__ = ["Workload", "least_seconds"]


class Workload(Protocol):
    """What is to be moved and computed: a ``PrologPlan``, or three numbers in its place."""

    @property
    def total_bytes(self) -> int:
        """Bytes of weights, inputs and outputs."""

    @property
    def flops(self) -> int:
        """Operations on bf16."""

    @property
    def int8_ops(self) -> int:
        """Operations on int8 codes."""


def least_seconds(plan: Workload, rates: Rates) -> float:
    """Seconds below which ``plan`` cannot run: moving its bytes or doing its arithmetic, whichever takes longer.

    Bytes are the weights, once per tile of tokens, and the inputs and outputs; weights that stay in a cache between
    tiles can be read faster than that. fp32 and int8 arithmetic share the cores' ports, so their times add up; bf16
    products take the faster of the two ways there may be.
    """
    moving = plan.total_bytes / rates.bandwidth_bytes_s
    computing = plan.flops / max(rates.flops_s, rates.bf16_flops_s or 0) + plan.int8_ops / rates.ops_s
    return max(moving, computing)
