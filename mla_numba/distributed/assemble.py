"""The parts of all ranks, put where they belong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..base.checks import Array
from ..base.memory import UINT16

__all__ = ["assemble"]


def assemble(parts: Array, wholes: Sequence[Array], columns: Iterable[Sequence[range]]) -> None:
    """Writes what an all-gather gave to `wholes`, each (T, n) uint16.

    `parts` are the bytes of all ranks, one after the other. `columns` are those of each rank, a range for each whole:
    its part holds its columns of the first whole, then those of the next.
    """
    words, at = parts.view(UINT16), 0
    for of_rank in columns:
        for whole, mine in zip(wholes, of_rank, strict=True):
            t, n = len(whole), len(mine)
            whole[:, mine.start : mine.stop] = words[at : at + t * n].reshape(t, n)
            at += t * n
