"""How a call of sparse attention is cut: rounds of tokens and heads, tasks of a round, and the memory that it takes.

What is computed never depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import NamedTuple

import numpy as np

from tiling import ceil_div
from tiling.gemm import LINE_BYTES

from ..base.checks import Array
from ..kernels.attention.arguments import Cut, Scratch
from ..kernels.attention.attend import N_PHASES
from ..kernels.attention.softmax import LANES
from ..kernels.micro.ukernel import A_BF16_DTYPE, KR_BF16, MR, NR
from ..kernels.threads.tasks import n_counters

__all__ = ["Sizes", "cuts", "lay_out", "memory_bytes"]

_A_BYTES = np.dtype(A_BF16_DTYPE).itemsize
_ROUND_BYTES = 4 << 20  # of scores and probabilities, a thread: what the caches hold, while there is a token a round
_MOST_BYTES = 40 << 20  # likewise: beyond it, a round takes fewer heads
_ROWS = 16 * MR  # positions whose keys stay in a core's cache while all heads pass
_DEPTH = 256
_WALK = 4
_TASKS_EACH = 4
_MACS_EACH = 1 << 20  # below, another thread costs more than it brings


class Sizes(NamedTuple):
    """A call: its tokens and heads, the widths of a key's latent and rope part, the most positions of a token."""

    t: int
    n_heads: int
    latent: int
    rope: int
    n: int

    @property
    def kp(self) -> int:
        """Columns of a key in whole steps of KR."""
        return ceil_div(self.latent + self.rope, KR_BF16) * KR_BF16

    @property
    def ldw(self) -> int:
        """Distance of rows of probabilities: whole lanes of positions, and an odd number of lines."""
        return _odd_lines(ceil_div(self.n, LANES) * LANES)

    def n_workers(self, n_threads: int) -> int:
        """How many of the threads have enough to do."""
        macs = self.t * self.n_heads * self.n * (2 * self.latent + self.rope)
        return max(min(n_threads, macs // _MACS_EACH), 1)

    def panel_bytes(self) -> int:
        """Memory of a round for a panel of heads of a token."""
        return self.kp * NR * 2 + self.n * NR * 4 + self.ldw * NR * _A_BYTES


def _odd_lines(length: int) -> int:
    """At least `length` elements of A, an odd number of cache lines: rows a power of two apart share a cache's set."""
    each = LINE_BYTES // _A_BYTES
    return (ceil_div(length, each) | 1) * each


def cuts(sizes: Sizes, n_threads: int) -> Iterator[Cut]:
    """The rounds of a call, one after the other; none of no tokens."""
    n_workers = sizes.n_workers(n_threads)
    n_panels, panel_bytes = ceil_div(sizes.n_heads, NR), sizes.panel_bytes()
    h = max(min(_MOST_BYTES * n_workers // panel_bytes, n_panels), 1)
    n_head_rounds = ceil_div(n_panels, h)
    h = ceil_div(n_panels, n_head_rounds)
    t = max(min(_ROUND_BYTES * n_workers // (h * panel_bytes), sizes.t), 1)
    t = ceil_div(sizes.t, max(ceil_div(sizes.t, t), 1))
    for t0 in range(0, sizes.t, max(t, 1)):
        for panel0 in range(0, n_panels, h):
            now = min(t, sizes.t - t0), min(h, n_panels - panel0)
            yield Cut(n_workers, t0, now[0], panel0, now[1], sizes.n, *_tasks(sizes, n_workers, *now))


def _tasks(sizes: Sizes, n_workers: int, t: int, h: int) -> tuple[int, int, int, int]:
    """(rows, depth, walk, heads) of a round: see `Cut`."""
    n_blocks = ceil_div(max(sizes.n, 1), _ROWS)
    if t * n_blocks < _TASKS_EACH * n_workers:  # few, so that they have to come out even
        even = n_workers // gcd(t, n_workers)
        n_blocks = ceil_div(n_blocks, even) * even
    rows = max(ceil_div(sizes.n, n_blocks), MR)
    n_columns = ceil_div(sizes.latent, NR)
    n_walks = ceil_div(n_columns, _WALK)
    wanted = ceil_div(_TASKS_EACH * n_workers, t)
    n_walks = min(max(n_walks, wanted), n_columns)
    n_head_blocks = min(ceil_div(wanted, n_walks), h)
    return rows, _DEPTH, ceil_div(n_columns, n_walks), ceil_div(h, n_head_blocks)


def _shapes(sizes: Sizes, cut: Cut) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of each array of `Scratch`."""
    lanes = LANES * NR
    bits = max(sizes.latent + sizes.rope, KR_BF16 * cut.walk * NR, lanes)
    return {
        "queries": ((cut.t, cut.h, sizes.kp * NR), np.uint16),
        "q_min": ((cut.t, cut.h), np.int32),
        "scores": ((cut.t, cut.h, sizes.n * NR), np.float32),
        "weights": ((cut.t, cut.h * NR, sizes.ldw), A_BF16_DTYPE),
        "w_min": ((cut.t, cut.h * NR), np.int32),
        "rows": ((cut.n_workers, cut.rows * _odd_lines(sizes.kp)), A_BF16_DTYPE),
        "panels": ((cut.n_workers, cut.walk * cut.depth * NR), np.uint16),
        "bits": ((cut.n_workers, _whole_lines(bits * 2) // 2), np.uint16),
        "bases": ((cut.n_workers, 3 * max(cut.rows, cut.depth)), np.int64),
        "sums": ((cut.n_workers, cut.walk * cut.heads * NR * NR), np.float32),
        "lanes": ((cut.n_workers, 2, lanes), np.float32),
        "mins": ((cut.n_workers, lanes), np.int32),
        "words": ((cut.n_workers, lanes // 2), np.uint32),
        "counters": ((n_counters(cut.n_workers, N_PHASES),), np.int64),
    }


def _whole_lines(n_bytes: int) -> int:
    return ceil_div(n_bytes, LINE_BYTES) * LINE_BYTES


def _n_bytes(shape: tuple[int, ...], dtype: type) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def memory_bytes(sizes: Sizes, cut: Cut) -> int:
    """What a round needs of memory."""
    return sum(_whole_lines(_n_bytes(*each)) for each in _shapes(sizes, cut).values())


def lay_out(sizes: Sizes, cut: Cut, memory: Array) -> Scratch:
    """A round's arrays one after the other in `memory`, uint8 from a cache line on; counters are at zero."""
    arrays: dict[str, Array] = {}
    at = 0
    for name, (shape, dtype) in _shapes(sizes, cut).items():
        size = _n_bytes(shape, dtype)
        arrays[name] = memory[at : at + size].view(dtype).reshape(shape)
        at += _whole_lines(size)
    arrays["counters"].fill(0)
    return Scratch(**arrays)
