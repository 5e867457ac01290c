"""The projections of `pre_compute_2d`: sweeps 1 and 2 for the query alone, then the up-projection as one matrix."""

from __future__ import annotations

import numpy as np

from tiling import PrologPlan

from ._checks import BF16, FP32, INT8, Array
from .cache import CacheView
from .kernels import gemm
from .memory import aligned_empty, as_bits
from .packed import PackedWeights
from .sweeps import Bindings, down_sweep, rows_sweep
from .workspace import Memory

__all__ = ["run_projections"]


def run_projections(weights: PackedWeights, plan: PrologPlan, token_x: Array) -> list[Array]:
    """[q_b_proj, compressed_kv, q_norm] and, quantised, q_norm_scale, for token_x (T, H) bf16 under `plan`.

    `weights.up` is packed as one matrix, not by heads; `weights.uk` and the key's weights are not read.
    """
    t = token_x.shape[0]
    up = plan.dims.qk_nope_head_dim + plan.dims.qk_rope_head_dim
    quantised = "b" in weights.quant
    q_b_proj = aligned_empty((t, up), BF16)
    compressed_kv = aligned_empty((t, plan.dims.kv_lora_rank + plan.dims.qk_rope_head_dim), BF16)
    q_norm = aligned_empty((t, plan.dims.q_lora_rank), INT8 if quantised else BF16)
    q_norm_scale = aligned_empty((t, 1), FP32)
    memory = Memory(plan)
    io = Bindings(
        x=as_bits(token_x),
        cos=np.zeros((t, 2), np.uint16),
        sin=np.zeros((t, 2), np.uint16),
        cache_index=np.full(t, -1, np.int64),  # no key is wanted, so no cache row is
        query_nope=np.zeros((0, 1, 1), np.uint16),
        query_rope=np.zeros((0, 1, 1), np.uint16),
        q_norm=q_norm if quantised else q_norm.view(np.uint16),
        q_norm_scale=q_norm_scale.reshape(-1),
        caches=_no_caches(quantised),
    )
    for t0, factor in plan.tiles:
        tile = plan.tile_plan(factor)
        buffers = memory.buffers(tile)
        down_sweep(weights, tile, buffers, io, t0)
        compressed_kv.view(np.uint16)[t0 : t0 + factor] = buffers.kv_a
        rows_sweep(weights, tile, buffers, io, t0)
        qb = tile.heads.qb
        gemm.matmul_pair(
            tile.n_workers, buffers.a_up, weights.up.kp, weights.up.panels, weights.up.offset,
            io.q_norm_scale[t0 : t0 + factor] if quantised else buffers.ones, weights.up.col_scale, weights.up.n_parts,
            buffers.least, weights.up.least,
            q_b_proj.view(np.uint16)[t0 : t0 + factor], np.empty((factor, 0), np.uint16),
            buffers.c_i32 if quantised else buffers.c_f32, buffers.zeroed_counters(), qb.mc, qb.kc, qb.walk, 1,
            tile.heads.grain, tile.n_workers,
        )  # fmt: skip
    results = [q_b_proj, compressed_kv, q_norm]
    return [*results, q_norm_scale] if quantised else results


def _no_caches(quantised: bool) -> dict[str, CacheView]:
    layout = np.ones(5, np.int64)
    kinds = {"kv_cache": np.int8 if quantised else np.uint16, "kr_cache": np.uint16, "k_scale_cache": np.float32}
    return {name: CacheView(np.zeros(1, kind), layout) for name, kind in kinds.items()}
