"""Single products by mla_numba's kernels. All that the suite knows of the kernels' own faces is in this file.

Each function gives calls, one a copy of the packed weights, the bf16 array that they write, and the plan in a line.
Letters: T tokens, K and N rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mla_numba import MlaDims, MlaProlog, MlaWeights, PagedCache, PrologOutput
from mla_numba.cli_run import time_sweeps
from mla_numba.engine import MICRO_TILES, this_machine
from mla_numba.inputs import Inputs
from mla_numba.kernels import gemm, packing, rmsnorm_quant
from mla_numba.memory import aligned_empty
from mla_numba.packed import PackedGemm, pack_gemm
from mla_numba.workspace import Memory, TileBuffers
from tiling import GemmPlan, PrologPlan, TilePlan, plan_prolog

__all__ = ["Products", "down_product", "heads_plan", "heads_prologs", "heads_seconds", "key_product", "up_product"]

Array = np.ndarray[Any, Any]


class Products(NamedTuple):
    """Calls on the same operand, one a copy of the weight, all into `y`."""

    calls: list[Callable[[], None]]
    y: Array
    plan: str


def _planned(dims: MlaDims, t: int, quant: str, n_threads: int) -> tuple[TilePlan, TileBuffers]:
    plan = plan_prolog(dims, t, None, this_machine(), micro=MICRO_TILES, quant=quant, n_threads=n_threads)
    (tile,) = plan.tile_plans  # no number of tokens of the suite is cut
    return tile, Memory(plan).buffers(tile)


def _launch(
    tile: TilePlan,
    buffers: TileBuffers,
    a: Array,
    weight: PackedGemm,
    row_scale: Array,
    y: Sequence[Array],
    plans: Sequence[GemmPlan],
    grain: int,
) -> None:
    first = plans[0]
    c = buffers.c_i32 if first.dtype == "int8" else buffers.c_f32
    y0, y1 = (part.view(np.uint16) for part in y)
    gemm.matmul_pair(
        tile.n_workers, a, weight.kp, weight.panels, weight.offset, row_scale, weight.col_scale, weight.n_parts,
        buffers.least, weight.least, y0, y1, c, buffers.zeroed_counters(), first.mc, first.kc, first.walk,
        plans[1].walk if len(plans) > 1 else 1, grain, tile.n_workers,
    )  # fmt: skip


def down_product(x: Array, w_dq: Array, w_dkv_kr: Array, n_copies: int, n_threads: int) -> Products:
    """x (T, K) bf16 times [w_dq | w_dkv_kr] (K, N), packing x included; w_dq is summed in halves of K.

    `y` is one array (T * N,): first (T, w_dq's columns), then (T, w_dkv_kr's).
    """
    t, hidden = x.shape
    dims = MlaDims(hidden, 1, w_dq.shape[1], w_dkv_kr.shape[1] - 2, 2, 2)
    tile, buffers = _planned(dims, t, "none", n_threads)
    y = aligned_empty(t * (w_dq.shape[1] + w_dkv_kr.shape[1]), x.dtype)
    cut = t * w_dq.shape[1]
    parts = (y[:cut].reshape(t, -1), y[cut:].reshape(t, -1))
    plans = (tile.down.qa, tile.down.kva)

    def call_of(weight: PackedGemm) -> Callable[[], None]:
        def call() -> None:
            bits = x.view(np.uint16)
            packing.pack_rows_bf16(tile.n_row_workers, bits, 2, plans[0].mc, buffers.x_pack, buffers.least)
            _launch(tile, buffers, buffers.x_pack, weight, buffers.ones, parts, plans, tile.down.grain)

        return call

    packed = [pack_gemm([w_dq, w_dkv_kr], [None, None], n_threads, n_parts=2) for _ in range(n_copies)]
    return Products([call_of(weight) for weight in packed], y, f"{plans[0]}; {plans[1]}")


def key_product(x: Array, w_dkv_kr: Array, n_copies: int, n_threads: int) -> Products:
    """x (T, K) bf16 times w_dkv_kr (K, N) alone, packing x included."""
    t, hidden = x.shape
    tile, buffers = _planned(MlaDims(hidden, 1, 2, w_dkv_kr.shape[1] - 2, 2, 2), t, "none", n_threads)
    y = aligned_empty((t, w_dkv_kr.shape[1]), x.dtype)
    parts = (y, np.empty((t, 0), x.dtype))

    def call_of(weight: PackedGemm) -> Callable[[], None]:
        def call() -> None:
            bits = x.view(np.uint16)
            packing.pack_rows_bf16(tile.n_row_workers, bits, 1, tile.down.kva.mc, buffers.x_pack, buffers.least)
            _launch(tile, buffers, buffers.x_pack, weight, buffers.ones, parts, [tile.down.kva], tile.down.grain)

        return call

    packed = [pack_gemm([w_dkv_kr], [None], n_threads) for _ in range(n_copies)]
    return Products([call_of(weight) for weight in packed], y, str(tile.down.kva))


def up_product(x: Array, weight: Array, w_scale: Array, n_copies: int, n_threads: int) -> tuple[Products, Array, Array]:
    """x (T, K) bf16, quantised a row beforehand, times weight (K, N) int8 with a scale (N,) a column; and with it the
    codes (T, K) int8 and their scales (T,) fp32.

    Packing the codes is not timed: in the prolog the sweep before this one writes them packed.
    """
    (t, k), n = x.shape, weight.shape[1]
    tile, buffers = _planned(MlaDims(2, 1, k, 4, n - 2, 2), t, "b", n_threads)
    plan = tile.heads.qb
    y = aligned_empty((t, n), x.dtype)
    parts = (y, np.empty((t, 0), x.dtype))
    codes, scale = np.empty((t, k), np.int8), np.empty(t, np.float32)
    packed = [pack_gemm([weight], [w_scale], n_threads) for _ in range(n_copies)]
    n_row = tile.n_row_workers
    rmsnorm_quant.quant_x(
        n_row, x.view(np.uint16), plan.mc, packed[0].kp, buffers.y, codes, scale, buffers.a_up, n_row
    )  # fmt: skip

    def call_of(weight: PackedGemm) -> Callable[[], None]:
        return lambda: _launch(tile, buffers, buffers.a_up, weight, scale, parts, [plan], tile.heads.grain)

    return Products([call_of(weight) for weight in packed], y, str(plan)), codes, scale


def heads_prologs(w_uk: Array, n_copies: int, n_threads: int) -> tuple[MlaWeights, list[MlaProlog]]:
    """Prologs around w_uk (N, D, C) bf16 whose other products are next to nothing, so that their heads sweep is the
    product with w_uk, and packing its operand; and their weights.
    """
    n_heads, nope, latent = w_uk.shape
    weights = MlaWeights.random(MlaDims(16, n_heads, 4, latent, nope, 2), quant="none")
    weights.w_uk = w_uk
    return weights, [MlaProlog(weights, n_threads=n_threads) for _ in range(n_copies)]


def heads_seconds(prolog: MlaProlog, inputs: Inputs, cache: PagedCache, out: PrologOutput) -> float:
    """Seconds of the heads sweep of one call."""
    return next(times.times_s[0] for times in time_sweeps(prolog, inputs, cache, out, 1) if times.name == "heads")


def heads_plan(plan: PrologPlan) -> str:
    """The plan of the product with w_uk, in a line."""
    return "; ".join(str(tile.heads.wuk) for tile in plan.tile_plans)
