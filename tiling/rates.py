"""What the threads of a machine reach."""

from dataclasses import dataclass

from tiling.check import check_rate

__all__ = ["Rates"]


@dataclass(frozen=True)
class Rates:
    """What the threads in use reach together, per second: bytes from memory, fp32 operations, int8 operations.

    A multiply-add counts as two operations, as in ``PrologPlan.flops`` and ``PrologPlan.int8_ops``. ``bf16_flops_s``
    is what an instruction for pairs of bf16 reaches, None where the kernels have none. ``least_seconds`` has an
    example.

    Args:
        bandwidth_bytes_s: Bytes read from memory.
        flops_s: fp32 operations.
        ops_s: int8 operations.
        bf16_flops_s: bf16 operations.
    """

    bandwidth_bytes_s: float
    flops_s: float
    ops_s: float
    bf16_flops_s: float | None = None

    def __post_init__(self) -> None:
        """Check that each rate is positive and finite."""
        for name in ("bandwidth_bytes_s", "flops_s", "ops_s"):
            check_rate(name, getattr(self, name))
        if self.bf16_flops_s is not None:
            check_rate("bf16_flops_s", self.bf16_flops_s)
