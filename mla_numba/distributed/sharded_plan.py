"""What a rank plans, and what a call took there."""

from __future__ import annotations

from dataclasses import dataclass

from tiling import PrologPlan, Work

from ..base.modes import DownWay

__all__ = ["ShardedPlan", "ShardedTimes"]


@dataclass(frozen=True)
class ShardedPlan:
    """How a rank computes its share of `t` tokens. `ShardedProlog` has an example.

    - `local`: the plan of its heads.
    - `down`: "replicated" or "split", and `reason`, why; the same on every rank.
    - `exchanged_bytes`: what arrives at the rank in the down-projection's all-gather, 0 where there is none.
    - `size`: the number of ranks.
    """

    local: PrologPlan
    down: DownWay
    reason: str
    exchanged_bytes: int
    size: int

    @property
    def work(self) -> Work:
        """What the rank moves from and to memory and computes; where the down-projection is split, its even share."""
        whole = self.local.work
        if self.down != "split":
            return whole
        down = Work(0)
        for _, factor in self.local.tiles:
            qa, _, kva, _ = self.local.tile_plan(factor).gemms
            down += Work(
                qa.weight_bytes + kva.weight_bytes, qa.work.flops + kva.work.flops, qa.work.int8_ops + kva.work.int8_ops
            )
        left, n = self.size - 1, self.size
        return Work(
            whole.total_bytes - down.total_bytes * left // n,
            whole.flops - down.flops * left // n,
            whole.int8_ops - down.int8_ops * left // n,
        )

    def __str__(self) -> str:
        """A few lines for `print`."""
        return f"down-projection {self.down}: {self.reason}\n{self.local}"


@dataclass(frozen=True, slots=True)
class ShardedTimes:
    """What a call took on this rank. `ShardedProlog` has an example.

    Args:
        total_s: Seconds of all of it.
        exchange_s: Seconds of that in all-gathers.
        exchanged_bytes: Bytes that arrived in them.
    """

    total_s: float
    exchange_s: float
    exchanged_bytes: int
