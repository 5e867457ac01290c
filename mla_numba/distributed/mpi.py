"""A communicator over mpi4py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.checks import Array
from ..base.extras import how_to_install
from ..base.memory import aligned_empty

__all__ = ["MpiCommunicator", "world"]

_MOST_COUNTS = 2**31 - 1  # what a library of MPI 3 counts to, such as Open MPI 5


class MpiCommunicator:
    """Over an intracommunicator of mpi4py. Its collectives are those of the communicator itself, no duplicate."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            kind = "MPI.COMM_NULL" if comm == MPI.COMM_NULL else type(comm).__name__
            raise TypeError(f"comm: expected an intracommunicator of mpi4py, got {kind}")
        self._comm = comm
        self._byte = MPI.BYTE
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def all_gather(self, part: Array, n_bytes: Sequence[int]) -> Array:
        """See `Communicator`."""
        out = aligned_empty((sum(n_bytes),), np.uint8)
        if len(out) <= _MOST_COUNTS:
            self._gather(part, out, n_bytes, self._byte)
            return out
        unit = math.gcd(*n_bytes)
        units = self._byte.Create_contiguous(unit).Commit()
        try:
            self._gather(part, out, [n // unit for n in n_bytes], units)
        finally:
            units.Free()
        return out

    def _gather(self, part: Array, out: Array, counts: Sequence[int], datatype: Any) -> None:
        begins = np.cumsum([0, *counts[:-1]]).tolist()
        self._comm.Allgatherv([part, datatype], [out, (list(counts), begins), datatype])


def world() -> Any:
    """MPI.COMM_WORLD. Raises `ImportError` where mpi4py, or an MPI library for it, is missing."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter where mpi4py finds no MPI library
        how = how_to_install("mpi", "mpi4py mpich")
        raise ImportError(f"comm: expected mpi4py and an MPI library ({how}), got none: {error}") from None
    return MPI.COMM_WORLD
