"""The three sweeps over one tile of tokens: what each kernel gets from plan, buffers, weights and caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tiling import TilePlan

from ._checks import Array
from .cache import CacheView
from .kernels import gemm, packing, query_heads, rmsnorm_quant, rows
from .packed import PackedWeights
from .workspace import TileBuffers

__all__ = ["SWEEPS", "Bindings", "down_sweep", "heads_sweep", "rows_sweep", "run_tile"]

SWEEPS = ("down", "rows", "heads")


@dataclass(frozen=True, slots=True, eq=False)
class Bindings:
    """The caller's arrays as the kernels take them: bf16 as uint16 bits, all C-contiguous, for all T tokens.

    `q_norm_scale` is (T,) float32, empty when unquantised.
    """

    x: Array
    cos: Array
    sin: Array
    cache_index: Array
    query_nope: Array
    query_rope: Array
    q_norm: Array
    q_norm_scale: Array
    caches: Mapping[str, CacheView]


def run_tile(
    weights: PackedWeights,
    plan: TilePlan,
    buffers: TileBuffers,
    io: Bindings,
    t0: int,
    finished: Callable[[str], None] | None = None,
) -> None:
    """Computes tokens t0..t0+plan.t. `finished` is called with a sweep's name at its end."""
    for name, sweep in zip(SWEEPS, (down_sweep, rows_sweep, heads_sweep), strict=True):
        sweep(weights, plan, buffers, io, t0)
        if finished is not None:
            finished(name)


def down_sweep(weights: PackedWeights, plan: TilePlan, buffers: TileBuffers, io: Bindings, t0: int) -> None:
    """Sweep 1: x to q_a and kv_a."""
    n, n_row = plan.n_workers, plan.n_row_workers
    qa, kva = plan.down.qa, plan.down.kva
    down = weights.down
    x = io.x[t0 : t0 + plan.t]
    if qa.dtype == "int8":
        rmsnorm_quant.quant_x(
            n_row, x, qa.mc, down.kp, buffers.y, buffers.x_codes, buffers.x_scale, buffers.x_pack, n_row
        )  # fmt: skip
        row_scale, c = buffers.x_scale, buffers.c_i32
    else:
        packing.pack_rows_bf16(n_row, x, down.n_parts, qa.mc, buffers.x_pack, buffers.least)
        row_scale, c = buffers.ones, buffers.c_f32
    gemm.matmul_pair(
        n, buffers.x_pack, down.kp, down.panels, down.offset, row_scale, down.col_scale, down.n_parts, buffers.least,
        down.least, buffers.q_a, buffers.kv_a, c, buffers.zeroed_counters(), qa.mc, qa.kc, qa.walk, kva.walk,
        plan.down.grain, n,
    )  # fmt: skip


def rows_sweep(weights: PackedWeights, plan: TilePlan, buffers: TileBuffers, io: Bindings, t0: int) -> None:
    """Sweep 2: q_a to q_norm and the packed activations of sweep 3, kv_a to cache rows."""
    n = plan.n_row_workers
    kv, kr = io.caches["kv_cache"], io.caches["kr_cache"]
    mc, kp = plan.heads.qb.mc, weights.up.kp
    counters = buffers.zeroed_counters()
    if plan.rows.quantised:
        k_scale = io.caches["k_scale_cache"]
        rows.rows_int8(
            n, buffers.q_a, buffers.kv_a, weights.gamma_cq, weights.gamma_ckv, weights.epsilon_cq, weights.epsilon_ckv,
            weights.smooth_scales_cq, io.cos, io.sin, io.cache_index, t0, io.q_norm, io.q_norm_scale, buffers.a_up, kp,
            mc, kv.flat, kv.layout, kr.flat, kr.layout, k_scale.flat, k_scale.layout, buffers.y, counters,
            plan.rows.rows_q, plan.rows.rows_k, n,
        )  # fmt: skip
    else:
        rows.rows_bf16(
            n, buffers.q_a, buffers.kv_a, weights.gamma_cq, weights.gamma_ckv, weights.epsilon_cq, weights.epsilon_ckv,
            io.cos, io.sin, io.cache_index, t0, io.q_norm, buffers.a_up, buffers.least, kp, mc, kv.flat, kv.layout,
            kr.flat, kr.layout, buffers.y, counters, plan.rows.rows_q, plan.rows.rows_k, n,
        )  # fmt: skip


def heads_sweep(weights: PackedWeights, plan: TilePlan, buffers: TileBuffers, io: Bindings, t0: int) -> None:
    """Sweep 3: packed q_norm to query_nope and query_rope."""
    n = plan.n_workers
    heads = plan.heads
    up = weights.up
    quantised = heads.qb.dtype == "int8"
    query_heads.query_heads(
        n, buffers.a_up, up.kp, up.panels, up.offset, io.q_norm_scale[t0 : t0 + plan.t] if quantised else buffers.ones,
        up.col_scale, weights.uk.panels, io.cos, io.sin, t0, plan.t, weights.dims.qk_nope_head_dim,
        buffers.least, up.least, weights.uk.least, io.query_nope, io.query_rope,
        buffers.c_i32 if quantised else buffers.c_f32, buffers.c_f32, buffers.q_head, buffers.a_nope,
        buffers.y, buffers.zeroed_counters(), heads.qb.mc, heads.qb.kc, heads.qb.walk, heads.q_rows, heads.wuk.mc,
        heads.wuk.kc, heads.wuk.walk, heads.grain, n,
    )  # fmt: skip
