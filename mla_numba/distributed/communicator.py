"""What ranks say to each other: one collective, over whichever library the caller has.

The libraries are imported only where a communicator of theirs is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..base.checks import Array

__all__ = ["Communicator", "all_gather_facts", "as_communicator"]


@runtime_checkable
class Communicator(Protocol):
    """Ranks that call the same collectives in the same order. `ShardedProlog` has an example."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def all_gather(self, part: Array, n_bytes: Sequence[int]) -> Array:
        """The parts of all ranks one after the other, in the order of ranks.

        Args:
            part: This rank's part (n_bytes[rank],) uint8.
            n_bytes: Bytes of each rank's part, the same on every rank.

        Returns:
            All parts (sum(n_bytes),) uint8.
        """


def as_communicator(comm: Any) -> Communicator:
    """A `Communicator` over a communicator of mpi4py or a process group of torch.distributed, or `comm` if it is one.

    Raises `TypeError` for anything else.
    """
    home = type(comm).__module__.split(".")[0]
    if home == "mpi4py":
        from .mpi import MpiCommunicator

        return MpiCommunicator(comm)
    if home == "torch":
        from .torch_group import TorchCommunicator

        return TorchCommunicator(comm)
    if isinstance(comm, Communicator):
        return comm
    raise TypeError(
        "comm: expected a communicator of mpi4py, a process group of torch.distributed, or an object with rank, size "
        f"and all_gather, got {type(comm).__name__}"
    )


def all_gather_facts(comm: Communicator, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank said of itself; `facts` is whatever JSON holds."""
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    length = np.array([len(text)], np.int64).view(np.uint8)
    lengths = comm.all_gather(length, [8] * comm.size).view(np.int64).tolist()
    said = comm.all_gather(text, lengths).tobytes()
    ends = np.cumsum(lengths).tolist()
    return [json.loads(said[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
