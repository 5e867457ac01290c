"""The prolog as the operators `mla_numba::mla_prolog` and `mla_prolog_out`, opaque to torch's compiler.

| argument                           | what it is                                                                 |
|------------------------------------|----------------------------------------------------------------------------|
| handle                             | int64, one element: which prolog (`make_handle`)                           |
| x, cos, sin, cache_index           | as in `MlaProlog`                                                          |
| kv_cache, kr_cache, k_scale_cache  | mutated: the arrays of a `PagedCache`, k_scale_cache None beside bf16 ones |
| cache_mode                         | its mode                                                                   |
| n_heads, q_rank                    | N and Rq of the prolog, for the shapes of the outputs                      |
| query_nope, ..., q_norm_scale      | mutated, of `mla_prolog_out` only: a `PrologOutput`                        |

`mla_prolog` returns new tensors; q_norm_scale is (0, 1) where w_uq_qr is not quantised. The handle is a tensor since a
number would be a constant of the graph: the layers of a model would then be compiled one by one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ...base.checks import Array
from ...base.modes import CacheMode
from ...cache import PagedCache
from ...distributed import ShardedProlog
from ...indexer import IndexerProlog
from ...indexer_cache import IndexerCache
from ...prolog import MlaProlog, PrologOutput
from .cache import TorchCache
from .tensors import refuse_gradient, to_numpy, to_torch

__all__ = [
    "TAKES", "AnyProlog", "OfLayer", "Operands", "check_sizes", "compute", "contiguous_array", "fake_outputs",
    "found_by", "make_handle", "mla_prolog", "mla_prolog_out", "output_of", "register",
]  # fmt: skip

AnyProlog = MlaProlog | ShardedProlog
OfLayer = AnyProlog | IndexerProlog

TAKES = (
    "Tensor handle, Tensor x, Tensor cos, Tensor sin, Tensor? cache_index, "
    "Tensor(a!) kv_cache, Tensor(b!) kr_cache, Tensor(c!)? k_scale_cache, str cache_mode"
)
_OUT = "Tensor(d!) query_nope, Tensor(e!) query_rope, Tensor(f!) q_norm, Tensor(g!)? q_norm_scale"

_library = torch.library.Library("mla_numba", "DEF")
_library.define(f"mla_prolog({TAKES}, SymInt n_heads, SymInt q_rank) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(f"mla_prolog_out({TAKES}, {_OUT}) -> ()")
mla_prolog = torch.ops.mla_numba.mla_prolog.default
mla_prolog_out = torch.ops.mla_numba.mla_prolog_out.default

_prologs: WeakValueDictionary[int, OfLayer] = WeakValueDictionary()
# From a number that no other process has, so that the handle in a saved graph finds nothing rather than another layer.
_next_key = count(secrets.randbits(62))


def make_handle(prolog: OfLayer) -> Tensor:
    """A handle of `prolog`, which does not keep it alive."""
    key = next(_next_key)
    _prologs[key] = prolog
    return torch.tensor(key, dtype=torch.int64, device="cpu")


def found_by(handle: Tensor) -> OfLayer:
    """The prolog of a handle. Raises `ValueError` for one that is gone."""
    key = handle.item() if handle.numel() == 1 else handle.tolist()
    found = _prologs.get(key) if isinstance(key, int) else None
    if found is None:
        raise ValueError(f"handle: expected that of a prolog which is alive in this process, got {key}")
    return found


def _prolog_of(handle: Tensor) -> AnyProlog:
    found = found_by(handle)
    if isinstance(found, IndexerProlog):
        raise ValueError("handle: expected that of an MlaProlog or a ShardedProlog, got that of IndexerProlog")
    return found


def contiguous_array(name: str, tensor: Tensor) -> Array:
    """The array of a tensor that is no cache, whose blocks alone may be strided."""
    array = to_numpy(tensor, name)
    if not tensor.is_contiguous():
        strides = f"strides {tensor.stride()} for shape {tuple(tensor.shape)}"
        raise ValueError(f"{name}: expected a contiguous tensor, got {strides}")
    return array


def _cache_index(tensor: Tensor | None, cache: PagedCache) -> Array | None:
    if tensor is None and cache.paged:
        raise TypeError(f"cache_index: expected a tensor with a {cache.cache_mode} cache, got None")
    return None if tensor is None else contiguous_array("cache_index", tensor)


class Operands(NamedTuple):
    """The tensors that a prolog's operators take, but for outputs, and the mode of their cache."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    cache_index: Tensor | None
    kv_cache: Tensor
    kr_cache: Tensor
    k_scale_cache: Tensor | None
    cache_mode: CacheMode


def compute(
    prolog: AnyProlog,
    given: Operands,
    out: PrologOutput | None,
    written: Iterable[Tensor | None],
    indexer_cache: IndexerCache | None = None,
) -> PrologOutput:
    """A call on the tensors' memory, to `out` if it is given. Whatever is wrong is raised before a tensor has changed.

    `written` are the tensors that are written beside the cache's own.
    """
    caches = given.kv_cache, given.kr_cache, given.k_scale_cache
    cache = TorchCache(*caches, given.cache_mode).numpy()
    beside: dict[str, Any] = {} if indexer_cache is None else {"indexer_cache": indexer_cache}
    call = prolog.bind(
        contiguous_array("x", given.x),
        contiguous_array("cos", given.cos),
        contiguous_array("sin", given.sin),
        _cache_index(given.cache_index, cache),
        cache,
        out,
        **beside,
    )
    torch.autograd.graph.increment_version([tensor for tensor in (*caches, *written) if tensor is not None])
    # Torch's own count in this thread, so that `torch.set_num_threads` holds for the prolog too.
    return prolog.run(call, most_threads=torch.get_num_threads())


def check_sizes(prolog: AnyProlog, n_heads: int, q_rank: int) -> None:
    """Raises `ValueError` unless these are the prolog's, by which the shapes of its outputs were told."""
    wanted = (prolog.dims.num_attention_heads, prolog.dims.q_lora_rank)
    if (n_heads, q_rank) != wanted:
        raise ValueError(f"n_heads, q_rank: expected those of the handle's prolog, {wanted}, got {(n_heads, q_rank)}")


def output_of(tensors: Iterable[Tensor | None]) -> PrologOutput:
    """Given outputs as arrays."""
    named = zip(PrologOutput._fields, tensors, strict=True)
    arrays: Any = (None if tensor is None else contiguous_array(f"out.{name}", tensor) for name, tensor in named)
    return PrologOutput(*arrays)


def _mla_prolog(handle: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prolog, (*operands, n_heads, q_rank) = _prolog_of(handle), others
    check_sizes(prolog, n_heads, q_rank)
    given = Operands(*operands)
    # NumPy's memory: it asks for huge pages, without which page faults take a sixth of a call with 512 tokens.
    out = compute(prolog, given, None, ())
    scale = given.x.new_empty((0, 1), dtype=torch.float32) if out.q_norm_scale is None else to_torch(out.q_norm_scale)
    return to_torch(out.query_nope), to_torch(out.query_rope), to_torch(out.q_norm), scale


def _mla_prolog_out(handle: Tensor, *others: Any) -> None:
    prolog, n = _prolog_of(handle), len(Operands._fields)
    compute(prolog, Operands(*others[:n]), output_of(others[n:]), others[n:])


def fake_outputs(handle: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `mla_prolog` without values."""
    *operands, n_heads, q_rank = others
    given = Operands(*operands)
    x, t, quantized = given.x, given.x.shape[0], given.kv_cache.dtype == torch.int8
    return (
        x.new_empty((t, n_heads, given.kv_cache.shape[-1]), dtype=torch.bfloat16),
        x.new_empty((t, n_heads, given.kr_cache.shape[-1]), dtype=torch.bfloat16),
        x.new_empty((t, q_rank), dtype=torch.int8 if quantized else torch.bfloat16),
        x.new_empty((t if quantized else 0, 1), dtype=torch.float32),
    )


def _without_gradients(operator: Any) -> Any:
    """Its kernel where gradients could be recorded: there is no backward, and a gradient lost unseen would be worse."""
    names = [argument.name for argument in operator._schema.arguments]

    def run(keys: Any, *args: Any) -> Any:
        for name, value in zip(names, args, strict=False):  # arguments with a default may be left out
            if isinstance(value, Tensor):
                refuse_gradient(name, value)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

    return run


def _of_one_kind(operator: Any, shapes: Any) -> Any:
    """`shapes` of tensors that all have values or all have none: with some of each, nothing would be computed."""
    names = [argument.name for argument in operator._schema.arguments]

    def run(*args: Any) -> Any:
        given = {n: a for n, a in zip(names, args, strict=False) if isinstance(a, Tensor) and n != "handle"}
        if not all(tensor.is_meta for tensor in given.values()):
            for name, tensor in given.items():
                if tensor.is_meta:
                    raise ValueError(f"{name}: expected a tensor on the CPU, as others are, got one on meta")
        return shapes(*args)

    return run


def register(library: torch.library.Library, name: str, kernel: Any, shapes: Any) -> None:
    """The kernel of a defined operator, its shapes without values, and its refusal of gradients."""
    operator = getattr(torch.ops.mla_numba, name).default
    # For every device: what is not on the CPU is refused by `to_numpy`, by its name.
    library.impl(name, kernel, "CompositeExplicitAutograd")
    library.impl(name, _without_gradients(operator), "Autograd", with_keyset=True)
    torch.library.register_fake(f"mla_numba::{name}", _of_one_kind(operator, shapes), lib=library)


register(_library, "mla_prolog", _mla_prolog, fake_outputs)
register(_library, "mla_prolog_out", _mla_prolog_out, lambda *_: None)
