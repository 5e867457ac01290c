"""The buffers of a call: what lies between the three sweeps, and each worker's scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from tiling import PrologPlan, TilePlan

from ._checks import Array
from .kernels import simd, tasks
from .memory import aligned_empty

__all__ = ["Memory", "TileBuffers"]

_LAYOUTS_KEPT = 64


@dataclass(frozen=True, slots=True, eq=False)
class TileBuffers:
    """Views of one block of memory for one tile of tokens, with the sizes that the tile's plan states.

    Shared: x_pack, x_codes and x_scale (int8 down projections only), q_a and kv_a (t, n) uint16, a_up. One row a
    worker: c (float32 and int32 views of the same accumulators), q_head, a_nope, y. `ones` stands for the row
    scales of bf16 activations.
    """

    x_pack: Array
    x_codes: Array
    x_scale: Array
    q_a: Array
    kv_a: Array
    a_up: Array
    c_f32: Array
    c_i32: Array
    q_head: Array
    a_nope: Array
    y: Array
    ones: Array
    counters: Array
    least: Array

    @classmethod
    def carve(cls, plan: TilePlan, memory: Array, ones: Array) -> Self:
        """Lays the buffers of `plan.workspace` one after the other in `memory`, uint8 from a cache line on."""
        views = {}
        at = 0
        for name, size in plan.workspace.items():
            views[name] = memory[at : at + size]
            at += size
        n, t = plan.n_workers, plan.t
        qa, qb, kva, _ = plan.gemms
        nothing = memory[:0]

        def of(name: str, dtype: type[np.generic], *shape: int) -> Array:
            flat = views.get(name, nothing).view(dtype)
            return flat[: int(np.prod(shape))].reshape(shape) if shape else flat

        def by_worker(name: str, dtype: type[np.generic] = np.float32) -> Array:
            return views[name].view(dtype).reshape(n, -1)

        down_type, up_type = (simd.A_INT8_DTYPE if g.dtype == "int8" else simd.A_BF16_DTYPE for g in (qa, qb))
        quantised_x = qa.dtype == "int8"
        return cls(
            x_pack=of("x_pack", down_type),
            x_codes=of("x_codes", np.int8, t if quantised_x else 0, qa.k),
            x_scale=of("x_scale", np.float32, t if quantised_x else 0),
            q_a=of("q_a", np.uint16, t, qa.n),
            kv_a=of("kv_a", np.uint16, t, kva.n),
            a_up=of("a_up", up_type),
            c_f32=by_worker("c"),
            c_i32=by_worker("c", np.int32),
            q_head=by_worker("q_head", np.uint16),
            a_nope=by_worker("a_nope", simd.A_BF16_DTYPE),
            y=by_worker("y"),
            ones=ones,
            counters=np.zeros(n * tasks.COUNTER_STRIDE, np.int64),
            least=np.zeros(t, np.int32),
        )

    def zeroed_counters(self) -> Array:
        """The workers' task counters, set back for a parallel region."""
        self.counters.fill(0)
        return self.counters


class Memory:
    """The working memory of one call at a time, kept for the next."""

    def __init__(self, plan: PrologPlan) -> None:
        longest = max((tile.t for tile in plan.tile_plans), default=0)
        self._block = aligned_empty(plan.workspace_bytes, np.uint8)
        self._buffers: dict[int, tuple[TilePlan, TileBuffers]] = {}
        self._ones = np.ones(longest, np.float32)

    def holds(self, plan: PrologPlan) -> bool:
        """Whether each tile of the plan finds room here."""
        longest = max((tile.t for tile in plan.tile_plans), default=0)
        return self._block.nbytes >= plan.workspace_bytes and len(self._ones) >= longest

    def buffers(self, tile: TilePlan) -> TileBuffers:
        """The buffers of a tile's plan in this memory; laid out once a plan."""
        held = self._buffers.get(id(tile))
        if held is None:
            if len(self._buffers) >= _LAYOUTS_KEPT:
                self._buffers.clear()
            # The plan is kept beside its buffers, so that no other can take its id.
            held = self._buffers[id(tile)] = (tile, TileBuffers.carve(tile, self._block, self._ones))
        return held[1]
