"""Working memory that is kept from call to call, and what is made in it for each tile of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from tiling.gemm import PAIR_BYTES

from ..base.checks import Array
from ..base.memory import aligned_empty

__all__ = ["TileMemory", "Views"]

_LAYOUTS_KEPT = 64


class _HasWorkspace(Protocol):
    @property
    def workspace_bytes(self) -> int:
        """Bytes of the largest tile's buffers."""


class _HasBuffers(Protocol):
    @property
    def t(self) -> int:
        """Tokens of the tile."""

    @property
    def n_workers(self) -> int:
        """Its threads."""

    @property
    def workspace(self) -> Mapping[str, int]:
        """Bytes of its buffers by name."""


class _HasCounters(Protocol):
    @property
    def counters(self) -> Any:
        """What workers count tasks with, int64."""


TileT = TypeVar("TileT")
MadeT = TypeVar("MadeT", bound=_HasCounters)


@dataclass(frozen=True, slots=True)
class Views:
    """The buffers of a tile of `t` tokens and `n_workers` workers by name, uint8, one after the other in a memory."""

    by_name: Mapping[str, Array]
    t: int
    n_workers: int

    @classmethod
    def of(cls, plan: _HasBuffers, memory: Array) -> Self:
        """Cut out of `memory`, uint8 from a cache line on."""
        views, at = {}, 0
        for name, size in plan.workspace.items():
            views[name] = memory[at : at + size]
            at += size
        return cls(views, plan.t, plan.n_workers)

    def rows(self, name: str, dtype: Any, length: int) -> Array:
        """A buffer as (t, length)."""
        found: Array = self.by_name[name].view(dtype)[: self.t * length].reshape(self.t, length)
        return found

    def by_worker(self, name: str, dtype: Any = np.float32) -> Array:
        """A buffer as a row a worker."""
        found: Array = self.by_name[name].view(dtype).reshape(self.n_workers, -1)
        return found


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
        """What a kernel needs of a tile's plan, with its buffers in a block of memory."""

    def holds(self, plan: _HasWorkspace) -> bool:
        """Whether each tile of the plan fits here."""
        return self._block.nbytes >= plan.workspace_bytes

    def prepare(self, plan: TileT) -> MadeT:
        """What `make` made for the tile's plan, with counters at zero."""
        held = self._prepared.get(id(plan))
        if held is None:
            if len(self._prepared) >= _LAYOUTS_KEPT:
                self._prepared.clear()
            # The plan is kept beside what was made of it: the id of a plan that is gone could be another's.
            held = self._prepared[id(plan)] = (plan, self.make(plan, self._block))
        held[1].counters.fill(0)
        return held[1]
