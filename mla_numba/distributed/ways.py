"""Two ways to the down-projection, and which takes less time.

Replicated, each rank computes all of its columns and sends nothing. Split, each rank computes its share, and an
all-gather gives the columns of all ranks to each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiling import Costs, Rates, Work, least_seconds

from ..base.dims import MlaDims
from ..base.modes import DownWay, QuantMode
from .communicator import Communicator, all_gather_facts

__all__ = ["Link", "RankRates", "down_work", "measure_link", "way_of"]

_PROBE_BYTES = (64, 1 << 20)
_RUNS = 5


@dataclass(frozen=True, slots=True)
class Link:
    """What an all-gather costs: seconds to begin with, and the bytes a second that arrive at each rank."""

    latency_s: float
    bytes_s: float

    def seconds(self, n_bytes: float) -> float:
        """Seconds of an all-gather in which `n_bytes` arrive at a rank."""
        return self.latency_s + n_bytes / self.bytes_s


@dataclass(frozen=True, slots=True)
class RankRates:
    """What a rank's threads reach together, where the ranks of a machine share its memory evenly."""

    bandwidth_bytes_s: float
    flops_s: float
    ops_s: float

    @classmethod
    def of(cls, costs: Costs, n_threads: int, n_neighbours: int) -> RankRates:
        """Of a rank with `n_threads`, one of `n_neighbours` on its machine."""
        bandwidth = min(n_threads * costs.core_bytes_s, costs.memory_bytes_s / n_neighbours)
        return cls(bandwidth, n_threads * costs.bf16_flops_s, n_threads * costs.int8_ops_s)

    def seconds(self, work: Work) -> float:
        """The least time of some work."""
        return least_seconds(work, Rates(self.bandwidth_bytes_s, self.flops_s, self.ops_s))


def measure_link(comm: Communicator) -> Link:
    """The slowest rank's all-gather, of few bytes and of many; the same result on every rank."""
    if comm.size == 1:
        return Link(0.0, float("inf"))
    best = []
    for n in _PROBE_BYTES:
        part, times = np.zeros(n, np.uint8), []
        for _ in range(_RUNS):
            begin = time.perf_counter()
            comm.all_gather(part, [n] * comm.size)
            times.append(time.perf_counter() - begin)
        best.append(min(times))
    said = all_gather_facts(comm, {"few": best[0], "many": best[1]})
    few, many = (max(each[name] for each in said) for name in ("few", "many"))
    n_bytes = (comm.size - 1) * (_PROBE_BYTES[1] - _PROBE_BYTES[0])
    return Link(few, n_bytes / max(many - few, 1e-9))


def down_work(dims: MlaDims, quant: QuantMode, weight_bytes: int, t: int) -> Work:
    """The down-projection of `t` tokens whose weights are read once, however a rank cuts it: alike on every rank."""
    n = dims.q_lora_rank + dims.kv_a_dim
    n_ops = 2 * t * dims.hidden_size * n
    n_bytes = weight_bytes + 2 * t * (dims.hidden_size + n)
    return Work(n_bytes, int8_ops=n_ops) if "a" in quant else Work(n_bytes, flops=n_ops)


def way_of(whole: Work, sent_bytes: Sequence[int], rates: Sequence[RankRates], link: Link) -> tuple[DownWay, str]:
    """The faster way to a down-projection, and why.

    `sent_bytes` are those of each rank, in proportion to its columns, and `rates` what it reaches. All arguments have
    to be the same on every rank, for all have to choose alike.
    """
    size, total, most = len(rates), sum(sent_bytes), max(sent_bytes)
    if size == 1 or total == 0:
        return "replicated", "one rank computes all" if size == 1 else "there are no tokens"
    part = Work(*(n * most // total for n in (whole.total_bytes, whole.flops, whole.int8_ops)))
    whole_s, part_s = (max(rate.seconds(work) for rate in rates) for work in (whole, part))
    exchange_s = link.seconds(total - min(sent_bytes))
    way: DownWay = "split" if part_s + exchange_s < whole_s else "replicated"
    reason = (
        f"all columns on each rank take {whole_s * 1e6:.0f} us at least, a share of them {part_s * 1e6:.0f} and the "
        f"exchange {exchange_s * 1e6:.0f}"
    )
    return way, reason
