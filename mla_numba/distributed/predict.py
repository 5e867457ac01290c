"""What ranks would take on a machine that is described, by the planner's model, with either down-projection."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tiling import Cluster, PrologPlan, Rates, ceil_div, least_seconds, plan_prolog
from tiling.choose.candidates import Choice, Chooser

from ..base.dims import MlaDims
from ..base.head_shard import HeadShard
from ..base.modes import DownWay, QuantMode
from ..call.planning import micro_tiles
from ..kernels import ISAS
from .down_share import DownShare
from .sharded_plan import ShardedPlan
from .ways import Link, RankRates, down_work, way_of

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A call of `t` tokens on `size` ranks, by the slowest of them.

    | field                     | what it is                                                                     |
    |---------------------------|--------------------------------------------------------------------------------|
    | `n_nodes`                 | nodes that the ranks take                                                      |
    | `n_heads`, `weight_bytes` | heads of a rank, and bytes of its packed weights                               |
    | `down`                    | "replicated" or "split": what `down="auto"` would choose                       |
    | `replicated_s`, `split_s` | modelled seconds of either way; with one rank they are the same                |
    | `exchange_s`              | of that the all-gather's, `exchanged_bytes` what arrives in it, where split    |
    | `least_s`                 | the least time of the chosen way's bytes and operations, without the exchange  |
    """

    t: int
    size: int
    n_threads: int
    n_nodes: int
    n_heads: int
    weight_bytes: int
    down: DownWay
    replicated_s: float
    split_s: float
    exchange_s: float
    exchanged_bytes: int
    least_s: float

    @property
    def seconds(self) -> float:
        """Modelled seconds of the chosen way."""
        return self.split_s if self.down == "split" else self.replicated_s

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self) | {"seconds": self.seconds}


def predict(cluster: Cluster, dims: MlaDims, t: int, size: int, n_threads: int, quant: QuantMode) -> Prediction:
    """What a call of `t` tokens takes on `size` ranks of `n_threads` threads each.

    Raises `ValueError` where there are more ranks than heads, or a node has fewer cores than a rank has threads.
    """
    n_heads = len(HeadShard(0, size, dims.num_attention_heads).heads)
    own = replace(dims, num_attention_heads=n_heads)
    costs = cluster.costs(size, n_threads)
    micro = micro_tiles(ISAS[cluster.isa])
    plan = plan_prolog(
        own, t, None, cluster.machine(n_threads), micro=micro, quant=quant, n_threads=n_threads, costs=costs
    )
    share = DownShare(dims, size, micro["int8" if "a" in quant else "bf16"].nr)
    sent = share.n_bytes(t)
    link = _link(cluster, size, n_threads)
    rates = Rates(
        min(n_threads * costs.core_bytes_s, costs.memory_bytes_s),
        n_threads * costs.bf16_flops_s,
        n_threads * costs.int8_ops_s,
    )
    of_rank = RankRates(rates.bandwidth_bytes_s, rates.flops_s, rates.ops_s)
    way, reason = way_of(down_work(dims, quant, _down_bytes(plan), t), sent, [of_rank] * size, link)
    arriving = sum(sent) - min(sent) if size > 1 else 0
    exchange_s = link.seconds(arriving) if size > 1 else 0.0
    down_s, share_s, others_s = _sweeps(plan, share)
    split = ShardedPlan(plan, way, reason, arriving, size)
    return Prediction(
        t=t,
        size=size,
        n_threads=n_threads,
        n_nodes=cluster.place(size, n_threads).n_nodes,
        n_heads=n_heads,
        weight_bytes=plan.tile_plans[0].weight_bytes,
        down=way,
        replicated_s=down_s + others_s,
        split_s=share_s + exchange_s + others_s + costs.launch_s if size > 1 else down_s + others_s,
        exchange_s=exchange_s,
        exchanged_bytes=arriving,
        least_s=least_seconds(split.work, rates),
    )


def _link(cluster: Cluster, size: int, n_threads: int) -> Link:
    if size == 1:
        return Link(0.0, float("inf"))
    rate = cluster.gather_link(size, n_threads)
    return Link(rate.latency_s, rate.bytes_s)


def _down_bytes(plan: PrologPlan) -> int:
    """Bytes of the packed weights of the down-projections."""
    qa, _, kva, _ = plan.tile_plans[0].gemms
    return qa.weight_bytes + kva.weight_bytes


def _sweeps(plan: PrologPlan, share: DownShare) -> tuple[float, float, float]:
    """Modelled seconds of the down sweeps of all tiles whole, of the widest rank's share, and of the other sweeps."""
    down_s = share_s = others_s = 0.0
    for _, factor in plan.tiles:
        chooser = plan.chooser(plan.tile_plan(factor))
        whole = chooser.choose()
        down_s += whole.down.seconds
        share_s += _chosen_for(chooser, share).down.seconds
        others_s += whole.heads.seconds + whole.rows_s
    return down_s, share_s, others_s


def _chosen_for(chooser: Chooser, share: DownShare) -> Choice:
    """With the columns of the rank that has most of them, in proportion of both down-projections."""
    qa, qb, kva, wuk = chooser.shapes
    n_panels = ceil_div(share.n_panels, share.size)
    n_qa = ceil_div(n_panels * ceil_div(qa.n, share.nr), share.n_panels)
    shapes = (replace(qa, n=n_qa * share.nr), qb, replace(kva, n=(n_panels - n_qa) * share.nr), wuk)
    return replace(chooser, shapes=shapes).choose()
