"""Sweep 2, row by row: what lies between the two matrix products of the query, and all of the key.

    q_a  -> RmsNorm_qa -> Quant_qMnRes -> q_norm, q_norm_scale, activations of sweep 3
    kv_a -> RmsNorm_compressedkv -> Quant_knope -> kv_cache, k_scale_cache;   RotaryPosEmb -> kr_cache

| array       | shape          | dtype           | notes                                                     |
|-------------|----------------|-----------------|-----------------------------------------------------------|
| q_a         | (Rq,)          | uint16          | a token's bf16 bits, from sweep 1                         |
| kv_a        | (C + R,)       | uint16          | likewise: the latent, and the rope key as halves          |
| cos, sin    | (R,)           | uint16          | bf16 bits                                                 |
| q_norm      | (Rq,)          | int8 or uint16  | its dtype says whether w_uq_qr is quantised               |
| operand     | (kp,)          | see `operand` | the row of sweep 3's A                                  |
| kv, kr, k_scale | flat       | see `scatter`   | caches; kv's dtype says whether they are quantised        |
| y           | (>= max(Rq, C, R) + 16,) | float32 | scratch                                                 |

Tokens never meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from ..jit.callee import callee, overload_callee
from ..row.operand import bf16_operand_row, int8_operand_row
from ..row.rmsnorm_quant import quant_row, quant_scales, rmsnorm_row, smooth_row
from ..row.rope import rotate_row
from ..row.scatter import chunk_at, slot_base
from ..scalars import NONE_NONZERO, least_magnitude, round_bf16, store_scale, window

N_GROUPS = 4  # quantisation groups of the latent


def query_row(
    q_a: Any, gamma: Any, epsilon: Any, smooth: Any, cann: Any, y: Any, q_norm: Any, scale: Any, at: Any, operand: Any
) -> Any:
    """A token's q_norm, with its dequantisation scale at scale[at] if it is int8. Returns its `least_magnitude`.

    `cann`: whether int8 codes and scale are by the numerics of CANN, see `rmsnorm_quant`.
    """
    take = _query_row_int8 if q_norm.dtype == np.int8 else _query_row_bf16
    return take(q_a, gamma, epsilon, smooth, cann, y, q_norm, scale, at, operand)


@overload_callee(query_row)
def _query_row(
    q_a: Any, gamma: Any, epsilon: Any, smooth: Any, cann: Any, y: Any, q_norm: Any, scale: Any, at: Any, operand: Any
) -> Any:
    take = _query_row_int8 if q_norm.dtype == types.int8 else _query_row_bf16

    def row(
        q_a: Any, gamma: Any, epsilon: Any, smooth: Any, cann: Any, y: Any, q_norm: Any, scale: Any, at: Any,
        operand: Any,
    ) -> Any:  # fmt: skip
        return take(q_a, gamma, epsilon, smooth, cann, y, q_norm, scale, at, operand)

    return row


@callee
def _query_row_int8(
    q_a: Any, gamma: Any, epsilon: Any, smooth: Any, cann: Any, y: Any, q_norm: Any, scale: Any, at: Any, operand: Any
) -> Any:
    rmsnorm_row(q_a, gamma, epsilon, cann, y)
    smooth_row(y, smooth)
    values = window(y, 0, len(gamma))
    s, scale[at] = quant_scales(values, cann)
    quant_row(values, s, q_norm)
    int8_operand_row(q_norm, operand)
    return NONE_NONZERO


@callee
def _query_row_bf16(
    q_a: Any, gamma: Any, epsilon: Any, smooth: Any, cann: Any, y: Any, q_norm: Any, scale: Any, at: Any, operand: Any
) -> Any:
    rmsnorm_row(q_a, gamma, epsilon, True, y)  # rounded below
    for j in range(len(gamma)):
        q_norm[j] = round_bf16(y[j])
    bf16_operand_row(q_norm, 1, operand)
    return least_magnitude(q_norm)


@callee
def key_row(
    kv_a: Any, gamma: Any, epsilon: Any, cann: Any, cos: Any, sin: Any, y: Any, slot: Any, kv: Any, kv_layout: Any,
    kr: Any, kr_layout: Any, k_scale: Any, k_scale_layout: Any,
) -> None:  # fmt: skip
    """A token's rows of the caches, at a slot."""
    latent = len(gamma)
    # _write_bf16 rounds an unquantised row anyway.
    rmsnorm_row(window(kv_a, 0, latent), gamma, epsilon, cann, y)
    _write_latent(window(y, 0, latent), cann, slot, kv, kv_layout, k_scale, k_scale_layout)
    rotated = window(y, 0, len(cos))
    rotate_row(window(kv_a, latent, len(cos)), cos, sin, rotated)
    _write_bf16(rotated, kr, kr_layout, slot_base(kr_layout, slot))


def _write_latent(y: Any, cann: Any, slot: Any, kv: Any, kv_layout: Any, k_scale: Any, k_scale_layout: Any) -> None:
    write = _write_latent_int8 if kv.dtype == np.int8 else _write_latent_bf16
    write(y, cann, slot, kv, kv_layout, k_scale, k_scale_layout)


@overload_callee(_write_latent)
def _write_latent_overload(
    y: Any, cann: Any, slot: Any, kv: Any, kv_layout: Any, k_scale: Any, k_scale_layout: Any
) -> Any:
    take = _write_latent_int8 if kv.dtype == types.int8 else _write_latent_bf16

    def write(y: Any, cann: Any, slot: Any, kv: Any, kv_layout: Any, k_scale: Any, k_scale_layout: Any) -> None:
        take(y, cann, slot, kv, kv_layout, k_scale, k_scale_layout)

    return write


@callee
def _write_latent_int8(
    y: Any, cann: Any, slot: Any, kv: Any, kv_layout: Any, k_scale: Any, k_scale_layout: Any
) -> None:
    """Quant_knope: four groups, each with a scale of its own."""
    group = len(y) // N_GROUPS
    base, scale_at = slot_base(kv_layout, slot), slot_base(k_scale_layout, slot)
    for g in range(N_GROUPS):
        values = window(y, g * group, group)
        s, scale = quant_scales(values, cann)
        store_scale(k_scale, scale_at + g, scale)
        done = 0
        while done < group:
            at, room = chunk_at(kv_layout, base, g * group + done)
            n = min(room, group - done)
            quant_row(window(values, done, n), s, window(kv, at, n))
            done += n


@callee
def _write_latent_bf16(
    y: Any, cann: Any, slot: Any, kv: Any, kv_layout: Any, k_scale: Any, k_scale_layout: Any
) -> None:
    _write_bf16(y, kv, kv_layout, slot_base(kv_layout, slot))


@callee
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
