"""The projections of `pre_compute_2d`: sweeps 1 and 2 for the query alone, then the up-projection as one matrix."""

from __future__ import annotations

import numpy as np

from tiling import PrologPlan

from ..base.checks import (
    BF16,
    FP32,
    INT8,
    Array,
)
from ..base.memory import aligned_empty, as_bits
from ..base.modes import Numerics
from ..call.workspace import Memory
from ..kernels.sweeps.arguments import (
    Caches,
    PairCut,
    Slots,
    Tokens,
    TokenTile,
)
from ..kernels.sweeps.gemm import Pair, matmul_pair, pair_tasks
from ..kernels.sweeps.phase import DOWN, PACK, QUERY, Team
from ..kernels.sweeps.tile import prolog_tile
from ..weights.packed import PackedWeights

__all__ = ["run_projections"]


def run_projections(weights: PackedWeights, plan: PrologPlan, token_x: Array, numerics: Numerics) -> list[Array]:
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
    tokens = Tokens(
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
    layer = weights.arguments_for(numerics)
    for t0, factor in plan.tiles:
        cuts, buffers, taken = memory.prepare(plan.tile_plan(factor))
        n, rows, heads = cuts.n_workers, slice(t0, t0 + factor), cuts.heads
        prolog_tile(n, n, tokens, caches, layer, *taken, TokenTile(t0, factor, PACK, QUERY, False))
        compressed_kv.view(np.uint16)[rows] = buffers.kv_a
        buffers.counters.fill(0)
        pair = Pair(
            a=buffers.q._replace(scale=tokens.q_norm_scale[rows]),
            weight=layer.up,
            y0=q_b_proj.view(np.uint16)[rows],
            y1=np.empty((factor, 0), np.uint16),
            sums=buffers.c_up,
            cut=PairCut(heads.mc, heads.kc, heads.walk, 1, heads.grain),
        )
        matmul_pair(n, n, Team(n, buffers.counters, buffers.spans, False, buffers.laps), pair_tasks(DOWN, pair), pair)
    results = [q_b_proj, compressed_kv, q_norm]
    return [*results, q_norm_scale] if quantised else results


def _no_caches(quantised: bool) -> Caches:
    layout, bits = np.ones(5, np.int64), np.zeros(1, np.uint16)
    kv = np.zeros(1, np.int8) if quantised else bits
    return Caches(Slots(kv, layout), Slots(bits, layout), Slots(np.zeros(1, np.float32), layout))
