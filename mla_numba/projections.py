"""The projections of `pre_compute_2d`: sweeps 1 and 2 for the query alone, then the up-projection as one matrix."""

from __future__ import annotations

import numpy as np

from tiling import PrologPlan

from ._checks import BF16, FP32, INT8, Array
from .kernels.sweeps import gemm, tile
from .memory import aligned_empty, as_bits
from .packed import PackedWeights
from .workspace import Memory

__all__ = ["run_projections"]


def run_projections(weights: PackedWeights, plan: PrologPlan, token_x: Array, numerics: str) -> list[Array]:
    """[q_b_proj, compressed_kv, q_norm] and, quantised, q_norm_scale, for token_x (T, H) bf16 under `plan`.

    `weights.up` is packed as one matrix, not by heads; `weights.uk` and the key's weights are not read. `numerics`:
    see `MlaProlog`.
    """
    t = token_x.shape[0]
    up = plan.dims.qk_nope_head_dim + plan.dims.qk_rope_head_dim
    quantised = "b" in weights.quant
    q_b_proj = aligned_empty((t, up), BF16)
    compressed_kv = aligned_empty((t, plan.dims.kv_lora_rank + plan.dims.qk_rope_head_dim), BF16)
    q_norm = aligned_empty((t, plan.dims.q_lora_rank), INT8 if quantised else BF16)
    q_norm_scale = aligned_empty((t, 1), FP32)
    memory = Memory(plan)
    no_bits, no_queries = np.zeros((0, 2), np.uint16), np.zeros((0, 1, 1), np.uint16)
    tokens = tile.Tokens(
        x=as_bits(token_x),
        cos=no_bits,
        sin=no_bits,
        cache_index=np.zeros(0, np.int64),
        query_nope=no_queries,
        query_rope=no_queries,
        q_norm=q_norm if quantised else q_norm.view(np.uint16),
        q_norm_scale=q_norm_scale.reshape(-1),
    )
    caches = _no_caches(quantised)
    arguments = weights.arguments_for(numerics)
    _, up_weight, _, _ = arguments
    for t0, factor in plan.tiles:
        tile_plan = plan.tile_plan(factor)
        blocks, buffers = memory.prepare(tile_plan)
        n = blocks.n_workers
        tile.prolog_tile(n, tokens, caches, *arguments, buffers, blocks, t0, factor, tile.QUERY, False)
        compressed_kv.view(np.uint16)[t0 : t0 + factor] = buffers.kv_a
        buffers.counters.fill(0)
        gemm.matmul_pair(
            n, buffers.q_rows, buffers.q_rows.shape[1], up_weight.kp, up_weight.panels,
            up_weight.offset,
            tokens.q_norm_scale[t0 : t0 + factor], up_weight.col_scale, up_weight.n_parts,
            buffers.least_q, up_weight.least,
            q_b_proj.view(np.uint16)[t0 : t0 + factor], np.empty((factor, 0), np.uint16), buffers.c_up,
            buffers.counters, blocks.mc_heads, blocks.kc_up, blocks.walk_up, 1, blocks.grain_heads, n,
        )  # fmt: skip
    results = [q_b_proj, compressed_kv, q_norm]
    return [*results, q_norm_scale] if quantised else results


def _no_caches(quantised: bool) -> tile.Caches:
    layout, bits = np.ones(5, np.int64), np.zeros(1, np.uint16)
    return tile.Caches(
        np.zeros(1, np.int8) if quantised else bits, layout, bits, layout, np.zeros(1, np.float32), layout
    )
