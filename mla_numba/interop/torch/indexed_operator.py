"""A prolog with an indexer as the operators `mla_numba::mla_prolog_indexed` and `mla_prolog_indexed_out`.

They take what `operator`'s `mla_prolog` and `mla_prolog_out` take, and between the cache and what follows it:

| argument                | what it is                                                  |
|-------------------------|-------------------------------------------------------------|
| index_k, index_k_scale  | mutated: the arrays of an `IndexerCache`                    |
| index_mode              | its mode                                                    |
| n_index_heads           | Ni, behind n_heads and q_rank, for the shapes of the outputs |

The outputs are the four of a prolog and the three of an `IndexerOutput`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...base.modes import PagedMode
from ...call.bind import IndexedOutput
from ...call.indexer import IndexerOutput
from ...prolog import MlaProlog
from .index_operators import fake_indexer_outputs, index_cache_of
from .operator import (
    TAKES,
    Operands,
    check_sizes,
    compute,
    contiguous_array,
    fake_outputs,
    found_by,
    output_of,
    register,
)
from .tensors import to_torch

__all__ = ["mla_prolog_indexed", "mla_prolog_indexed_out"]

_BESIDE = f"{TAKES}, Tensor(h!) index_k, Tensor(i!) index_k_scale, str index_mode"
_OUT = (
    "Tensor(d!) query_nope, Tensor(e!) query_rope, Tensor(f!) q_norm, Tensor(g!) q_norm_scale, "
    "Tensor(j!) index_query, Tensor(k!) index_query_scale, Tensor(l!) index_weights"
)
_SEVEN = ", ".join(["Tensor"] * 7)
_N, _N_OF_PROLOG = len(Operands._fields), 4

_library = torch.library.Library("mla_numba", "FRAGMENT")
_library.define(f"mla_prolog_indexed({_BESIDE}, SymInt n_heads, SymInt q_rank, SymInt n_index_heads) -> ({_SEVEN})")
_library.define(f"mla_prolog_indexed_out({_BESIDE}, {_OUT}) -> ()")
mla_prolog_indexed = torch.ops.mla_numba.mla_prolog_indexed.default
mla_prolog_indexed_out = torch.ops.mla_numba.mla_prolog_indexed_out.default


def _prolog_of(handle: Tensor) -> MlaProlog:
    found = found_by(handle)
    if not isinstance(found, MlaProlog) or found.indexer is None:
        without = " without an indexer" if isinstance(found, MlaProlog) else ""
        raise ValueError(
            f"handle: expected that of an MlaProlog with an indexer, got that of {type(found).__name__}{without}"
        )
    return found


def _compute(
    prolog: MlaProlog, operands: tuple[Any, ...], cache: tuple[Tensor, Tensor, PagedMode], outputs: tuple[Tensor, ...]
) -> IndexedOutput:
    """A call on the tensors' memory, to `outputs` if there are any."""
    out = None
    if outputs:
        names = IndexerOutput._fields
        of_indexer = zip(names, outputs[_N_OF_PROLOG:], strict=True)
        arrays = (contiguous_array(f"out.indexer.{name}", tensor) for name, tensor in of_indexer)
        out = IndexedOutput(output_of(outputs[:_N_OF_PROLOG]), IndexerOutput(*arrays))
    found = compute(prolog, Operands(*operands), out, (*cache[:2], *outputs), index_cache_of(*cache))
    assert isinstance(found, IndexedOutput)
    return found


def _mla_prolog_indexed(handle: Tensor, *others: Any) -> tuple[Tensor, ...]:
    prolog, (n_heads, q_rank, n_index_heads) = _prolog_of(handle), others[_N + 3 :]
    check_sizes(prolog, n_heads, q_rank)
    assert prolog.indexer is not None
    if n_index_heads != prolog.indexer.dims.n_heads:
        wanted = prolog.indexer.dims.n_heads
        raise ValueError(f"n_index_heads: expected that of the handle's indexer, {wanted}, got {n_index_heads}")
    out = _compute(prolog, others[:_N], others[_N : _N + 3], ())
    arrays: Any = (*out, *out.indexer)
    return tuple(to_torch(array) for array in arrays)


def _mla_prolog_indexed_out(handle: Tensor, *others: Any) -> None:
    _compute(_prolog_of(handle), others[:_N], others[_N : _N + 3], others[_N + 3 :])


def _fake(handle: Tensor, *others: Any) -> tuple[Tensor, ...]:
    x, index_k, (*sizes, n_index_heads) = others[0], others[_N], others[_N + 3 :]
    return (*fake_outputs(handle, *others[:_N], *sizes), *fake_indexer_outputs(x, n_index_heads, index_k))


register(_library, "mla_prolog_indexed", _mla_prolog_indexed, _fake)
register(_library, "mla_prolog_indexed_out", _mla_prolog_indexed_out, lambda *_: None)
