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
| scratch     | (n_workers, max(Rq, C) + 16) | float32 |                                                     |

A task is a block of tokens of the query or of the key; tokens never meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ._jit import kernel
from .gemm import block_start, ceil_div
from .packing import packed_row
from .rmsnorm_quant import dequant_scale, pack_codes, quant_code, quant_scale, rmsnorm_row, smooth_row
from .rope import rope_value
from .scatter import is_last, slot_base
from .simd import fetch_add, round_bf16, widen

N_GROUPS = 4  # quantisation groups of the latent


@register_jitable
def _write_key_rope(
    kv_a: Any, row: Any, latent: Any, cos: Any, sin: Any, token: Any, slot: Any, kr: Any, kr_layout: Any
) -> None:
    half = cos.shape[1] // 2
    base = slot_base(kr_layout, slot)
    c0, chunk = kr_layout[2], kr_layout[3]
    for j in range(2 * half):
        pair = latent + 2 * (j % half)
        even, odd = widen(kv_a[row, pair]), widen(kv_a[row, pair + 1])
        value = rope_value(j, half, even, odd, widen(cos[token, j]), widen(sin[token, j]))
        kr[base + j // c0 * chunk + j % c0] = value


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
    counter: Any,
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
    codes_here = q_norm[t0 : t0 + t]
    for worker in prange(n_workers):
        y = scratch[worker]
        task = fetch_add(counter, 1)
        while task < n_tasks:
            if task < n_tasks_q:
                for row in range(block_start(t, n_tasks_q, task), block_start(t, n_tasks_q, task + 1)):
                    rmsnorm_row(q_a, row, 0, gamma_cq, epsilon_cq, y, 0)
                    smooth_row(y, 0, smooth)
                    s = quant_scale(y, 0, len(gamma_cq))
                    q_norm_scale[t0 + row] = dequant_scale(s)
                    for j in range(len(gamma_cq)):
                        codes_here[row, j] = quant_code(y[j], s)
                    pack_codes(codes_here, row, kp, t, mc, packed)
            else:
                block = task - n_tasks_q
                for row in range(block_start(t, n_tasks_k, block), block_start(t, n_tasks_k, block + 1)):
                    token = t0 + row
                    slot = cache_index[token]
                    if slot >= 0 and is_last(cache_index, token):
                        rmsnorm_row(kv_a, row, 0, gamma_ckv, epsilon_ckv, y, 0)
                        base = slot_base(kv_layout, slot)
                        c0, chunk = kv_layout[2], kv_layout[3]
                        scale_at = slot_base(k_scale_layout, slot)
                        for g in range(N_GROUPS):
                            s = quant_scale(y, g * group, group)
                            k_scale[scale_at + g] = dequant_scale(s)
                            for j in range(g * group, (g + 1) * group):
                                kv[base + j // c0 * chunk + j % c0] = quant_code(y[j], s)
                        _write_key_rope(kv_a, row, latent, cos, sin, token, slot, kr, kr_layout)
            task = fetch_add(counter, 1)


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
    kp: Any,
    mc: Any,
    kv: Any,
    kv_layout: Any,
    kr: Any,
    kr_layout: Any,
    scratch: Any,
    counter: Any,
    rows_q: Any,
    rows_k: Any,
    n_workers: Any,
) -> None:
    """The unquantised rows sweep of one token tile: q_norm and the cache stay bf16."""
    t = q_a.shape[0]
    latent = len(gamma_ckv)
    n = len(gamma_cq)
    n_tasks_q = ceil_div(t, rows_q)
    n_tasks_k = ceil_div(t, rows_k)
    n_tasks = n_tasks_q + n_tasks_k
    for worker in prange(n_workers):
        y = scratch[worker]
        task = fetch_add(counter, 1)
        while task < n_tasks:
            if task < n_tasks_q:
                for row in range(block_start(t, n_tasks_q, task), block_start(t, n_tasks_q, task + 1)):
                    rmsnorm_row(q_a, row, 0, gamma_cq, epsilon_cq, y, 0)
                    first, mr, place = packed_row(t, mc, row)
                    base = first * kp + place
                    for j in range(n):
                        q_norm[t0 + row, j] = round_bf16(y[j])
                    for j in range(n):
                        packed[base + j * mr] = y[j]
                    for j in range(n, kp):
                        packed[base + j * mr] = np.float32(0)
            else:
                block = task - n_tasks_q
                for row in range(block_start(t, n_tasks_k, block), block_start(t, n_tasks_k, block + 1)):
                    token = t0 + row
                    slot = cache_index[token]
                    if slot >= 0 and is_last(cache_index, token):
                        rmsnorm_row(kv_a, row, 0, gamma_ckv, epsilon_ckv, y, 0)
                        base = slot_base(kv_layout, slot)
                        c0, chunk = kv_layout[2], kv_layout[3]
                        for j in range(latent):
                            kv[base + j // c0 * chunk + j % c0] = round_bf16(y[j])
                        _write_key_rope(kv_a, row, latent, cos, sin, token, slot, kr, kr_layout)
            task = fetch_add(counter, 1)
