"""A communicator over a process group of torch.distributed, such as gloo's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.checks import Array
from ..base.memory import aligned_empty

__all__ = ["TorchCommunicator"]


class TorchCommunicator:
    """Over a process group that takes tensors of the CPU."""

    def __init__(self, group: Any) -> None:
        import torch
        from torch import distributed

        if not isinstance(group, distributed.ProcessGroup):
            raise TypeError(f"comm: expected a process group of torch.distributed, got {type(group).__name__}")
        self._group = group
        self._from_numpy = torch.from_numpy
        self._all_gather = distributed.all_gather_single
        self.rank: int = distributed.get_rank(group)
        self.size: int = distributed.get_world_size(group)
        if self.rank < 0:
            raise ValueError("comm: expected a process group that this process is in, got another")

    def all_gather(self, part: Array, n_bytes: Sequence[int]) -> Array:
        """See `Communicator`. Parts travel padded to the longest: gloo has no gathering of unequal ones."""
        most = max(n_bytes)
        if most == 0:
            return aligned_empty((0,), np.uint8)
        padded = part
        if len(part) < most or not part.flags.writeable:
            padded = aligned_empty((most,), np.uint8)
            padded[: len(part)] = part
            padded[len(part) :] = 0
        out = aligned_empty((self.size, most), np.uint8)
        self._all_gather(self._from_numpy(out.reshape(-1)), self._from_numpy(padded), group=self._group)
        if all(n == most for n in n_bytes):
            return out.reshape(-1)
        return np.concatenate([row[:n] for row, n in zip(out, n_bytes, strict=True)])
