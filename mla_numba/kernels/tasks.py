"""How workers share the tasks of a parallel region.

Each worker begins with its own even range, so that it streams weights front to back, and then takes what is left of the
others': no worker idles while there is work, however fast or slow its core is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from .scalars import fetch_add, window

COUNTER_STRIDE = 8  # int64 elements between two workers' counters: a cache line each


@register_jitable
def ceil_div(a: Any, b: Any) -> Any:
    """The least n with n * b >= a, for a >= 0 and b > 0."""
    return (a + b - 1) // b


@register_jitable
def block_start(rows: Any, n_blocks: Any, block: Any) -> Any:
    """First row of a block when `rows` are cut into `n_blocks` nearly even ones; block n_blocks starts at `rows`."""
    return rows * block // n_blocks


@register_jitable
def block_of(rows: Any, n_blocks: Any, row: Any) -> Any:
    """The block that holds `row`: the inverse of `block_start`."""
    return ((row + 1) * n_blocks - 1) // rows


@register_jitable
def draw(counters: Any, worker: Any, n_workers: Any, n_tasks: Any, grain: Any) -> Any:
    """The next tasks (first, end) for a worker, at most `grain` of them; first == end where none is left.

    `counters` is int64 with n_workers * COUNTER_STRIDE elements, zeros at the region's begin.
    """
    for other in range(n_workers):
        owner = (worker + other) % n_workers
        begin = block_start(n_tasks, n_workers, owner)
        end = block_start(n_tasks, n_workers, owner + 1)
        first = begin + fetch_add(window(counters, owner * COUNTER_STRIDE, 1), grain)
        if first < end:
            return np.int64(first), np.int64(min(first + grain, end))
    return np.int64(n_tasks), np.int64(n_tasks)
