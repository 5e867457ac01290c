"""What a call hands to the indexer's phases, thing by thing.

Arrays are C-contiguous; bf16 and fp16 are uint16 bits. t is the tile's tokens, T the call's, t0 the tile's first one.
Ni heads of Di columns, of which the first R are rotated.
"""

from __future__ import annotations

from typing import NamedTuple

from ..kinds import F32, Bits, Codes, Index, Int64, Real, Values
from ..row.layernorm import LayerNorm
from ..row.scatter import Slots
from ..sweeps.arguments import Activations, Cuts, HeadsCut, Weight

__all__ = [
    "IndexBuffers", "IndexCaches", "IndexKeys", "IndexLayer", "IndexPacking", "IndexQueries", "IndexTokens", "Indexer",
]  # fmt: skip


class IndexTokens(NamedTuple):
    """The caller's arrays: x (T, H), q_norm (T, Rq) int8 and its scale (T,), cos and sin (T, R), cache_index (T,).

    Then what is written: query (T, Ni, Di) int8, query_scale (T * Ni,) and weights (T, Ni), bits of fp16.
    """

    x: Bits
    q_norm: Codes
    q_norm_scale: F32
    cos: Bits
    sin: Bits
    cache_index: Int64
    query: Codes
    query_scale: Bits
    weights: Bits


class IndexCaches(NamedTuple):
    """The cache's arrays: int8 codes of Di a slot, and one scale a slot, bits of fp16."""

    k: Slots
    k_scale: Slots


class IndexLayer(NamedTuple):
    """A layer's weights: `down` is [wk | w_proj], `up` w_qb by heads; both Hadamard matrices; the keys' norm.

    weight_factor: 1 / (sqrt(Ni) * sqrt(Di)). interleaved: whether the columns to be rotated come as pairs side by side,
    which `up` has put apart already.
    """

    down: Weight
    up: Weight
    hadamard_q: Weight
    hadamard_k: Weight
    key_norm: LayerNorm
    weight_factor: Real
    interleaved: bool


class IndexBuffers(NamedTuple):
    """Working memory.

    x and q are activations; k_a (t, Di) and w_a (t, Ni) float32 sums. A row a worker: c_down, c_up and c_hadamard,
    views of the same accumulators, rows (n, ldq) as operands of the products with a Hadamard matrix, bits of bf16
    (>= n * Di,), y float32. counters and spans: see `sweeps.arguments.Buffers`.
    """

    x: Activations
    q: Activations
    k_a: F32
    w_a: F32
    c_down: F32
    c_up: Values
    c_hadamard: F32
    rows: Values
    bits: Bits
    y: F32
    counters: Int64
    spans: Int64


class Indexer(NamedTuple):
    """All that the indexer's phases of a tile take; `cuts` as those of the prolog, where uk is the Hadamard matrix.

    packs_x and packs_q: whether x and q_norm have to be made activations, or are those of the prolog.
    """

    tokens: IndexTokens
    caches: IndexCaches
    layer: IndexLayer
    buffers: IndexBuffers
    cuts: Cuts
    packs_x: bool
    packs_q: bool


class IndexPacking(NamedTuple):
    """Rows t0..t0+t of x and of q_norm, which of them become activations, and where: see `packing`."""

    x: Bits
    q_norm: Codes
    a_x: Activations
    a_q: Activations
    kp_x: Index
    kp_q: Index
    packs_x: bool
    packs_q: bool
    t0: Index
    t: Index


class IndexKeys(NamedTuple):
    """The sums that keys and weights are made of, and where these go: see `keys`."""

    k_a: F32
    w_a: F32
    layer: IndexLayer
    cos: Bits
    sin: Bits
    cache_index: Int64
    caches: IndexCaches
    weights: Bits
    c: F32
    rows: Values
    bits: Bits
    y: F32
    cut: HeadsCut
    t0: Index
    t: Index


class IndexQueries(NamedTuple):
    """What the heads of a tile's tokens are computed from, and where to: see `queries`."""

    a: Activations
    up: Weight
    hadamard: Weight
    cos: Bits
    sin: Bits
    query: Codes
    query_scale: Bits
    c_up: Values
    c_hadamard: F32
    rows: Values
    bits: Bits
    y: F32
    cut: HeadsCut
    t0: Index
    t: Index
