"""The working memory of a tile of tokens of the lightning index, kept for the next one."""

from __future__ import annotations

import functools
from collections import deque
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..base.checks import Array
from ..base.memory import aligned_empty, rows_apart
from ..kernels.launch import held
from ..kernels.lightning.best import SAMPLE
from ..kernels.lightning.keys import TILE
from ..kernels.lightning.panel import BLOCK, QUERY_DTYPE, RUN
from ..kernels.lightning.sorting import N_BINS
from ..kernels.lightning.tile import PHASES, Buffers, Scratch
from ..kernels.micro.ukernel import NR
from ..kernels.sweeps.phase import NO_LAPS, Team
from ..kernels.threads.tasks import n_counters

__all__ = ["Memory", "Sizes", "give_back", "memory_bytes", "take_memory"]

_NO_SPANS = np.zeros((1, 1, 3), np.int64)


class Sizes(NamedTuple):
    """What a tile's memory depends on: workers, tokens, heads, codes of a key in whole runs, keys that are chosen."""

    n_workers: int
    t: int
    n_heads: int
    kp: int
    k: int


class Memory(NamedTuple):
    """The arrays of a tile that are not the caller's: no two calls have the same.

    kept: `parts` as kernels take them.
    """

    sizes: Sizes
    rows: Array
    head_weights: Array
    offsets: Array
    counters: Array
    parts: tuple[Buffers, Scratch, Team]
    kept: tuple[Any, Any, Any]


_kept: deque[Memory] = deque(maxlen=4)


def take_memory(sizes: Sizes) -> Memory:
    """Memory that no other thread holds, with counters at zero: kept from an earlier call, or new for other sizes."""
    try:
        memory = _kept.pop()
    except IndexError:
        return _new_memory(sizes)
    if memory.sizes != sizes:
        return _new_memory(sizes)
    memory.counters.fill(0)
    return memory


def give_back(memory: Memory) -> None:
    """Keeps memory for whoever comes next."""
    _kept.append(memory)


def memory_bytes(sizes: Sizes) -> int:
    """What `Memory` holds."""
    return sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in _shapes(sizes).values())


def _new_memory(sizes: Sizes) -> Memory:
    arrays = {name: aligned_empty(*each) for name, each in _shapes(sizes).items()}
    buffers = Buffers(**{name: arrays[name] for name in Buffers._fields})
    scratch = Scratch(**{name: arrays[name] for name in Scratch._fields})
    counters = np.zeros(n_counters(sizes.n_workers, len(PHASES)), np.int64)
    team = Team(sizes.n_workers, counters, _NO_SPANS, False, NO_LAPS)
    rows, head_weights, offsets = (arrays[name] for name in ("rows", "head_weights", "offsets"))
    parts = buffers, scratch, team
    kept = held(buffers), held(scratch), held(team)
    return Memory(sizes, rows, head_weights, offsets, counters, parts, kept)


@functools.lru_cache(maxsize=64)
def _shapes(sizes: Sizes) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each array of `Buffers` and `Scratch`, and of the queries as operands.

    What a worker often writes is a row with room behind what it uses.
    """
    n_workers, t, n_heads, kp, k = sizes
    n_rows = -(-n_heads // BLOCK) * BLOCK
    room = 3 * k + TILE  # each time that a buffer is full, all but about k are dropped

    def by_worker(length: int, dtype: type) -> tuple[tuple[int, int], type]:
        return rows_apart(n_workers, length, dtype)

    return {
        "rows": ((t, n_rows, kp), QUERY_DTYPE),
        "head_weights": ((t, n_rows), np.float32),
        "offsets": ((t, n_rows), np.int32),
        "ranks": ((n_workers, t, room), np.uint64),
        "n_ranks": by_worker(t, np.int64),
        "ends": by_worker(t, np.uint64),
        "codes": by_worker(TILE * kp, np.int8),
        "places": by_worker(TILE, np.int64),
        "scale": by_worker(TILE, np.float32),
        "rest": by_worker(NR * RUN, np.int8),
        "scores": by_worker(TILE, np.float32),
        "fresh": by_worker(TILE, np.uint64),
        "merged": by_worker(2 * room, np.uint64),
        "spare": by_worker(2 * max(room, SAMPLE), np.uint64),
        "counts": by_worker(N_BINS, np.uint64),
    }
