"""Single products by mla_numba's kernels. All that the suite knows of the kernels' own faces is in this file.

Each function gives calls, one a copy of the packed weights, the bf16 array that they write, and the plan in a line.
Letters: T tokens, K and N rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import ml_dtypes
import numba
import numpy as np

from mla_numba import MlaDims, MlaProlog, MlaWeights, PagedCache, PrologOutput
from mla_numba.base.memory import aligned_empty, as_bits
from mla_numba.call.planning import MICRO_TILES, this_machine
from mla_numba.call.workspace import Memory, Prepared
from mla_numba.kernels.row.operand import int8_operand_row
from mla_numba.kernels.sweeps.arguments import Caches, Layer, Norm, PairCut, Slots, Tokens, TokenTile
from mla_numba.kernels.sweeps.gemm import Pair, matmul_pair, pair_tasks
from mla_numba.kernels.sweeps.phase import DOWN, PACK, Team
from mla_numba.kernels.sweeps.tile import prolog_tile
from mla_numba.oracle.inputs import Inputs
from mla_numba.weights.packed_gemm import PackedGemm, pack_gemm
from tiling import PrologPlan, TilePlan, plan_prolog

__all__ = ["Products", "down_product", "heads_plan", "heads_prologs", "heads_seconds", "key_product", "up_product"]

Array = np.ndarray[Any, Any]


class Products(NamedTuple):
    """Calls on the same operand, one a copy of the weight, all into `y`."""

    calls: list[Callable[[], None]]
    y: Array
    plan: str


def _planned(dims: MlaDims, t: int, quant: str, n_threads: int) -> tuple[TilePlan, Memory]:
    plan = plan_prolog(dims, t, None, this_machine(), micro=MICRO_TILES, quant=quant, n_threads=n_threads)
    (tile_plan,) = plan.tile_plans  # no number of tokens of the suite is cut
    return tile_plan, Memory(plan)


def _calls(
    x: Array, weights: Sequence[PackedGemm], y: tuple[Array, Array], prepared: Prepared
) -> list[Callable[[], None]]:
    """The first two phases of a tile, one call a weight: x packed, then both products, into y[0] and y[1]."""
    no_bits, no_queries = np.zeros((0, 2), np.uint16), np.zeros((0, 1, 1), np.uint16)
    tokens = Tokens(
        x=as_bits(x), cos=no_bits, sin=no_bits, cache_index=np.zeros(0, np.int64), query_nope=no_queries,
        query_rope=no_queries, q_norm=no_bits, q_norm_scale=np.zeros(0, np.float32),
    )  # fmt: skip
    layout, bits, no_vector = np.zeros(5, np.int64), np.zeros(0, np.uint16), np.zeros(0, np.float32)
    caches = Caches(Slots(bits, layout), Slots(bits, layout), Slots(no_vector, layout))
    nothing, no_norm = PackedGemm.nothing().as_argument(), Norm(no_vector, np.float32(0), no_vector)
    q_a, kv_a = (part.view(np.uint16) for part in y)
    cuts, buffers = prepared.cuts, prepared.buffers._replace(q_a=q_a, kv_a=kv_a)
    tile, n = TokenTile(0, len(x), PACK, DOWN, False), cuts.n_workers

    def call_of(weight: PackedGemm) -> Callable[[], None]:
        layer = Layer(weight.as_argument(), nothing, nothing, no_norm, no_norm, qk_nope_head_dim=1, cann=False)

        def call() -> None:
            buffers.counters.fill(0)
            prolog_tile(n, n, tokens, caches, layer, buffers, cuts, tile)

        return call

    return [call_of(weight) for weight in weights]


def down_product(x: Array, w_dq: Array, w_dkv_kr: Array, n_copies: int, n_threads: int) -> Products:
    """x (T, K) bf16 times [w_dq | w_dkv_kr] (K, N), packing x included; w_dq is summed in halves of K.

    `y` is one array (T * N,): first (T, w_dq's columns), then (T, w_dkv_kr's).
    """
    t, hidden = x.shape
    dims = MlaDims(hidden, 1, w_dq.shape[1], w_dkv_kr.shape[1] - 2, 2, 2)
    tile_plan, memory = _planned(dims, t, "none", n_threads)
    y = aligned_empty(t * (w_dq.shape[1] + w_dkv_kr.shape[1]), x.dtype)
    cut = t * w_dq.shape[1]
    parts = (y[:cut].reshape(t, -1), y[cut:].reshape(t, -1))
    packed = [pack_gemm([w_dq, w_dkv_kr], [None, None], n_threads, n_parts=2) for _ in range(n_copies)]
    calls = _calls(x, packed, parts, memory.prepare(tile_plan))
    return Products(calls, y, f"{tile_plan.down.qa}; {tile_plan.down.kva}")


def key_product(x: Array, w_dkv_kr: Array, n_copies: int, n_threads: int) -> Products:
    """x (T, K) bf16 times w_dkv_kr (K, N) alone, packing x included."""
    t, hidden = x.shape
    tile_plan, memory = _planned(MlaDims(hidden, 1, 2, w_dkv_kr.shape[1] - 2, 2, 2), t, "none", n_threads)
    plan = tile_plan.down.kva
    prepared = memory.prepare(tile_plan)
    cuts = prepared.cuts
    cuts = cuts._replace(down=PairCut(plan.mc, plan.kc, plan.walk, 1, cuts.down.grain))
    y = aligned_empty((t, w_dkv_kr.shape[1]), x.dtype)
    packed = [pack_gemm([w_dkv_kr], [None], n_threads) for _ in range(n_copies)]
    calls = _calls(x, packed, (y, np.empty((t, 0), x.dtype)), prepared._replace(cuts=cuts))
    return Products(calls, y, str(plan))


@numba.njit
def _write_rows(codes: Array, rows: Array, kp: int) -> None:
    """Codes (T, K) int8 as activations."""
    for row in range(len(codes)):
        int8_operand_row(codes[row], rows[row], kp)


def up_product(codes: Array, scale: Array, weight: Array, w_scale: Array, n_copies: int, n_threads: int) -> Products:
    """codes (T, K) int8 with a scale (T,) fp32 a row, times weight (K, N) int8 with a scale (N,) a column, as bf16.

    To write the codes as the kernels' operand is not timed: in the prolog the phase before this one does.
    """
    (t, k), n = codes.shape, weight.shape[1]
    tile_plan, memory = _planned(MlaDims(2, 1, k, 4, n - 2, 2), t, "b", n_threads)
    cuts, buffers, _ = memory.prepare(tile_plan)
    n_workers, heads = cuts.n_workers, cuts.heads
    team = Team(n_workers, buffers.counters, buffers.spans, False, buffers.laps)
    y = aligned_empty((t, n), ml_dtypes.bfloat16)
    nothing = np.empty((t, 0), np.uint16)
    _write_rows(codes, buffers.q.rows, tile_plan.heads.qb.kp)

    def call_of(packed: PackedGemm) -> Callable[[], None]:
        pair = Pair(
            a=buffers.q._replace(scale=scale),
            weight=packed.as_argument(),
            y0=y.view(np.uint16),
            y1=nothing,
            sums=buffers.c_up,
            cut=PairCut(heads.mc, heads.kc, heads.walk, 1, heads.grain),
        )
        tasks = pair_tasks(DOWN, pair)

        def call() -> None:
            buffers.counters.fill(0)
            matmul_pair(n_workers, n_workers, team, tasks, pair)

        return call

    calls = [call_of(pack_gemm([weight], [w_scale], n_threads)) for _ in range(n_copies)]
    return Products(calls, y, str(tile_plan.heads.qb))


def heads_prologs(w_uk: Array, n_copies: int, n_threads: int) -> tuple[MlaWeights, list[MlaProlog]]:
    """Prologs around w_uk (N, D, C) bf16 whose other products are next to nothing, so that their heads sweep is the
    product with w_uk, and packing its operand; and their weights.
    """
    n_heads, nope, latent = w_uk.shape
    weights = replace(MlaWeights.random(MlaDims(16, n_heads, 4, latent, nope, 2), quant="none"), w_uk=w_uk)
    return weights, [MlaProlog(weights, n_threads=n_threads) for _ in range(n_copies)]


def heads_seconds(prolog: MlaProlog, inputs: Inputs, cache: PagedCache, out: PrologOutput) -> float:
    """Seconds of the heads sweep of one call."""
    _, trace = prolog.profile(*inputs, cache, out)
    return trace.seconds["heads"]


def heads_plan(plan: PrologPlan) -> str:
    """The plan of the product with w_uk, in a line."""
    return "; ".join(str(tile.heads.wuk) for tile in plan.tile_plans)
