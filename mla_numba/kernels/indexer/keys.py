"""What is done with the sums of [wk | w_proj], row by row: an indexer key, scattered into its cache, and the weights.

    k_a -> LayerNorm_indexK -> Rope_indexK -> Hadamard_indexK -> Quant_indexK -> Scatter_indexK
    w_a -> Scale_indexWeights

| array       | shape                | dtype        | notes                                                  |
|-------------|----------------------|--------------|--------------------------------------------------------|
| k_a, w_a    | (t, Di), (t, Ni)     | float32      | sums that nothing has rounded                          |
| cos, sin    | (T, R)               | uint16       | bf16 bits                                              |
| hadamard    | see `hadamard`       | uint16       |                                                        |
| k, k_scale  | flat                 | int8, uint16 | caches, see `scatter`; scales are bits of fp16         |
| weights     | (T, Ni)              | uint16       | bits of fp16: fp16(bf16(w_a) * weight_factor)          |
| rows        | (n_workers, n, ldq)  | A_BF16_DTYPE | scratch: rotated keys as operands                      |
| bits        | (n_workers, >= n * Di) | uint16       | scratch: bf16 keys before and behind the Hadamard matrix |
| y           | (n_workers, 2 * Di + 16) | float32  | scratch                                                |
"""

from __future__ import annotations

import numpy as np

from ..jit.callee import callee
from ..kinds import F32, Bits, Index
from ..launch import outlined
from ..row.layernorm import layernorm_row
from ..row.operand import bf16_operand_row
from ..row.rmsnorm_quant import quant_scales
from ..row.rope import rotate_row
from ..row.scatter import is_last, slot_base, write_codes
from ..scalars import round_bf16, round_f16, round_row, row_of, store_scale, widen, window
from ..sweeps.arguments import TokenTile
from ..sweeps.phase import Tasks, Team, share
from ..threads.tasks import block_start
from .arguments import Indexer, IndexKeys
from .hadamard import HadamardRows, multiply_rows, widen_row


@callee
def keys_of(index: Indexer, tile: TokenTile) -> IndexKeys:
    """What phase INDEX_KEY of a tile takes."""
    tokens, buffers, layer = index.tokens, index.buffers, index.layer
    return IndexKeys(
        buffers.k_a, buffers.w_a, layer, tokens.cos, tokens.sin, tokens.cache_index, index.caches, tokens.weights,
        buffers.c_hadamard, buffers.rows, buffers.bits, buffers.y, index.cuts.heads, np.int64(tile.t0),
        np.int64(tile.t),
    )  # fmt: skip


@callee
def _weights_row(sums: F32, factor: F32, weights: Bits) -> None:
    for j in range(len(weights)):
        weights[j] = round_f16(np.float32(widen(round_bf16(sums[j])) * factor))


@callee
def _rope_halves(bits: Bits, interleaved: bool, halves: F32) -> None:
    """The columns that are rotated as two halves."""
    half = len(halves) // 2
    far = window(halves, half, half)
    if interleaved:
        for j in range(half):
            halves[j], far[j] = widen(bits[2 * j]), widen(bits[2 * j + 1])
    else:
        widen_row(window(bits, 0, len(halves)), halves)


@callee
def _rotated_key(work: IndexKeys, row: Index, bits: Bits, y: F32) -> None:
    """bits (Di,) = the key of a row, normalised and rotated."""
    rope, token = work.cos.shape[1], work.t0 + row
    layernorm_row(row_of(work.k_a, row), work.layer.key_norm, y)
    round_row(y, bits)
    rotated, halves = window(y, 0, rope), window(y, rope, rope)
    _rope_halves(bits, work.layer.interleaved, halves)
    rotate_row(halves, row_of(work.cos, token), row_of(work.sin, token), rotated)
    round_row(rotated, window(bits, 0, rope))


@callee
def _write_key(work: IndexKeys, bits: Bits, slot: Index, y: F32) -> None:
    """Quant_indexK: the codes and the scale of a key to a slot."""
    values = window(y, 0, len(bits))
    widen_row(bits, values)
    s, scale = quant_scales(values, False)
    write_codes(values, s, work.caches.k, slot, np.int64(0))
    store_scale(work.caches.k_scale.flat, slot_base(work.caches.k_scale.layout, slot), scale)


@callee
def _key_task(task: Index, n_tasks: Index, worker: Index, work: IndexKeys) -> None:
    y, head_dim, kp = row_of(work.y, worker), work.k_a.shape[1], work.layer.hadamard_k.kp
    _, n_rows, ldq = work.rows.shape
    rows = window(work.rows, worker * n_rows * ldq, n_rows * ldq)
    bits = row_of(work.bits, worker)
    first = block_start(work.t, n_tasks, task)
    n = block_start(work.t, n_tasks, task + 1) - first
    for i in range(n):
        _weights_row(row_of(work.w_a, first + i), work.layer.weight_factor, row_of(work.weights, work.t0 + first + i))
        key = window(bits, i * head_dim, head_dim)
        _rotated_key(work, first + i, key, y)
        bf16_operand_row(key, 1, window(rows, i * ldq, kp))
    keys = HadamardRows(rows, np.int64(ldq), n, bits)
    multiply_rows(keys, work.layer.hadamard_k, work.cut, head_dim, row_of(work.c, worker))
    for i in range(n):
        token = work.t0 + first + i
        slot = work.cache_index[token]
        if slot >= 0 and is_last(work.cache_index, token):
            _write_key(work, window(bits, i * head_dim, head_dim), slot, y)


@outlined
def index_keys(worker: Index, team: Team, tasks: Tasks, work: IndexKeys) -> None:
    """Phase INDEX_KEY: LayerNorm_indexK to Scatter_indexK, and Scale_indexWeights."""
    share(worker, team, tasks, _key_task, work)
