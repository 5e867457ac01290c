"""The least time a plan can take on a machine of given rates."""

import math
from dataclasses import dataclass

from tiling.plan import PrologPlan

__all__ = ["Rates", "least_seconds"]


@dataclass(frozen=True)
class Rates:
    """What the threads in use reach together, per second: bytes from memory, fp32 operations, int8 operations.

    A multiply-add counts as two operations, as in ``PrologPlan.flops`` and ``PrologPlan.int8_ops``. ``bf16_flops_s``
    is what an instruction for pairs of bf16 reaches, None where the kernels have none.
    """

    bandwidth_bytes_s: float
    flops_s: float
    ops_s: float
    bf16_flops_s: float | None = None

    def __post_init__(self) -> None:
        """Check that each rate is positive and finite."""
        for name in ("bandwidth_bytes_s", "flops_s", "ops_s", "bf16_flops_s"):
            rate = getattr(self, name)
            if name == "bf16_flops_s" and rate is None:
                continue
            if not isinstance(rate, int | float) or isinstance(rate, bool):
                raise TypeError(f"{name}: expected a float > 0, got {rate!r}")
            if not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"{name}: expected a float > 0, got {rate}")


def least_seconds(plan: PrologPlan, rates: Rates) -> float:
    """Seconds below which ``plan`` cannot run: moving its bytes or doing its arithmetic, whichever takes longer.

    Bytes are the weights, once per tile of tokens, and the inputs and outputs; weights that stay in a cache between
    tiles can be read faster than that. fp32 and int8 arithmetic share the cores' ports, so their times add up; bf16
    products take the faster of the two ways there may be.
    """
    moving = plan.total_bytes / rates.bandwidth_bytes_s
    computing = plan.flops / max(rates.flops_s, rates.bf16_flops_s or 0) + plan.int8_ops / rates.ops_s
    return max(moving, computing)
