"""The prolog for PyTorch: CPU tensors in and out, over their own memory (extra `torch`).

`torch.compile` takes a `TorchProlog` whole: it is one operator to it, see `operator`. There is no backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

from torch import Tensor

from ...base.checks import expect_type
from ...base.modes import DownWay
from ...base.short_repr import arrays_text, dims_text, fields_text, indexer_dims_text, short_repr, size_text
from ...distributed import ShardedProlog
from ...prolog import MlaProlog, PrologChoices
from ...weights.indexer import IndexerWeights
from ...weights.packed import PackedWeights
from ...weights.packed_indexer import PackedIndexer
from ...weights.plain import MlaWeights
from .cache import TorchCache, TorchKeyRows
from .indexed_operator import mla_prolog_indexed, mla_prolog_indexed_out
from .indexer import TorchIndexerCache, TorchIndexerOutput
from .layer_module import LayerModule
from .operator import mla_prolog, mla_prolog_out
from .tensors import check_tensors, to_numpy, to_torch

__all__ = ["TorchCache", "TorchIndexedOutput", "TorchKeyRows", "TorchOutput", "TorchProlog", "to_numpy", "to_torch"]


class TorchOutput(NamedTuple):
    """The tensors of a `PrologOutput`: `query_nope`, `query_rope`, `q_norm` and `q_norm_scale`, or None as it is there.

    `TorchProlog` has an example.
    """

    query_nope: Tensor
    query_rope: Tensor
    q_norm: Tensor
    q_norm_scale: Tensor | None

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


class TorchIndexedOutput(NamedTuple):
    """What a `TorchProlog` with an indexer returns.

    `query_nope`, `query_rope`, `q_norm` and `q_norm_scale` are the tensors of a `TorchOutput`, and `indexer` is the
    indexer's `TorchIndexerOutput`. `lightning_index` takes the last, and `sparse_attention` the whole. `TorchProlog`
    has an example.
    """

    query_nope: Tensor
    query_rope: Tensor
    q_norm: Tensor
    q_norm_scale: Tensor
    indexer: TorchIndexerOutput

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(dict(zip(TorchOutput._fields, self, strict=False))), repr(self.indexer))


class TorchProlog(LayerModule):
    """The MLA prolog of one layer as a module.

    The packed weights are not parameters: `state_dict()` is empty, and `.to`, `.half()` and the like change nothing. A
    copy of the module shares them. A call uses at most `torch.get_num_threads()` threads. Several threads may call one
    module at the same time.

    Args:
        source: An `MlaProlog`, or the weights of one.
        group: A process group of torch.distributed whose ranks share the layer by heads, as in
            `mla_numba.distributed.ShardedProlog`; the source is then weights, and every rank makes a module and calls
            it.
        down: As of `ShardedProlog`, with a group.
        indexer: As of `MlaProlog`, beside weights and without a group; an `MlaProlog` has its own.
        **settings: Those of `MlaProlog`, `phase` among them; none beside an `MlaProlog`.

    Raises:
        TypeError: `source` or a setting is of another type, or there are settings or a group beside an `MlaProlog`.
        ValueError: A setting has another value, `down` is given without a group, or an indexer with one.

    Examples:
        >>> import torch
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> from mla_numba.interop.torch import TorchCache, TorchProlog, to_torch
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> module = TorchProlog(mla.MlaWeights.random(dims), phase="decode")
        >>> cache = TorchCache.allocate(dims, n_blocks=2, block_size=16)
        >>> x, cos, sin, cache_index = map(to_torch, random_inputs(dims, t=3, seed=0, capacity=32))
        >>> module(x, cos, sin, cache_index, cache).query_nope.shape
        torch.Size([3, 4, 64])
        >>> cache.gather(cache_index).kv.shape
        torch.Size([3, 64])

        With an indexer, in one call:

        >>> from mla_numba.interop.torch import TorchIndexerCache
        >>> indexer = mla.IndexerWeights.random(dims, n_heads=8, head_dim=64)
        >>> both = TorchProlog(mla.MlaWeights.random(dims), indexer=indexer)
        >>> keys = TorchIndexerCache.allocate(indexer.dims, n_blocks=2, block_size=16)
        >>> both(x, cos, sin, cache_index, cache, indexer_cache=keys).indexer.query.shape
        torch.Size([3, 8, 64])
    """

    prolog: MlaProlog | ShardedProlog

    def __init__(
        self,
        source: MlaProlog | MlaWeights | PackedWeights,
        *,
        group: Any = None,
        down: DownWay = "auto",
        indexer: IndexerWeights | PackedIndexer | None = None,
        **settings: Unpack[PrologChoices],
    ) -> None:
        super().__init__()
        if group is None and down != "auto":
            raise ValueError(f"down: expected 'auto' without a group, got {down!r}")
        if isinstance(source, MlaProlog):
            if group is not None:
                raise TypeError("source: expected MlaWeights or PackedWeights with a group, got MlaProlog")
            if settings or indexer is not None:
                name = next(iter(settings), "indexer")
                raise TypeError(f"{name}: expected no settings beside an MlaProlog, which has its own")
            self.prolog = source
        elif not isinstance(source, (MlaWeights, PackedWeights)):
            raise TypeError(f"source: expected MlaProlog, MlaWeights or PackedWeights, got {type(source).__name__}")
        elif group is None:
            self.prolog = MlaProlog(source, indexer=indexer, **settings)
        elif indexer is not None:
            raise ValueError(
                "indexer: expected None with a group, whose ranks share the heads of the prolog alone (a TorchIndexer "
                f"beside it computes the indexer whole on each rank), got {type(indexer).__name__}"
            )
        else:
            self.prolog = ShardedProlog(source, group, down=down, **settings)
        self._take_handle()

    def _take_handle(self) -> None:
        super()._take_handle()
        self._n_heads = self.prolog.dims.num_attention_heads
        self._q_rank = self.prolog.dims.q_lora_rank
        self._quantized = self.prolog.quantized
        indexer = self.prolog.indexer if isinstance(self.prolog, MlaProlog) else None
        self._n_index_heads = 0 if indexer is None else indexer.dims.n_heads

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache_index: Tensor | None,
        cache: TorchCache,
        out: TorchOutput | TorchIndexedOutput | None = None,
        *,
        indexer_cache: TorchIndexerCache | None = None,
    ) -> TorchOutput | TorchIndexedOutput:
        """Computes T tokens and writes their cache rows, as `MlaProlog` does. All are contiguous tensors on the CPU.

        Args:
            x: Hidden states (T, H) bf16.
            cos: Cosines (T, R) bf16.
            sin: Sines (T, R) bf16.
            cache_index: Flat slots (T,) int64 or int32, -1 for none; None with a BSND or TND cache.
            cache: The cache, whose rows are written in place.
            out: Where to write the outputs (`allocate_output`).
            indexer_cache: With an indexer, the cache of its keys, which are written in place to the same slots.

        Returns:
            Queries and normalised queries, a `TorchOutput`; with an indexer a `TorchIndexedOutput`. `out`, or new
            tensors.

        Raises:
            TypeError: An argument, named in the message, is of another type or dtype; outputs and cache are unchanged.
            ValueError: It has another shape, layout, device or value, or requires grad where gradients are recorded;
                outputs and cache are unchanged.
        """
        check_tensors({"x": x, "cos": cos, "sin": sin, "cache_index": cache_index}, or_none=("cache_index",))
        expect_type("cache", cache, TorchCache)
        cache.check_types()
        operands = (self._handle, x, cos, sin, cache_index, *cache)
        if self._n_index_heads:
            return self._forward_both(operands, indexer_cache, out)
        if indexer_cache is not None:
            kind = type(indexer_cache).__name__
            raise ValueError(f"indexer_cache: expected None for a prolog without an indexer, got {kind}")
        if out is None:
            nope, rope, q_norm, scale = mla_prolog(*operands, self._n_heads, self._q_rank)
            return TorchOutput(nope, rope, q_norm, scale if self._quantized else None)
        expect_type("out", out, TorchOutput)
        check_tensors(_named("out", out), or_none=("out.q_norm_scale",))
        mla_prolog_out(*operands, *out)
        return out

    def _forward_both(
        self, operands: tuple[Any, ...], cache: Any, out: TorchOutput | TorchIndexedOutput | None
    ) -> TorchIndexedOutput:
        """The same with the indexer's prolog in the same call."""
        expect_type("indexer_cache", cache, TorchIndexerCache)
        cache.check_types()
        if out is None:
            sizes = self._n_heads, self._q_rank, self._n_index_heads
            nope, rope, q_norm, scale, *of_indexer = mla_prolog_indexed(*operands, *cache, *sizes)
            return TorchIndexedOutput(nope, rope, q_norm, scale, TorchIndexerOutput(*of_indexer))
        if not isinstance(out, TorchIndexedOutput):
            raise TypeError(f"out: expected TorchIndexedOutput, got {type(out).__name__}")
        expect_type("out.indexer", out.indexer, TorchIndexerOutput)
        check_tensors(_named("out", out[:4]) | _named("out.indexer", out.indexer))
        mla_prolog_indexed_out(*operands, *cache, *out[:4], *out.indexer)
        return out

    def allocate_output(self, t: int) -> TorchOutput | TorchIndexedOutput:
        """Uninitialised outputs, to be passed as `out`.

        Args:
            t: Tokens of the call.

        Returns:
            Tensors with the shapes and dtypes of `PrologOutput`, a `TorchOutput`; with an indexer a
            `TorchIndexedOutput`.

        Raises:
            TypeError: As `MlaProlog.allocate_output`.
            ValueError: As `MlaProlog.allocate_output`.
        """
        out = self.prolog.allocate_output(t)
        nope, rope, q_norm, scale = out
        if out.indexer is not None and scale is not None:
            of_indexer = TorchIndexerOutput(*map(to_torch, out.indexer))
            return TorchIndexedOutput(to_torch(nope), to_torch(rope), to_torch(q_norm), to_torch(scale), of_indexer)
        return TorchOutput(to_torch(nope), to_torch(rope), to_torch(q_norm), None if scale is None else to_torch(scale))

    def extra_repr(self) -> str:
        """What `print` says within the brackets."""
        prolog, indexer, n_bytes = self.prolog, "", self.prolog.weights.nbytes
        settings = {"quant": prolog.weights.quant, "phase": prolog.phase, "n_threads": prolog.n_threads}
        if isinstance(prolog, MlaProlog) and prolog.indexer is not None:
            indexer, n_bytes = f", indexer=({indexer_dims_text(prolog.indexer.dims)})", n_bytes + prolog.indexer.nbytes
        return f"{dims_text(prolog.dims)}, {fields_text(settings)}{indexer}, {size_text(n_bytes)}"


def _named(name: str, out: tuple[Tensor | None, ...]) -> dict[str, Tensor | None]:
    """The tensors of an output as errors call them."""
    fields = TorchIndexerOutput._fields if isinstance(out, TorchIndexerOutput) else TorchOutput._fields
    return {f"{name}.{field}": tensor for field, tensor in zip(fields, out, strict=True)}
