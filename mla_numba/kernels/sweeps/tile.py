"""One tile of tokens through all sweeps, in one parallel region.

| phase | a task                        | waits for | stages                                                           |
|-------|-------------------------------|-----------|------------------------------------------------------------------|
| PACK  | some rows of x                |           | Quant_x, where w_dq is int8                                      |
| DOWN  | token block x walk of columns | PACK      | Matmul_qa, Matmul_kva                                            |
| QUERY | some rows of q_a              | DOWN      | RmsNorm_qa, Quant_qMnRes                                         |
| KEY   | some rows of kv_a             | DOWN      | RmsNorm_compressedkv, Quant_knope, RotaryPosEmb, ScatterUpdate_* |
| HEADS | token block x head            | QUERY     | QuantMatmul_qb, Dequant_qb, Rope_qRope, Matmul_qNope_wUk         |

Threads are woken once a tile; a worker that wakes late finds its share of the work taken (see `tasks`).

The arguments are tuples of arrays and numbers. Arrays are C-contiguous and bf16 is uint16 bits; t is the tile's tokens,
T the call's, t0 the tile's first one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from ..jit.callee import callee
from ..launch import kernel_of
from ..row.operand import operand_row
from ..row.scatter import is_last
from ..scalars import row_of, window
from ..threads.atomics import now_ns
from ..threads.tasks import block_start, ceil_div, draw, finish, linger, wait_for
from .gemm import n_pair_tasks, pair_task
from .heads import head_task
from .rows import key_row, query_row

PHASES = ("pack", "down", "query", "key", "heads")
PACK, DOWN, QUERY, KEY, HEADS = range(len(PHASES))


class Tokens(NamedTuple):
    """The caller's arrays: x (T, H), cos and sin (T, R), cache_index (T,) int64; then what is written.

    query_nope (T, N, C), query_rope (T, N, R), q_norm (T, Rq) int8 or uint16, q_norm_scale (T,) float32, or empty.
    """

    x: Any
    cos: Any
    sin: Any
    cache_index: Any
    query_nope: Any
    query_rope: Any
    q_norm: Any
    q_norm_scale: Any


class Caches(NamedTuple):
    """The cache's arrays as `scatter` takes them; k_scale is empty where kv is bf16."""

    kv: Any
    kv_layout: Any
    kr: Any
    kr_layout: Any
    k_scale: Any
    k_scale_layout: Any


class Product(NamedTuple):
    """A packed weight, see `gemm`; `least` is the `least_magnitude` of a bf16 one."""

    panels: Any
    offset: Any
    col_scale: Any
    kp: int
    n_parts: int
    least: int


class Vectors(NamedTuple):
    """The norms' weights as float32, smooth may be empty; the epsilons are float32; d is qk_nope_head_dim.

    cann: whether rows are quantised by the numerics of CANN, see `rmsnorm_quant`.
    """

    gamma_cq: Any
    gamma_ckv: Any
    smooth: Any
    epsilon_cq: Any
    epsilon_ckv: Any
    d: int
    cann: bool


class Buffers(NamedTuple):
    """Working memory.

    x_rows (t, lda) and q_rows (t, lda) are activations, least_x and least_q (t,) int32 their `least_magnitude` by row,
    x_scale (t,) float32 the scales of x where it is quantised; q_a (t, Rq), kv_a (t, C + R). A row a worker: c_down,
    c_up and c_uk, views of the same accumulators, q_head (mc * ldq) and y float32. counters: see `tasks`. spans
    (n_workers, phases, 2) int64: when a worker began and ended a phase, in ns, written if `traced`.
    """

    x_rows: Any
    x_scale: Any
    least_x: Any
    q_a: Any
    kv_a: Any
    q_rows: Any
    least_q: Any
    c_down: Any
    c_up: Any
    c_uk: Any
    q_head: Any
    y: Any
    counters: Any
    spans: Any


class Blocks(NamedTuple):
    """Rows a task, then mc, kc and walk of the products and tasks drawn at once: see `tiling.TilePlan`."""

    n_workers: int
    rows_x: int
    rows_q: int
    rows_k: int
    mc_down: int
    kc_down: int
    walk_qa: int
    walk_kva: int
    grain_down: int
    mc_heads: int
    kc_up: int
    walk_up: int
    mc_uk: int
    kc_uk: int
    walk_uk: int
    grain_heads: int


def _work(
    worker: Any, tokens: Any, caches: Any, down: Any, up: Any, uk: Any, vectors: Any, buffers: Any, blocks: Any,
    t0: Any, t: Any, last: Any, traced: Any,
) -> None:  # fmt: skip
    """One worker's way through the phases."""
    _pack(worker, tokens, down, vectors.cann, buffers, blocks, t0, t, traced)
    _down(worker, down, buffers, blocks, t, traced)
    if last >= QUERY:
        _query(worker, tokens, vectors, up.kp, buffers, blocks, t0, t, traced)
    if last >= HEADS:
        _key(worker, tokens, caches, vectors, buffers, blocks, t0, t, traced)
        _heads(worker, tokens, up, uk, vectors.d, buffers, blocks, t0, t, traced)


@kernel_of(_work)
def prolog_tile(
    tokens: Tokens, caches: Caches, down: Product, up: Product, uk: Product, vectors: Vectors, buffers: Buffers,
    blocks: Blocks, t0: Any, t: Any, last: Any, traced: Any,
) -> None:  # fmt: skip
    """Tokens t0..t0+t, up to phase `last`: DOWN, QUERY or HEADS.

    `down` is [w_dq | w_dkv_kr], `up` w_uq_qr by heads, `uk` w_uk.
    """
    for index in prange(blocks.n_workers):
        _work(
            np.int64(index), tokens, caches, down, up, uk, vectors, buffers, blocks, t0, t, last, traced
        )  # fmt: skip


@callee
def _pack(
    worker: Any, tokens: Any, down: Any, cann: Any, buffers: Any, blocks: Any, t0: Any, t: Any, traced: Any
) -> None:
    _stamp(buffers, worker, PACK, 0, traced)
    n_workers, n_tasks = blocks.n_workers, ceil_div(t, blocks.rows_x)
    x, x_rows, x_scale, least = tokens.x, buffers.x_rows, buffers.x_scale, buffers.least_x
    y, n_parts, panels = row_of(buffers.y, worker), down.n_parts, down.panels
    task, end = draw(buffers.counters, PACK, worker, n_workers, n_tasks, 1)
    while task < end:
        for row in range(block_start(t, n_tasks, task), block_start(t, n_tasks, end)):
            operand = window(row_of(x_rows, row), 0, down.kp)
            least[row] = operand_row(row_of(x, t0 + row), panels, n_parts, cann, y, operand, x_scale, row)
        finish(buffers.counters, PACK, n_workers, end - task)
        task, end = draw(buffers.counters, PACK, worker, n_workers, n_tasks, 1)
    _stamp(buffers, worker, PACK, 1, traced)
    wait_for(buffers.counters, PACK, n_workers, n_tasks)


@callee
def _down(worker: Any, b: Any, buffers: Any, blocks: Any, t: Any, traced: Any) -> None:
    _stamp(buffers, worker, DOWN, 0, traced)
    n_workers = blocks.n_workers
    q_a, kv_a, c = buffers.q_a, buffers.kv_a, row_of(buffers.c_down, worker)
    n_tasks = n_pair_tasks(t, q_a.shape[1], kv_a.shape[1], blocks.mc_down, blocks.walk_qa, blocks.walk_kva)
    first, end = draw(buffers.counters, DOWN, worker, n_workers, n_tasks, blocks.grain_down)
    while first < end:
        for task in range(first, end):
            pair_task(
                task, buffers.x_rows, buffers.x_rows.shape[1], b.kp, b.panels, b.offset, buffers.x_scale, b.col_scale,
                b.n_parts, buffers.least_x, b.least, q_a, kv_a, c, blocks.mc_down, blocks.kc_down, blocks.walk_qa,
                blocks.walk_kva,
            )  # fmt: skip
        finish(buffers.counters, DOWN, n_workers, end - first)
        first, end = draw(buffers.counters, DOWN, worker, n_workers, n_tasks, blocks.grain_down)
    _stamp(buffers, worker, DOWN, 1, traced)
    wait_for(buffers.counters, DOWN, n_workers, n_tasks)


@callee
def _query(
    worker: Any, tokens: Any, vectors: Any, kp: Any, buffers: Any, blocks: Any, t0: Any, t: Any, traced: Any
) -> None:
    _stamp(buffers, worker, QUERY, 0, traced)
    n_workers, n_tasks = blocks.n_workers, ceil_div(t, blocks.rows_q)
    y, least, q_norm, scale = row_of(buffers.y, worker), buffers.least_q, tokens.q_norm, tokens.q_norm_scale
    q_a, q_rows = buffers.q_a, buffers.q_rows
    task, end = draw(buffers.counters, QUERY, worker, n_workers, n_tasks, 1)
    while task < end:
        for row in range(block_start(t, n_tasks, task), block_start(t, n_tasks, end)):
            least[row] = query_row(
                row_of(q_a, row), vectors.gamma_cq, vectors.epsilon_cq, vectors.smooth, vectors.cann, y,
                row_of(q_norm, t0 + row), scale, t0 + row, window(row_of(q_rows, row), 0, kp),
            )  # fmt: skip
        finish(buffers.counters, QUERY, n_workers, end - task)
        task, end = draw(buffers.counters, QUERY, worker, n_workers, n_tasks, 1)
    _stamp(buffers, worker, QUERY, 1, traced)


@callee
def _key(
    worker: Any, tokens: Any, caches: Any, vectors: Any, buffers: Any, blocks: Any, t0: Any, t: Any, traced: Any
) -> None:
    _stamp(buffers, worker, KEY, 0, traced)
    n_workers, n_tasks = blocks.n_workers, ceil_div(t, blocks.rows_k)
    y, cache_index, kv_a = row_of(buffers.y, worker), tokens.cache_index, buffers.kv_a
    task, end = draw(buffers.counters, KEY, worker, n_workers, n_tasks, 1)
    while task < end:
        for row in range(block_start(t, n_tasks, task), block_start(t, n_tasks, end)):
            token = t0 + row
            slot = cache_index[token]
            if slot >= 0 and is_last(cache_index, token):
                key_row(
                    row_of(kv_a, row), vectors.gamma_ckv, vectors.epsilon_ckv, vectors.cann, row_of(tokens.cos, token),
                    row_of(tokens.sin, token), y, slot, caches.kv, caches.kv_layout, caches.kr, caches.kr_layout,
                    caches.k_scale, caches.k_scale_layout,
                )  # fmt: skip
        task, end = draw(buffers.counters, KEY, worker, n_workers, n_tasks, 1)
    _stamp(buffers, worker, KEY, 1, traced)


@callee
def _heads(
    worker: Any, tokens: Any, up: Any, uk: Any, d: Any, buffers: Any, blocks: Any, t0: Any, t: Any, traced: Any
) -> None:
    n_workers = blocks.n_workers
    wait_for(buffers.counters, QUERY, n_workers, ceil_div(t, blocks.rows_q))
    _stamp(buffers, worker, HEADS, 0, traced)
    c_up, c_uk, q_head = row_of(buffers.c_up, worker), row_of(buffers.c_uk, worker), row_of(buffers.q_head, worker)
    n_tasks = tokens.query_nope.shape[1] * ceil_div(t, blocks.mc_heads)
    first, end = draw(buffers.counters, HEADS, worker, n_workers, n_tasks, blocks.grain_heads)
    while first < end:
        for task in range(first, end):
            head_task(
                task, t0, t, buffers.q_rows, up.kp, up.panels, up.offset, tokens.q_norm_scale, up.col_scale,
                buffers.least_q, up.least, uk.panels, uk.kp, uk.least, tokens.cos, tokens.sin, tokens.query_nope,
                tokens.query_rope, c_up, c_uk, q_head, row_of(buffers.y, worker), blocks.mc_heads, blocks.kc_up,
                blocks.walk_up, blocks.mc_uk, blocks.kc_uk, blocks.walk_uk, d,
            )  # fmt: skip
        finish(buffers.counters, HEADS, n_workers, end - first)
        first, end = draw(buffers.counters, HEADS, worker, n_workers, n_tasks, blocks.grain_heads)
    _stamp(buffers, worker, HEADS, 1, traced)
    if worker == 0:
        # The caller's own thread, that would fall asleep at the end of the region and have to be woken.
        linger(buffers.counters, HEADS, n_workers, n_tasks)


@callee
def _stamp(buffers: Any, worker: Any, phase: Any, end: Any, traced: Any) -> None:
    if traced:
        buffers.spans[worker, phase, end] = now_ns()
