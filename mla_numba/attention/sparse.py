"""Attention of the prolog's queries over chosen positions of its latent cache, or over all of them."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from ..base import checks as check
from ..base.checks import BF16, Array, usual_shape
from ..base.memory import UINT16, aligned_empty, as_bits, writable_alias
from ..base.modes import RecordOrder
from ..cache import N_SCALES, PagedCache
from ..call.bind import PrologOutput
from ..call.ranges import profiler_range
from ..kernels import max_threads
from ..kernels.attention.arguments import Caches, Lists, Queries, Round, Work
from ..kernels.attention.attend import attend
from ..kernels.attention.slots import find_slots
from ..kernels.launch import plain
from ..kernels.sweeps.arguments import Slots
from .pages import Pages, recent_pages
from .records import check_records, record_views
from .rounds import Memory, Sizes, plan_of

__all__ = ["sparse_attention"]

_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_NO_SLOTS = np.zeros((0, 1), np.int64)
_NO_SPANS = np.zeros((0, 0, 0), np.int64)
_LARGEST = float(np.finfo(np.float32).max)
_KEPT = "attention"  # by what name a cache keeps what is made of it here
_NO_SCALES = Slots(np.zeros(0, np.float32), np.ones(5, np.int64))


class _Cache(NamedTuple):
    """A cache as a call needs it: what kernels take, its blocks, and the widths of a slot's latent and rope part.

    views: `Caches`, as kernels take them.
    """

    views: Any
    arrays: dict[str, Array]
    n_blocks: int
    block_size: int
    latent: int
    rope: int


def sparse_attention(
    out: PrologOutput,
    cache: PagedCache | Array,
    index: Array | None,
    block_table: Array,
    act_seq: Array,
    *,
    softmax_scale: float,
    query_start_loc: Array | None = None,
    record_order: RecordOrder | None = None,
    flash_tile: int | None = None,
    latent: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Attention of T tokens over the positions that an index lists, or over all that a token sees.

    A key is the latent of its position, dequantised and rounded to bf16, and its rope part; a value is the latent
    alone. So the result is latent, too: the model multiplies it by w_uv, head by head. A token's row of `index` ends at
    its first -1, and of n keys that a token sees no more than the first n entries are read. Positions are taken in the
    order of their list. A token with none gets zeros.

    Bits are those of `mla_numba.reference.sparse_attention_reference`, whatever the threads and the instruction set.
    Several threads may call it at once.

    Args:
        out: The queries, as `MlaProlog` returns them: query_nope (T, N, C) and query_rope (T, N, R) bf16. Tokens of a
            sequence follow one another.
        cache: The keys, those of this call's tokens too: a `PagedCache` of int8 codes or bf16, or records of 656 bytes
            (blocks, block_size, 1, 656) uint8, which are read in place.
        index: Positions (T, K) int32 or int64, as `lightning_index` gives them; None for all that a token sees.
        block_table: Blocks of each sequence (B, blocks) int32 or int64; -1 for none.
        act_seq: Keys of each sequence (B,) int32 or int64, those of this call's tokens included.
        softmax_scale: What scores are multiplied with; `RopeTable` has that of a model.
        query_start_loc: The first token of each sequence, and T: (B + 1,) int32 or int64. Without it each has T / B.
        record_order: "cann" or "flashmla" with records, see `layouts.to_records`; else None.
        flash_tile: Positions a tile, at least 1, where tiles are merged as flash operators do: weights are rounded
            before they are divided, which gives other bits. None: they are divided first.
        latent: An array (T, N, C) bf16 to write to; by default a new one.
        n_threads: At most Numba's thread count; the default is that of `MlaProlog`.

    Returns:
        Attended latents (T, N, C) bf16: `latent`, or a new array.

    Raises:
        TypeError: An argument, named in the message, is of another type or dtype; nothing is written.
        ValueError: An argument, named in the message, has another shape, layout or value, memory that overlaps with
            `latent`, a position that its token does not see, or one that lies in no block; nothing is written.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> cache = mla.PagedCache.allocate(dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, _ = random_inputs(dims, t=3, seed=0, capacity=32)
        >>> out = mla.MlaProlog(mla.MlaWeights.random(dims))(x, cos, sin, np.array([16, 17, 18]), cache)
        >>> table, act_seq = np.array([[1]]), np.array([3])  # a sequence whose 3 keys lie in block 1
        >>> index = np.array([[0, -1], [1, 0], [0, 2]], np.int32)
        >>> mla.sparse_attention(out, cache, index, table, act_seq, softmax_scale=0.125).shape
        (3, 4, 64)
    """
    keys = _check_cache(cache, record_order)
    queries = _check_queries(out, keys)
    t, n_heads, width = queries.nope.shape
    scale = _check_scale(softmax_scale)
    tile = 0 if flash_tile is None else check.check_int("flash_tile", flash_tile, 1)
    n_threads = check.check_threads("n_threads", n_threads, max_threads())
    n_blocks, block_size = keys.n_blocks, max(keys.block_size, 1)
    pages, _ = recent_pages(t, block_table, act_seq, query_start_loc, block_size=block_size, n_blocks=n_blocks)
    lists, counts, n = _check_lists(index, pages)
    if latent is not None:
        if usual_shape(latent, BF16) != (t, n_heads, width):
            check.check_array("latent", latent, (BF16,), (t, n_heads, width))
            check.check_writable("latent", latent)
        read = keys.arrays | {"out.query_nope": out.query_nope, "out.query_rope": out.query_rope}
        asked = {"index": index, "block_table": block_table, "act_seq": act_seq, "query_start_loc": query_start_loc}
        check.check_disjoint({"latent": latent}, read | {name: a for name, a in asked.items() if a is not None})
    else:
        latent = aligned_empty((t, n_heads, width), BF16)
    if latent.size:
        call = _Call(queries, counts, keys.views, lists, scale, latent.view(UINT16))
        _run(call, Sizes(t, n_heads, width, keys.rope, n, _useful(tile, n)), n_threads)
    return latent


def _useful(tile: int, n: int) -> int:
    """A tile of no more than all positions of a token."""
    return min(tile, max(n, 1))


def _check_cache(cache: object, record_order: object) -> _Cache:
    if isinstance(cache, np.ndarray):
        order = check_records(cache, record_order)
        views = record_views(writable_alias(cache), order)
        widths = int(views.kv.layout[2]), int(views.kr.layout[2])
        return _Cache(plain(views), {"cache": cache}, cache.shape[0], cache.shape[1], *widths)
    if not isinstance(cache, PagedCache):
        raise TypeError(f"cache: expected PagedCache or a NumPy array of records, got {type(cache).__name__}")
    if record_order is not None:
        raise ValueError(f"record_order: expected None with a PagedCache, got {record_order!r}")
    kept: _Cache | None = cache.kept.get(_KEPT)
    if kept is None:
        kept = cache.kept[_KEPT] = _views_of(cache)
    return kept


def _views_of(cache: PagedCache) -> _Cache:
    sizes, block_size = cache.sizes, int(cache.views["kv_cache"].layout[0])
    held = [Slots(writable_alias(view.flat), view.layout) for view in cache.views.values()]
    if not sizes.quantized:
        held = [*held[:2], _NO_SCALES]
    n_blocks = sizes.capacity // max(block_size, 1)
    return _Cache(plain(Caches(*held)), cache.arrays(), n_blocks, block_size, sizes.kv_width, sizes.kr_width)


def _check_queries(out: object, keys: _Cache) -> Queries:
    if not isinstance(out, PrologOutput):
        raise TypeError(f"out: expected PrologOutput, got {type(out).__name__}")
    nope, rope = out.query_nope, out.query_rope
    shape = usual_shape(nope, BF16) or ()
    if len(shape) == 3 and shape[1] and shape[2] == keys.latent and usual_shape(rope, BF16) == (*shape[:2], keys.rope):
        return Queries(nope.view(UINT16), rope.view(UINT16))
    check.check_array("out.query_nope", nope, (BF16,), (None, None, keys.latent))
    t, n_heads, _ = nope.shape
    if n_heads == 0:
        raise ValueError(f"out.query_nope: expected at least one head, got shape {nope.shape}")
    check.check_array("out.query_rope", rope, (BF16,), (t, n_heads, keys.rope))
    return Queries(as_bits(nope), as_bits(rope))


def _check_scale(softmax_scale: object) -> np.float32:
    value = check.check_number("softmax_scale", softmax_scale)
    if not abs(value) <= _LARGEST:
        raise ValueError(f"softmax_scale: expected a number that is finite in float32, got {value}")
    return np.float32(value)


def _check_lists(index: object, pages: Pages) -> tuple[Lists, Array, int]:
    """What each token attends to, to how many, and the most of these: positions that their token sees, in the cache."""
    t, row_bits = len(pages.limits), (pages.block_size - 1).bit_length()
    if index is None:
        pages.check_mapped()
        lists = Lists(_NO_SLOTS, row_bits, True, pages.sequences, pages.block_table, pages.block_size)
        return lists, pages.limits, int(pages.limits.max(initial=0))
    shape = usual_shape(index, _INT32) or usual_shape(index, _INT64)
    if shape is None or len(shape) != 2 or shape[0] != t:
        given = check.expect_array("index", index, (_INT32, _INT64))
        check.check_shape("index", given, (t, None))
        index = np.array(given, np.int64, order="C", subok=False)
        shape = index.shape
    slots, counts = np.empty(shape, _INT64), np.empty(t, _INT64)
    arrays, sizes = (slots, pages.sequences, pages.block_table), (row_bits, pages.block_size)
    most = find_slots(index, arrays, pages.limits, pages.n_blocks, sizes, counts)
    if most < 0:
        token, place = divmod(-1 - most, shape[1])
        _refuse(pages, token, place, int(slots[token, place]))
    return Lists(slots, row_bits, False, pages.sequences, pages.block_table, pages.block_size), counts, most


def _refuse(pages: Pages, token: int, place: int, position: int) -> None:
    limit, name = int(pages.limits[token]), f"index[{token}, {place}]"
    if position >= limit:
        raise ValueError(f"{name}: expected a position below {limit}, the keys that the token sees, got {position}")
    row, at = int(pages.sequences[token]), position // pages.block_size
    block = pages.block_table[row, at] if at < pages.block_table.shape[1] else "no entry"
    raise ValueError(
        f"block_table[{row}, {at}]: expected a block from 0 to below {pages.n_blocks}, since {name} is {position}, "
        f"got {block}"
    )


class _Call(NamedTuple):
    """A checked call as the kernels take it: see `Round` and `Work`."""

    queries: Queries
    counts: Array
    caches: Any
    lists: Lists
    scale: np.float32
    latent: Array


_KEPT_BYTES = 64 << 20
_memory: deque[Memory] = deque(maxlen=8)


def _run(call: _Call, sizes: Sizes, n_threads: int) -> None:
    plan = plan_of(sizes, n_threads)
    memory = _take_memory(plan.n_bytes)
    queries, lists, group = plain(call.queries), plain(call.lists), max(sizes.latent // N_SCALES, 1)
    with profiler_range(f"sparse attention of {sizes.t} tokens"):
        for n_workers, cut, scratch, counters, _ in memory.prepare(plan):
            counters.fill(0)
            part = Round(queries, call.counts, scratch, cut, call.scale)
            attend(n_workers, n_workers, Work(part, call.caches, lists, group, call.latent), _NO_SPANS)
    if memory.nbytes <= _KEPT_BYTES:
        _memory.append(memory)


def _take_memory(n_bytes: int) -> Memory:
    """Memory that no other thread holds: kept from an earlier call, or new if that is too small."""
    try:
        memory = _memory.pop()
    except IndexError:
        return Memory(n_bytes)
    return memory if memory.nbytes >= n_bytes else Memory(n_bytes)
