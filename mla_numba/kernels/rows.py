"""Sweep 2, row by row: what lies between the two matrix products of the query, and all of the key.

    q_a  -> RmsNorm_qa -> Quant_qMnRes -> q_norm, q_norm_scale, packed activations of sweep 3
    kv_a -> RmsNorm_compressedkv -> Quant_knope -> kv_cache, k_scale_cache;   RotaryPosEmb -> kr_cache

| array       | shape          | dtype           | notes                                                     |
|-------------|----------------|-----------------|-----------------------------------------------------------|
| q_a, kv_a   | (t, Rq), (t, C+R) | uint16       | bf16 bits, from sweep 1                                   |
| cos, sin    | (T, R)         | uint16          | bf16 bits; token t0 + row                                 |
| cache_index | (T,)           | int64           | all tokens of the call: the last to name a slot writes it |
| q_norm      | (T, Rq)        | int8 or uint16  | rows t0..t0+t are written                                 |
| kv, kr, k_scale | flat       | see `scatter`   | caches                                                    |
| scratch     | (n_workers, >= max(Rq, C, R) + 16)     | float32 |                                            |

A task is a block of tokens of the query or of the key; tokens never meet.
"""

from __future__ import annotations

from typing import Any

from numba import prange
from numba.extending import register_jitable

from ._jit import kernel
from .packing import pack_row_bf16, packed_row
from .rmsnorm_quant import dequant_scale, pack_codes, quant_row, quant_scale, rmsnorm_row, smooth_row
from .rope import rotate_row
from .scalars import least_magnitude, round_bf16, row_of, store_scale, window
from .scatter import chunk_at, is_last, slot_base
from .tasks import block_start, ceil_div, draw

N_GROUPS = 4  # quantisation groups of the latent


@register_jitable
def _write_codes(y: Any, first: Any, s: Any, cache: Any, layout: Any, base: Any) -> None:
    """Quant_knope: the codes of a group, elements first.. of the slot at `base`."""
    done = 0
    while done < len(y):
        at, room = chunk_at(layout, base, first + done)
        n = min(room, len(y) - done)
        quant_row(window(y, done, n), s, window(cache, at, n))
        done += n


@register_jitable
def _write_bf16(y: Any, cache: Any, layout: Any, base: Any) -> None:
    """A float32 row, rounded to bf16, to the slot at `base`."""
    done = 0
    while done < len(y):
        at, room = chunk_at(layout, base, done)
        n = min(room, len(y) - done)
        values, out = window(y, done, n), window(cache, at, n)
        for j in range(n):
            out[j] = round_bf16(values[j])
        done += n


@register_jitable
def _write_key_rope(key: Any, cos: Any, sin: Any, y: Any, kr: Any, layout: Any, slot: Any) -> None:
    """RotaryPosEmb: a key's rope part (R,) uint16, rotated into its slot. y (>= R,) is scratch."""
    rotated = window(y, 0, len(key))
    rotate_row(key, cos, sin, rotated)
    _write_bf16(rotated, kr, layout, slot_base(layout, slot))


@kernel
def rows_int8(
    q_a: Any,
    kv_a: Any,
    gamma_cq: Any,
    gamma_ckv: Any,
    epsilon_cq: Any,
    epsilon_ckv: Any,
    smooth: Any,
    cos: Any,
    sin: Any,
    cache_index: Any,
    t0: Any,
    q_norm: Any,
    q_norm_scale: Any,
    packed: Any,
    kp: Any,
    mc: Any,
    kv: Any,
    kv_layout: Any,
    kr: Any,
    kr_layout: Any,
    k_scale: Any,
    k_scale_layout: Any,
    scratch: Any,
    counters: Any,
    rows_q: Any,
    rows_k: Any,
    n_workers: Any,
) -> None:
    """The quantised rows sweep of one token tile: int8 q_norm with a scale a token, int8 cache with four."""
    t = q_a.shape[0]
    latent = len(gamma_ckv)
    group = latent // N_GROUPS
    n_tasks_q = ceil_div(t, rows_q)
    n_tasks_k = ceil_div(t, rows_k)
    n_tasks = n_tasks_q + n_tasks_k
    for worker in prange(n_workers):
        y = row_of(scratch, worker)
        task, end = draw(counters, worker, n_workers, n_tasks, 1)
        while task < end:
            if task < n_tasks_q:
                for row in range(block_start(t, n_tasks_q, task), block_start(t, n_tasks_q, task + 1)):
                    rmsnorm_row(row_of(q_a, row), gamma_cq, epsilon_cq, y)
                    smooth_row(y, smooth)
                    values, codes = window(y, 0, len(gamma_cq)), row_of(q_norm, t0 + row)
                    s = quant_scale(values)
                    q_norm_scale[t0 + row] = dequant_scale(s)
                    quant_row(values, s, codes)
                    pack_codes(codes, row, kp, t, mc, packed)
            else:
                block = task - n_tasks_q
                for row in range(block_start(t, n_tasks_k, block), block_start(t, n_tasks_k, block + 1)):
                    token = t0 + row
                    slot = cache_index[token]
                    if slot >= 0 and is_last(cache_index, token):
                        rmsnorm_row(window(row_of(kv_a, row), 0, latent), gamma_ckv, epsilon_ckv, y)
                        base = slot_base(kv_layout, slot)
                        scale_at = slot_base(k_scale_layout, slot)
                        for g in range(N_GROUPS):
                            values = window(y, g * group, group)
                            s = quant_scale(values)
                            store_scale(k_scale, scale_at + g, dequant_scale(s))
                            _write_codes(values, g * group, s, kv, kv_layout, base)
                        key = window(row_of(kv_a, row), latent, cos.shape[1])
                        _write_key_rope(key, row_of(cos, token), row_of(sin, token), y, kr, kr_layout, slot)
            task, end = draw(counters, worker, n_workers, n_tasks, 1)


@kernel
def rows_bf16(
    q_a: Any,
    kv_a: Any,
    gamma_cq: Any,
    gamma_ckv: Any,
    epsilon_cq: Any,
    epsilon_ckv: Any,
    cos: Any,
    sin: Any,
    cache_index: Any,
    t0: Any,
    q_norm: Any,
    packed: Any,
    least: Any,
    kp: Any,
    mc: Any,
    kv: Any,
    kv_layout: Any,
    kr: Any,
    kr_layout: Any,
    scratch: Any,
    counters: Any,
    rows_q: Any,
    rows_k: Any,
    n_workers: Any,
) -> None:
    """The unquantised rows sweep of one token tile: q_norm and the cache stay bf16.

    least (t,) int32 receives the `least_magnitude` of each packed row.
    """
    t = q_a.shape[0]
    latent = len(gamma_ckv)
    n = len(gamma_cq)
    n_tasks_q = ceil_div(t, rows_q)
    n_tasks_k = ceil_div(t, rows_k)
    n_tasks = n_tasks_q + n_tasks_k
    for worker in prange(n_workers):
        y = row_of(scratch, worker)
        task, end = draw(counters, worker, n_workers, n_tasks, 1)
        while task < end:
            if task < n_tasks_q:
                for row in range(block_start(t, n_tasks_q, task), block_start(t, n_tasks_q, task + 1)):
                    rmsnorm_row(row_of(q_a, row), gamma_cq, epsilon_cq, y)
                    norm = row_of(q_norm, t0 + row)
                    for j in range(n):
                        norm[j] = round_bf16(y[j])
                    first, mr, place = packed_row(t, mc, row)
                    pack_row_bf16(norm, place, mr, window(packed, first * kp, mr * kp))
                    least[row] = least_magnitude(norm)
            else:
                block = task - n_tasks_q
                for row in range(block_start(t, n_tasks_k, block), block_start(t, n_tasks_k, block + 1)):
                    token = t0 + row
                    slot = cache_index[token]
                    if slot >= 0 and is_last(cache_index, token):
                        rmsnorm_row(window(row_of(kv_a, row), 0, latent), gamma_ckv, epsilon_ckv, y)
                        _write_bf16(window(y, 0, latent), kv, kv_layout, slot_base(kv_layout, slot))
                        key = window(row_of(kv_a, row), latent, cos.shape[1])
                        _write_key_rope(key, row_of(cos, token), row_of(sin, token), y, kr, kr_layout, slot)
            task, end = draw(counters, worker, n_workers, n_tasks, 1)
