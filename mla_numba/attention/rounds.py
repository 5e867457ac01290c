"""How a call of sparse attention is cut: rounds of tokens and heads, tasks of a round, and the memory that it takes.

What is computed never depends on it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from tiling import ceil_div
from tiling.gemm import LINE_BYTES, apart

from ..base.checks import Array
from ..base.memory import aligned_empty, rows_apart
from ..kernels.attention.arguments import ALL, LARGEST, SUM, VALUES_OF, Cut, Scratch
from ..kernels.attention.attend import N_PHASES
from ..kernels.attention.places import LANES
from ..kernels.launch import held
from ..kernels.micro.ukernel import A_BF16_DTYPE, KR_BF16, MR, NR
from ..kernels.threads.tasks import n_counters

__all__ = ["Memory", "Plan", "Prepared", "Sizes", "cuts", "memory_bytes", "plan_of"]

_A_BYTES = np.dtype(A_BF16_DTYPE).itemsize
_ROUND_BYTES = 4 << 20  # of scores and probabilities, a thread: what the caches hold, while there is a token a round
_MOST_BYTES = 56 << 20  # likewise: beyond it, a round takes fewer heads, and of one panel of them fewer positions
_ROWS = 12 * MR  # positions whose keys stay in a core's cache while all heads pass
_DEPTH = 512
_WALK = 256 // NR  # panels of columns, whose latents and sums of all heads take half of an L2 of 1 MiB
_TASKS_EACH = 1  # of a thread, at least: more are narrower, and each of them goes through all keys
_MANY_TASKS = 16  # of a thread, whose number need not come out even
_PLANS_KEPT = 64
_MACS_EACH = 1 << 20  # below, another thread costs more than it brings


class Sizes(NamedTuple):
    """A call: its tokens and heads, the widths of a key's latent and rope part, the most positions of a token.

    tile: of how many positions a tile is that is merged with others; 0 where none are.
    """

    t: int
    n_heads: int
    latent: int
    rope: int
    n: int
    tile: int = 0

    @property
    def kp(self) -> int:
        """Columns of a key in whole steps of KR."""
        return ceil_div(self.latent + self.rope, KR_BF16) * KR_BF16

    def n_tiles(self, n: int) -> int:
        """Tiles of n positions."""
        return ceil_div(n, self.tile) if self.tile else 1

    def ldw(self, n: int) -> int:
        """Distance of rows of n probabilities: whole lanes of each tile, and an odd number of lines."""
        tile = self.tile if self.tile and n > self.tile else n
        return _odd_lines(self.n_tiles(n) * ceil_div(tile, LANES) * LANES)

    def n_workers(self, n_threads: int) -> int:
        """How many of the threads have enough to do."""
        macs = self.t * self.n_heads * self.n * (2 * self.latent + self.rope)
        return max(min(n_threads, macs // _MACS_EACH), 1)

    def panel_bytes(self, n: int) -> int:
        """Memory of a round of n positions for a panel of heads of a token."""
        return self.kp * NR * 2 + n * NR * 4 + self.ldw(n) * NR * _A_BYTES


def _odd_lines(length: int) -> int:
    """At least `length` elements of A, an odd number of cache lines: rows a power of two apart share a cache's set."""
    each = LINE_BYTES // _A_BYTES
    return (ceil_div(length, each) | 1) * each


def cuts(sizes: Sizes, n_threads: int) -> tuple[Cut, ...]:
    """The rounds of a call, one after the other; none of no tokens."""
    n_workers, n_panels = sizes.n_workers(n_threads), ceil_div(sizes.n_heads, NR)
    n, stages = _places(sizes, n_workers)
    panel_bytes = sizes.panel_bytes(n)
    h = max(min(_MOST_BYTES * n_workers // panel_bytes, n_panels), 1)
    h = ceil_div(n_panels, ceil_div(n_panels, h))
    t = max(min(_ROUND_BYTES * n_workers // (h * panel_bytes), sizes.t), 1)
    t = ceil_div(sizes.t, max(ceil_div(sizes.t, t), 1))
    made = []
    for t0 in range(0, sizes.t, max(t, 1)):
        for panel0 in range(0, n_panels, h):
            now = min(t, sizes.t - t0), min(h, n_panels - panel0)
            for stage, place0 in itertools.product(stages, range(0, max(sizes.n, 1), max(n, 1))):
                n_now, last = min(n, sizes.n - place0), int(place0 + n >= sizes.n)
                tasks = _tasks(sizes, n_workers, *now, n_now)
                made.append(Cut(n_workers, t0, now[0], panel0, now[1], place0, n_now, last, stage, sizes.tile, *tasks))
    return tuple(made)


def _places(sizes: Sizes, n_workers: int) -> tuple[int, tuple[int, ...]]:
    """How many positions a round has, and its stages.

    All, while the scores of a panel of heads fit in memory. Of more, and of tiles that are merged, as many whole lanes
    or tiles as the caches hold of all heads.
    """
    if not sizes.tile and sizes.panel_bytes(sizes.n) <= _MOST_BYTES * n_workers:
        return sizes.n, (ALL,)
    unit = sizes.tile or ceil_div(_DEPTH, LANES) * LANES
    each = (sizes.panel_bytes(64 * unit) - sizes.panel_bytes(0)) / 64 * ceil_div(sizes.n_heads, NR)
    n = max(int(_ROUND_BYTES * n_workers // each), 1) * unit
    return min(n, sizes.n), ((ALL,) if sizes.tile else (LARGEST, SUM, VALUES_OF))


def _tasks(sizes: Sizes, n_workers: int, t: int, h: int, n: int) -> tuple[int, int, int, int]:
    """(rows, depth, walk, heads) of a round: see `Cut`."""
    n_blocks = ceil_div(max(n, 1), _ROWS)
    if t * n_blocks < _MANY_TASKS * n_workers:
        even = n_workers // gcd(t, n_workers)
        n_blocks = ceil_div(n_blocks, even) * even
    rows = max(ceil_div(n, n_blocks), MR)
    n_columns = ceil_div(sizes.latent, NR)
    n_walks = ceil_div(n_columns, _WALK)
    wanted = ceil_div(_TASKS_EACH * n_workers, t) if n_workers > 1 else 1
    n_walks = min(max(n_walks, wanted), n_columns)
    n_head_blocks = min(ceil_div(wanted, n_walks), h)
    return rows, _DEPTH, ceil_div(n_columns, n_walks), ceil_div(h, n_head_blocks)


def _shapes(sizes: Sizes, cut: Cut) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of each array of `Scratch`."""
    lanes = LANES * NR
    carried = 0 if cut.tile == 0 and cut.stage == ALL else (1 + LANES) * NR
    bits = max(sizes.latent + sizes.rope, KR_BF16 * cut.walk * NR, 2 * NR)

    lda = _odd_lines(sizes.kp)
    row_bytes = lda * _A_BYTES

    def by_worker(length: int, dtype: Any) -> tuple[tuple[int, ...], Any]:
        return rows_apart(cut.n_workers, length, dtype)

    return {
        "carried": ((cut.t, cut.h, carried), np.float32),
        "attended": ((cut.t, cut.h * NR, sizes.latent if carried else 0), np.float32),
        "queries": ((cut.t, cut.h, sizes.kp * NR), np.uint16),
        "q_min": ((cut.t, cut.h), np.int32),
        "scores": ((cut.t, cut.h, cut.n * NR), np.float32),
        "weights": ((cut.t, cut.h * NR, sizes.ldw(cut.n)), A_BF16_DTYPE),
        "w_min": ((cut.t, cut.h * NR), np.int32),
        "rows": ((cut.n_workers, apart(cut.rows * row_bytes, row_bytes) // row_bytes, lda), A_BF16_DTYPE),
        "panels": by_worker(cut.walk * cut.depth * NR, np.uint16),
        "bits": by_worker(bits, np.uint16),
        "bases": by_worker(2 * 3 * max(cut.rows, cut.depth), np.int64),
        "sums": by_worker(cut.walk * cut.heads * NR * NR, np.float32),
        "lanes": ((cut.n_workers, 2, apart(lanes * 4) // 4), np.float32),
        "words": by_worker(lanes // 2, np.uint32),
        "counters": ((n_counters(cut.n_workers, N_PHASES),), np.int64),
        "factors": ((cut.t, cut.h, sizes.n_tiles(cut.n) * NR if cut.tile else 0), np.float32),
    }


def _whole_lines(n_bytes: int) -> int:
    return ceil_div(n_bytes, LINE_BYTES) * LINE_BYTES


def _n_bytes(shape: tuple[int, ...], dtype: type) -> int:
    return prod(shape) * np.dtype(dtype).itemsize


def memory_bytes(sizes: Sizes, n_threads: int) -> int:
    """What the largest round of a call needs of memory."""
    return plan_of(sizes, n_threads).n_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The rounds of a call, and what the largest of them needs of memory; calls of the same sizes have the same."""

    sizes: Sizes
    cuts: tuple[Cut, ...]
    n_bytes: int


@functools.lru_cache(maxsize=256)
def plan_of(sizes: Sizes, n_threads: int) -> Plan:
    """The plan of a call."""
    made = cuts(sizes, n_threads)
    rounds = [_shapes(sizes, cut).values() for cut in made]
    n_bytes = max((sum(_whole_lines(_n_bytes(*each)) for each in shapes) for shapes in rounds), default=0)
    return Plan(sizes, made, n_bytes)


class Prepared(NamedTuple):
    """A round's `Cut` and `Scratch` as kernels take them, those of its arrays that begin with zeros, and all."""

    n_workers: int
    cut: Any
    scratch: Any
    counters: Array
    arrays: Scratch


class Memory:
    """The working memory of one call at a time, kept for the next."""

    def __init__(self, n_bytes: int) -> None:
        self._block = aligned_empty(n_bytes, np.uint8)
        self._prepared: dict[Plan, tuple[Prepared, ...]] = {}

    @property
    def nbytes(self) -> int:
        """How much it is."""
        return self._block.nbytes

    def prepare(self, plan: Plan) -> tuple[Prepared, ...]:
        """The rounds of a plan in this memory."""
        held = self._prepared.get(plan)
        if held is None:
            if len(self._prepared) >= _PLANS_KEPT:
                self._prepared.clear()
            held = self._prepared[plan] = tuple(self._rounds(plan))
        return held

    def _rounds(self, plan: Plan) -> Iterator[Prepared]:
        laid_out: dict[Cut, tuple[Any, Array, Scratch]] = {}
        for cut in plan.cuts:
            shape = cut._replace(t0=0, panel0=0, place0=0, last=0)  # and the stage, which some arrays depend on
            if shape not in laid_out:
                scratch = lay_out(plan.sizes, cut, self._block)
                laid_out[shape] = held(scratch), scratch.counters, scratch
            yield Prepared(cut.n_workers, held(cut), *laid_out[shape])


def lay_out(sizes: Sizes, cut: Cut, memory: Array) -> Scratch:
    """A round's arrays one after the other in `memory`, uint8 from a cache line on."""
    arrays: dict[str, Array] = {}
    at = 0
    for name, (shape, dtype) in _shapes(sizes, cut).items():
        size = _n_bytes(shape, dtype)
        arrays[name] = memory[at : at + size].view(dtype).reshape(shape)
        at += _whole_lines(size)
    return Scratch(**arrays)
