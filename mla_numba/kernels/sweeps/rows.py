"""What is done row by row: x as an operand, and sweep 2, what lies between the two matrix products of the query, and
all of the key. Tokens never meet.

    x    -> Quant_x, where w_dq is int8 -> activations of sweep 1
    q_a  -> RmsNorm_qa -> Quant_qMnRes -> q_norm, q_norm_scale, activations of sweep 3
    kv_a -> RmsNorm_compressedkv -> Quant_knope -> kv_cache, k_scale_cache;   RotaryPosEmb -> kr_cache

| array       | shape          | dtype           | notes                                                     |
|-------------|----------------|-----------------|-----------------------------------------------------------|
| x           | (T, H)         | uint16          | bf16 bits                                                 |
| q_a         | (t, Rq)        | uint16          | bf16 bits, from sweep 1                                   |
| kv_a        | (t, C + R)     | uint16          | likewise: the latent, and the rope key as halves          |
| cos, sin    | (T, R)         | uint16          | bf16 bits                                                 |
| q_norm      | (T, Rq)        | int8 or uint16  | its dtype says whether w_uq_qr is quantised               |
| a.rows      | (t, lda >= kp) | see `operand`   | the rows of A that are written                            |
| kv, kr, k_scale | flat       | see `scatter`   | caches; kv's dtype says whether they are quantised        |
| y           | (n_workers, >= max(H, Rq, C, R) + 16) | float32 | scratch                                    |
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit.callee import by_dtype, callee
from ..kinds import F32, Bits, Index, Int64, Values
from ..launch import outlined
from ..row.operand import bf16_operand_row, int8_operand_row, operand_row
from ..row.rmsnorm_quant import Norm, quant_row, quant_scales, rmsnorm_row, smooth_row
from ..row.rope import rotate_row
from ..row.scatter import Slots, chunk_at, is_last, slot_base, write_codes
from ..scalars import NONE_NONZERO, min_magnitude, round_row, row_of, store_scale, window
from ..threads.tasks import block_start
from .arguments import Activations, Caches
from .phase import Tasks, Team, share

N_GROUPS = 4  # quantisation groups of the latent


class PackRows(NamedTuple):
    """Rows t0..t0+t of x, and the activations that they become for a weight of that kp and n_parts."""

    x: Bits
    a: Activations
    kp: Index
    n_parts: Index
    cann: bool
    y: F32
    t0: Index
    t: Index


@callee
def _pack_task(task: Index, n_tasks: Index, worker: Index, work: PackRows) -> None:
    y = row_of(work.y, worker)
    for row in range(block_start(work.t, n_tasks, task), block_start(work.t, n_tasks, task + 1)):
        work.a.min_magnitude[row] = operand_row(
            row_of(work.x, work.t0 + row), work.n_parts, work.cann, y, row_of(work.a.rows, row), work.kp,
            work.a.scale, row,
        )  # fmt: skip


@outlined
def pack(worker: Index, team: Team, tasks: Tasks, work: PackRows) -> None:
    """Phase PACK: Quant_x where w_dq is int8."""
    share(worker, team, tasks, _pack_task, work)


class QueryRows(NamedTuple):
    """The rows of q_a, and what becomes of them: q_norm and its scales, by token, and activations of kp."""

    q_a: Bits
    norm: Norm
    cann: bool
    q_norm: Values
    q_norm_scale: F32
    a: Activations
    kp: Index
    y: F32
    t0: Index
    t: Index


@callee
def _query_row_int8(work: QueryRows, row: Index, y: F32) -> Index:
    q_norm = row_of(work.q_norm, work.t0 + row)
    rmsnorm_row(row_of(work.q_a, row), work.norm, work.cann, y)
    smooth_row(y, work.norm.smooth)
    values = window(y, 0, len(q_norm))
    s, work.q_norm_scale[work.t0 + row] = quant_scales(values, work.cann)
    quant_row(values, s, q_norm)
    int8_operand_row(q_norm, row_of(work.a.rows, row), work.kp)
    return NONE_NONZERO


@callee
def _query_row_bf16(work: QueryRows, row: Index, y: F32) -> Index:
    q_norm = row_of(work.q_norm, work.t0 + row)
    rmsnorm_row(row_of(work.q_a, row), work.norm, True, y)  # rounded below
    round_row(y, q_norm)
    bf16_operand_row(q_norm, 1, window(row_of(work.a.rows, row), 0, work.kp))
    return min_magnitude(q_norm)


@by_dtype("work.q_norm", {np.int8: _query_row_int8}, otherwise=_query_row_bf16)
def query_row(work: QueryRows, row: Index, y: F32) -> Index:
    """A token's q_norm, with its dequantisation scale if it is int8. Returns its `min_magnitude`."""


@callee
def _query_task(task: Index, n_tasks: Index, worker: Index, work: QueryRows) -> None:
    y = row_of(work.y, worker)
    for row in range(block_start(work.t, n_tasks, task), block_start(work.t, n_tasks, task + 1)):
        work.a.min_magnitude[row] = query_row(work, row, y)


@outlined
def query(worker: Index, team: Team, tasks: Tasks, work: QueryRows) -> None:
    """Phase QUERY: RmsNorm_qa, Quant_qMnRes."""
    share(worker, team, tasks, _query_task, work)


class KeyRows(NamedTuple):
    """The rows of kv_a, and the slots of the caches that they go to."""

    kv_a: Bits
    norm: Norm
    cann: bool
    cos: Bits
    sin: Bits
    cache_index: Int64
    caches: Caches
    y: F32
    t0: Index
    t: Index


@callee
def _write_bf16(y: F32, cache: Slots, slot: Index) -> None:
    """A float32 row, rounded to bf16, to a slot."""
    base, done = slot_base(cache.layout, slot), 0
    while done < len(y):
        at, room = chunk_at(cache.layout, base, done)
        n = min(room, len(y) - done)
        round_row(window(y, done, n), window(cache.flat, at, n))
        done += n


@callee
def _write_latent_bf16(y: F32, cann: bool, caches: Caches, slot: Index) -> None:
    _write_bf16(y, caches.kv, slot)


@callee
def _write_latent_int8(y: F32, cann: bool, caches: Caches, slot: Index) -> None:
    """Quant_knope: four groups, each with a scale of its own."""
    kv, k_scale = caches.kv, caches.k_scale
    group, scale_at = len(y) // N_GROUPS, slot_base(k_scale.layout, slot)
    for g in range(N_GROUPS):
        values = window(y, g * group, group)
        s, scale = quant_scales(values, cann)
        store_scale(k_scale.flat, scale_at + g, scale)
        write_codes(values, s, kv, slot, g * group)


@by_dtype("caches.kv.flat", {np.int8: _write_latent_int8}, otherwise=_write_latent_bf16)
def _write_latent(y: F32, cann: bool, caches: Caches, slot: Index) -> None:
    """A normalised latent to a slot, quantised where the cache is."""


@callee
def key_row(work: KeyRows, row: Index, slot: Index, y: F32) -> None:
    """A token's rows of the caches, at a slot."""
    token, kv_a = work.t0 + row, row_of(work.kv_a, row)
    latent, rope = len(work.norm.gamma), work.cos.shape[1]
    # _write_bf16 rounds an unquantised row anyway.
    rmsnorm_row(window(kv_a, 0, latent), work.norm, work.cann, y)
    _write_latent(window(y, 0, latent), work.cann, work.caches, slot)
    rotated = window(y, 0, rope)
    rotate_row(window(kv_a, latent, rope), row_of(work.cos, token), row_of(work.sin, token), rotated)
    _write_bf16(rotated, work.caches.kr, slot)


@callee
def _key_task(task: Index, n_tasks: Index, worker: Index, work: KeyRows) -> None:
    y = row_of(work.y, worker)
    for row in range(block_start(work.t, n_tasks, task), block_start(work.t, n_tasks, task + 1)):
        slot = work.cache_index[work.t0 + row]
        if slot >= 0 and is_last(work.cache_index, work.t0 + row):
            key_row(work, row, slot, y)


@outlined
def key(worker: Index, team: Team, tasks: Tasks, work: KeyRows) -> None:
    """Phase KEY: RmsNorm_compressedkv, Quant_knope, RotaryPosEmb, ScatterUpdate_*."""
    share(worker, team, tasks, _key_task, work)
