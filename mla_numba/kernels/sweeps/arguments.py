"""What a call hands to the sweeps, thing by thing.

Arrays are C-contiguous and bf16 is uint16 bits; t is the tile's tokens, T the call's, t0 the tile's first one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..kinds import F32, Bits, Index, Int32, Int64, Values
from ..row.rmsnorm_quant import Norm
from ..row.scatter import Slots
from ..threads.groups import ONE_GROUP

__all__ = [
    "Activations", "Buffers", "Caches", "Cuts", "HeadsCut", "Layer", "Norm", "PairCut", "Slots", "TokenTile", "Tokens",
    "Weight",
]  # fmt: skip


class Tokens(NamedTuple):
    """The caller's arrays: x (T, H), cos and sin (T, R), cache_index (T,) int64; then what is written.

    query_nope (T, N, C), query_rope (T, N, R), q_norm (T, Rq) int8 or uint16, q_norm_scale (T,) float32, or empty.
    """

    x: Bits
    cos: Bits
    sin: Bits
    cache_index: Int64
    query_nope: Bits
    query_rope: Bits
    q_norm: Values
    q_norm_scale: F32


class Caches(NamedTuple):
    """The cache's arrays; k_scale is empty where kv is bf16."""

    kv: Slots
    kr: Slots
    k_scale: Slots


class Weight(NamedTuple):
    """A packed weight: the B of a product, see `gemm`; `min_magnitude` is that of a bf16 one, see `scalars`."""

    panels: Values
    offset: Int32
    col_scale: F32
    kp: Index
    n_parts: Index
    min_magnitude: Index


class Layer(NamedTuple):
    """What a layer's weights are: `down` is [w_dq | w_dkv_kr], `up` w_uq_qr by heads, `uk` w_uk; the norms' vectors.

    cann: whether rows are quantised by the numerics of CANN, see `rmsnorm_quant`.
    """

    down: Weight
    up: Weight
    uk: Weight
    query_norm: Norm
    key_norm: Norm
    qk_nope_head_dim: Index
    cann: bool


class Activations(NamedTuple):
    """The A of a product: rows (t, lda), see `operand`; scale (t,) float32 and min_magnitude (t,) int32 by row.

    Scales are read where rows are int8 codes, magnitudes where they are bf16.
    """

    rows: Values
    scale: F32
    min_magnitude: Int32


class Buffers(NamedTuple):
    """Working memory.

    x and q are activations; q_a (t, Rq), kv_a (t, C + R). A row a worker: c_down, c_up and c_uk, views of the same
    accumulators, q_head (at least mc rows, ldq) and y float32. Where a sweep has legs, c_down or q_head has a row a
    relay. counters: see `tasks` and `relays`. spans (n_workers, phases, 3) int64: when a worker came to a phase and
    when it had done its last task there, in ns, and how many it did; of a `traced` tile. laps (phases, tasks,
    LAP_FIELDS) int64: of each task of DOWN and HEADS its worker, when it began and ended, and when it was done with
    each of its products but the last (`phase.mark`); NO_LAPS where nobody wants to know.
    """

    x: Activations
    q: Activations
    q_a: Bits
    kv_a: Bits
    c_down: Values
    c_up: Values
    c_uk: F32
    q_head: Values
    y: F32
    counters: Int64
    spans: Int64
    laps: Any


class PairCut(NamedTuple):
    """How two products of the same A fall into tasks: rows and k of a block, panels of a walk, tasks drawn at once.

    With more than one of `legs`, that many tasks take a walk's k one after the other, drawn by `groups`: see
    `threads.relays` and `threads.groups`.
    """

    mc: Index
    kc: Index
    walk0: Index
    walk1: Index
    grain: Index
    legs: Index = 1
    groups: Int64 = ONE_GROUP


class HeadsCut(NamedTuple):
    """How the heads fall into tasks: rows of a block, then k and panels of both products, and rows of the second.

    With more than one of `legs`, that many tasks take a head one after the other: leg_panels of its first product each
    but the last, which takes the rest and all that follows; drawn by `groups`. See `threads.relays`
    and `threads.groups`.
    """

    mc: Index
    kc: Index
    walk: Index
    mc_uk: Index
    kc_uk: Index
    walk_uk: Index
    grain: Index
    legs: Index = 1
    leg_panels: Index = 0
    groups: Int64 = ONE_GROUP


class Cuts(NamedTuple):
    """How a tile's work is cut, see `tiling.TilePlan`: workers, rows a task of the row phases, and both products."""

    n_workers: Index
    rows_x: Index
    rows_q: Index
    rows_k: Index
    down: PairCut
    heads: HeadsCut


class TokenTile(NamedTuple):
    """Tokens t0..t0+t, from phase `first` up to `last`, see `phase.PHASES`.

    Spans are written where it is `traced`. A tile that begins with QUERY finds q_a and kv_a in the buffers; one that
    begins elsewhere goes on where another launch ended, with counters as that one left them.
    """

    t0: Index
    t: Index
    first: Index
    last: Index
    traced: bool
