"""A call's arguments: checked, and held as the kernels take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np

from ..base import checks as check
from ..base.checks import (
    BF16,
    FP32,
    INT8,
    Array,
)
from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..base.memory import UINT16, as_bits
from ..base.modes import QuantMode
from ..base.short_repr import arrays_text, dims_text, short_repr
from ..cache import PagedCache
from ..indexer_cache import IndexerCache
from ..kernels.indexer.arguments import IndexCaches, IndexTokens
from ..kernels.sweeps.arguments import Caches, Slots, Tokens
from .indexer import IndexerOutput

__all__ = [
    "BoundCall",
    "BoundIndexer",
    "CallInputs",
    "IndexedOutput",
    "PrologOutput",
    "check_inputs",
    "hold",
    "writable_outputs",
]

_NO_SCALES = np.zeros(0, np.float32)
_NO_SLOTS = Slots(_NO_SCALES, np.zeros(5, np.int64))


class PrologOutput(NamedTuple):
    """What attention and the indexer take from a call: a tuple of arrays. `MlaProlog` has an example.

    | field        | shape     | dtype                                       |
    |--------------|-----------|---------------------------------------------|
    | query_nope   | (T, N, C) | bf16                                        |
    | query_rope   | (T, N, R) | bf16                                        |
    | q_norm       | (T, Rq)   | int8, bf16 when w_uq_qr is not quantised    |
    | q_norm_scale | (T, 1)    | float32, None when w_uq_qr is not quantised |

    Of a prolog with an indexer it is an `IndexedOutput`.
    """

    query_nope: Array
    query_rope: Array
    q_norm: Array
    q_norm_scale: Array | None

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))

    @property
    def indexer(self) -> IndexerOutput | None:
        """What the lightning index takes; None where the prolog has no indexer. It is no part of the tuple."""
        return None


class IndexedOutput(PrologOutput):
    """What a prolog with an indexer returns: the tuple of four arrays of `PrologOutput`, and beside it `indexer`.

    | attribute                                      | is                                                   |
    |------------------------------------------------|------------------------------------------------------|
    | query_nope, query_rope, q_norm, q_norm_scale   | as of `PrologOutput`; these four are the tuple       |
    | indexer                                        | an `IndexerOutput`: what the lightning index takes   |

    So code that takes a prolog's output apart takes this apart, too.

    Args:
        arrays: The four arrays.
        indexer: What the lightning index takes.

    Examples:
        >>> import mla_numba as mla
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> indexer = mla.IndexerWeights.random(dims, n_heads=8, head_dim=64)
        >>> out = mla.MlaProlog(mla.MlaWeights.random(dims), indexer=indexer).allocate_output(3)
        >>> len(out), out.indexer.query.shape
        (4, (3, 8, 64))
    """

    _indexer: IndexerOutput

    def __new__(cls, arrays: Iterable[Array | None], indexer: IndexerOutput) -> Self:
        """The tuple of the arrays, with the indexer's beside it."""
        made = cls._make(arrays)
        made._indexer = indexer
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self._indexer

    def __repr__(self) -> str:
        arrays = self._asdict() | {f"indexer.{name}": array for name, array in self._indexer._asdict().items()}
        return short_repr(self, arrays_text(arrays))

    @property
    def indexer(self) -> IndexerOutput:
        """What the lightning index takes."""
        return self._indexer

    def _replace(self, **changes: Any) -> Self:
        """The same with other arrays."""
        return type(self)(PrologOutput(*self)._replace(**changes), self._indexer)


class BoundIndexer(NamedTuple):
    """The part of a bound call that its indexer takes."""

    tokens: IndexTokens
    caches: IndexCaches
    dims: IndexerDims


class BoundCall(NamedTuple):
    """A checked call, made by `MlaProlog.bind`: `out` are its outputs, the other fields are for `MlaProlog.run`.
    `indexer` is None for a prolog without one.

    The kernels trust all of them, so do not make one yourself. It cannot be copied or pickled, which raises
    `TypeError`: its arrays are views of the caller's.

    `MlaProlog.bind` has an example.
    """

    out: PrologOutput
    tokens: Tokens
    caches: Caches
    cache_index: Array | None
    capacity: int
    dims: MlaDims
    quant: QuantMode
    indexer: BoundIndexer | None = None

    def __repr__(self) -> str:
        tokens, slots = f"{len(self.tokens.x)} tokens", f"{self.capacity} slots"
        return short_repr(self, tokens, dims_text(self.dims), f"quant={self.quant!r}", slots)

    def __reduce__(self) -> NoReturn:
        raise TypeError("call: expected to stay in its process, as views of the arrays it was bound to, got a copy")

    def check_fits(self, dims: MlaDims, quant: QuantMode, indexer: IndexerDims | None = None) -> None:
        """Raises unless a prolog of these dimensions and this mode bound it.

        Args:
            dims: Dimensions of the prolog that is to run it.
            quant: Its mode.
            indexer: Dimensions of its indexer, if it has one.

        Raises:
            ValueError: A prolog of other dimensions or another mode bound it, or one with another indexer.
        """
        if self.dims is not dims and self.dims != dims:
            raise ValueError(f"call: expected one that a prolog of {dims} bound, got one of {self.dims}")
        if self.quant != quant:
            raise ValueError(f"call: expected one that a prolog of quant {quant!r} bound, got one of {self.quant!r}")
        bound = None if self.indexer is None else self.indexer.dims
        if bound != indexer:
            raise ValueError(f"call: expected one that a prolog with indexer {indexer} bound, got one with {bound}")

    def tokens_now(self) -> Tokens:
        """The tokens with the slots that cache_index holds now, copied and then checked.

        Raises:
            ValueError: A slot is neither -1 nor within the cache.
        """
        if self.cache_index is None:
            return self.tokens
        x, cos, sin, slots, *written = self.tokens
        return Tokens(x, cos, sin, check.check_slots(self.cache_index, len(slots), self.capacity), *written)


class CallInputs(NamedTuple):
    """What a call reads, and the caches that it writes: the arguments of `MlaProlog`."""

    x: Array
    cos: Array
    sin: Array
    cache_index: Array | None
    cache: PagedCache
    indexer_cache: IndexerCache | None = None


def check_inputs(given: CallInputs, dims: MlaDims, quant: QuantMode) -> Array:
    """Raises for an argument that a prolog of these dimensions and this mode does not take; the slots, a copy."""
    x, cos, sin, cache_index, cache, _ = given
    check.check_array("x", x, (BF16,), (None, dims.hidden_size))
    t = x.shape[0]
    check.check_array("cos", cos, (BF16,), (t, dims.qk_rope_head_dim))
    check.check_array("sin", sin, (BF16,), (t, dims.qk_rope_head_dim))
    if not isinstance(cache, PagedCache):
        raise TypeError(f"cache: expected PagedCache, got {type(cache).__name__}")
    sizes, quantized = cache.sizes, "b" in quant
    if sizes.quantized != quantized:
        kinds = ("bfloat16", "int8")
        raise TypeError(
            f"kv_cache: expected dtype {kinds[quantized]} for quant {quant!r}, got {kinds[sizes.quantized]}"
        )
    for name, width, wanted in (
        ("kv_cache", sizes.kv_width, dims.kv_lora_rank),
        ("kr_cache", sizes.kr_width, dims.qk_rope_head_dim),
    ):
        if width != wanted:
            raise ValueError(f"{name}: expected rows of {wanted} elements, got {width}")
    for name, array in cache.arrays().items():
        check.check_writable(name, array)
    return _slots(cache, cache_index, t)


def writable_outputs(out: PrologOutput, t: int, dims: MlaDims, quant: QuantMode) -> dict[str, Array]:
    """The outputs by name. Raises for one that does not fit T tokens, the dimensions and the mode."""
    if not isinstance(out, PrologOutput):
        raise TypeError(f"out: expected PrologOutput, got {type(out).__name__}")
    quantized = "b" in quant
    wanted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "query_nope": (BF16, (t, dims.num_attention_heads, dims.kv_lora_rank)),
        "query_rope": (BF16, (t, dims.num_attention_heads, dims.qk_rope_head_dim)),
        "q_norm": (INT8 if quantized else BF16, (t, dims.q_lora_rank)),
    }
    if quantized:
        wanted["q_norm_scale"] = (FP32, (t, 1))
    elif out.q_norm_scale is not None:
        raise ValueError("out.q_norm_scale: expected None where w_uq_qr is not quantised, got an array")
    arrays = {}
    for name, (dtype, shape) in wanted.items():
        arrays[f"out.{name}"] = check.check_array(f"out.{name}", getattr(out, name), (dtype,), shape)
        check.check_writable(f"out.{name}", arrays[f"out.{name}"])
    return arrays


def hold(given: CallInputs, slots: Array, out: PrologOutput, dims: MlaDims, quant: QuantMode) -> BoundCall:
    """The checked arguments as views: whatever is done to an array's own shape or dtype later, they stay as checked."""
    views, quantized = given.cache.views, "b" in quant
    kv, kr = views["kv_cache"], views["kr_cache"]
    k_scale = views["k_scale_cache"] if quantized else None
    return BoundCall(
        out,
        Tokens(
            x=as_bits(given.x),
            cos=as_bits(given.cos),
            sin=as_bits(given.sin),
            cache_index=slots,
            query_nope=out.query_nope.view(UINT16),
            query_rope=out.query_rope.view(UINT16),
            q_norm=out.q_norm.view(INT8 if quantized else UINT16),
            q_norm_scale=_NO_SCALES if out.q_norm_scale is None else out.q_norm_scale.reshape(-1),
        ),
        Caches(
            Slots(kv.flat, kv.layout),
            Slots(kr.flat, kr.layout),
            Slots(k_scale.flat, k_scale.layout) if k_scale else _NO_SLOTS,
        ),
        given.cache_index,
        given.cache.sizes.capacity,
        dims,
        quant,
    )


def _slots(cache: PagedCache, cache_index: Array | None, t: int) -> Array:
    """The slot of each of t tokens, int64 (t,)."""
    mode, capacity = cache.cache_mode, cache.sizes.capacity
    if cache.paged:
        if cache_index is None:
            raise TypeError(f"cache_index: expected a NumPy array with a {mode} cache, got NoneType")
        return check.check_slots(cache_index, t, capacity)
    if cache_index is not None:
        kind = type(cache_index).__name__
        raise ValueError(f"cache_index: expected None with a {mode} cache, where token t writes row t, got {kind}")
    if t > capacity:
        raise ValueError(f"x: expected at most {capacity} tokens, the rows of the {mode} cache, got {t}")
    return np.arange(t, dtype=np.int64)
