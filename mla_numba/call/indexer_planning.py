"""The plans of an indexer's prolog on this machine."""

from __future__ import annotations

from tiling import IndexerPlan, plan_indexer

from ..base.indexer_dims import IndexerDims
from .planning import MICRO_TILES, this_machine

__all__ = ["IndexerPlans"]

_PLANS_KEPT = 64


class IndexerPlans:
    """The plans of one indexer's prolog, each made once."""

    def __init__(self, dims: IndexerDims) -> None:
        self.machine = this_machine()
        self._dims = dims
        self._made: dict[int, IndexerPlan] = {}

    def plan(self, t: int, n_threads: int) -> IndexerPlan:
        """The plan of `t` tokens; `n_threads` is that of the prolog, the same each time."""
        plan = self._made.get(t)
        if plan is None:
            if len(self._made) >= _PLANS_KEPT:
                self._made.clear()
            plan = self._made[t] = plan_indexer(self._dims, t, self.machine, micro=MICRO_TILES, n_threads=n_threads)
        return plan
