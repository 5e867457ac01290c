"""Working memory that is kept from call to call, and what is made in it for each tile of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from tiling.gemm import PAIR_BYTES

from ..base.checks import Array
from ..base.memory import aligned_empty

__all__ = ["TileMemory", "cut_views"]

_LAYOUTS_KEPT = 64


class _HasWorkspace(Protocol):
    @property
    def workspace_bytes(self) -> int:
        """Bytes of the largest tile's buffers."""


class _HasCounters(Protocol):
    @property
    def counters(self) -> Any:
        """What workers count tasks with, int64."""


TileT = TypeVar("TileT")
MadeT = TypeVar("MadeT", bound=_HasCounters)


def cut_views(workspace: Mapping[str, int], memory: Array) -> dict[str, Array]:
    """Buffers by name one after the other in `memory`, uint8 from a cache line on; `workspace` are their bytes."""
    views, at = {}, 0
    for name, size in workspace.items():
        views[name] = memory[at : at + size]
        at += size
    return views


class TileMemory(ABC, Generic[TileT, MadeT]):
    """The working memory of one call at a time, kept for the next."""

    def __init__(self, plan: _HasWorkspace) -> None:
        self._block = aligned_empty(plan.workspace_bytes, np.uint8, PAIR_BYTES)
        self._prepared: dict[int, tuple[TileT, MadeT]] = {}

    @classmethod
    def taken_from(cls, kept: deque[Self], plan: _HasWorkspace) -> Self:
        """Memory that no other thread holds: one kept from an earlier call, or a new one if too small."""
        try:
            memory = kept.pop()
        except IndexError:
            return cls(plan)
        return memory if memory.holds(plan) else cls(plan)

    @abstractmethod
    def make(self, plan: TileT, block: Array) -> MadeT:
        """What is needed of a tile's plan, with its buffers in a block of memory."""

    def holds(self, plan: _HasWorkspace) -> bool:
        """Whether each tile of the plan finds room here."""
        return self._block.nbytes >= plan.workspace_bytes

    def prepare(self, plan: TileT) -> MadeT:
        """What `make` made for the tile's plan, with counters at zero."""
        held = self._prepared.get(id(plan))
        if held is None:
            if len(self._prepared) >= _LAYOUTS_KEPT:
                self._prepared.clear()
            # The plan is kept beside what was made of it, so that no other can take its id.
            held = self._prepared[id(plan)] = (plan, self.make(plan, self._block))
        held[1].counters.fill(0)
        return held[1]
