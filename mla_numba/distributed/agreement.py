"""What ranks have to agree on before they compute anything together."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from tiling import Costs

from ..base.checks import Array
from ..base.head_shard import HeadShard
from ..base.modes import DownWay
from ..kernels import ISA
from ..prolog import MlaProlog
from .communicator import Communicator, all_gather_facts
from .ways import RankRates

__all__ = ["Agreement", "OtherRankError", "agree", "on_all_ranks"]

_T = TypeVar("_T")


class OtherRankError(RuntimeError):
    """Another rank failed where all ranks work together. `ShardedProlog`, which raises it, has an example.

    Args:
        rank: The rank that failed.
        size: The number of ranks.
        said: Its error's type and text.
    """

    def __init__(self, rank: int, size: int, said: str) -> None:
        super().__init__(rank, size, said)
        self.rank, self.size, self.said = rank, size, said

    def __str__(self) -> str:
        """One line."""
        return f"rank {self.rank} of {self.size}: {self.said}"


def on_all_ranks(comm: Communicator, make: Callable[[], _T]) -> _T:
    """What `make` gives, once it has succeeded on every rank.

    Where it raises on this rank, that error; where it raises on another one, `OtherRankError` with that rank and what
    it said.
    """
    made, error = None, None
    try:
        made = make()
    except Exception as raised:
        error = raised
    said = all_gather_facts(comm, {"error": "" if error is None else f"{type(error).__name__}: {error}"[:1000]})
    if error is not None:
        raise error
    for rank, facts in enumerate(said):
        if facts["error"]:
            raise OtherRankError(rank, comm.size, facts["error"])
    assert made is not None
    return made


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all ranks know of each other: the rates of each, and whether all have the same register tiles."""

    rates: list[RankRates]
    same_panels: bool


def agree(comm: Communicator, prolog: MlaProlog, down: DownWay, costs: Costs) -> Agreement:
    """Compares what the ranks are to compute, and gathers what they reach.

    Raises `ValueError`, on every rank, naming the first thing that differs and the ranks.
    """
    facts = all_gather_facts(comm, _facts(prolog) | {"down": down, "host": platform.node()})
    for name in ("size", "layer", "quant", "numerics", "epsilons", "down"):
        _compare(name, [each[name] for each in facts])
    _compare("norms, by checksum", [each["norms"] for each in facts])
    same_panels = all(each["isa"] == facts[0]["isa"] for each in facts)
    if same_panels:
        _compare("w_dq and w_dkv_kr, by checksum", [each["panels"] for each in facts])
    _compare_shards(comm, [HeadShard(**each["shard"]) for each in facts])
    hosts = [each["host"] for each in facts]
    mine = RankRates.of(costs, prolog.n_threads, hosts.count(hosts[comm.rank]))
    rates = [RankRates(**each) for each in all_gather_facts(comm, asdict(mine))]
    return Agreement(rates, same_panels)


def _facts(prolog: MlaProlog) -> dict[str, Any]:
    weights = prolog.weights
    shard = weights.head_shard
    assert shard is not None
    layer = asdict(weights.dims) | {"num_attention_heads": shard.num_attention_heads}
    return {
        "size": shard.size,
        "layer": layer,
        "quant": weights.quant,
        "numerics": prolog.numerics,
        "epsilons": [float(weights.epsilon_cq), float(weights.epsilon_ckv)],
        "shard": asdict(shard),
        "isa": [ISA.name, ISA.nr],
        "norms": _checksum(weights.gamma_cq, weights.gamma_ckv, weights.smooth_scales_cq),
        "panels": _checksum(weights.down.panels, weights.down.col_scale),
    }


def _checksum(*arrays: Array) -> int:
    value = 0
    for array in arrays:
        value = zlib.crc32(array.view(np.uint8).data, value)
    return value


def _compare(name: str, values: list[Any]) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"{name}: expected the same on all ranks, got {values[0]} on rank 0, {value} on rank {rank}"
            )


def _compare_shards(comm: Communicator, shards: list[HeadShard]) -> None:
    for rank, shard in enumerate(shards):
        if (shard.rank, shard.size) != (rank, comm.size):
            raise ValueError(f"weights: expected the shard of rank {rank} of {comm.size}, got {shard}, on rank {rank}")
