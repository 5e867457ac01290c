"""The tensors of a lightning indexer in a checkpoint: their names, and the weights that they make."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from ..base.checks import FP32, Array, check_vector
from ..base.indexer_dims import IndexerDims
from ..base.modes import RopeStyle
from .attention import Int8Linear
from .indexer import IndexerWeights, sylvester_hadamard
from .tensor_names import SCALES, AttentionNames, check_format

__all__ = ["IndexerSource", "check_indexer_names", "find_indexer", "read_indexer"]

_LINEARS = ("wq_b", "wk", "weights_proj")
_KINDS = dict.fromkeys(_LINEARS, ("weight", *SCALES, "weight_offset")) | {"k_norm": ("weight", "bias")}
_PASSED = re.compile(r"rotary_emb\..+")


class IndexerSource(Protocol):
    """Where the weights of one indexer are; all come in C order, as bf16 but for int8 codes that are to stay."""

    def vector(self, module: str, n: int, kind: str = "weight") -> Array:
        """A norm's weight or bias (n,)."""

    def weight(self, module: str, n_out: int, n_in: int) -> Array:
        """A Linear's weight (n_out, n_in)."""

    def transposed(self, module: str, n_out: int, n_in: int) -> Array | Int8Linear:
        """A Linear's weight as (n_in, n_out)."""


def find_indexer(attention: AttentionNames) -> AttentionNames | None:
    """The tensors of an attention's indexer; None where it has none."""
    found = AttentionNames(f"{attention.prefix}indexer.")
    for name in attention.others:
        if name.startswith(found.prefix):
            module, _, kind = name[len(found.prefix) :].partition(".")
            if kind and module in _KINDS:
                found.modules.setdefault(module, {})[kind] = name
            else:
                found.others.append(name)
    return found if found.modules else None


def check_indexer_names(names: AttentionNames, method: str) -> None:
    """Raises `ValueError`, naming module or tensor, unless all is there and nothing else that would have to be
    computed. `method` is what the configuration says of the quantisation, for errors.
    """
    for module, kinds in names.modules.items():
        if module in _LINEARS:
            check_format(names.prefix + module, kinds, method)
    unknown = [name for name in names.others if not _PASSED.fullmatch(name[len(names.prefix) :])]
    unknown += [kinds[kind] for module, kinds in names.modules.items() for kind in kinds if kind not in _KINDS[module]]
    if unknown:
        raise ValueError(
            f"{min(unknown)}: expected tensors of {_listed(_KINDS)} of an indexer, got one that it does not compute"
        )
    for module, known in _KINDS.items():
        for kind in ("weight", "bias") if "bias" in known else ("weight",):
            if kind not in names.modules.get(module, {}):
                raise ValueError(f"{names.prefix}{module}.{kind}: expected a tensor of that name, got none")


def read_indexer(
    source: IndexerSource, dims: IndexerDims, rope: RopeStyle, smooth_scales_cq: Array | None, where: str
) -> IndexerWeights:
    """The weights of `source`; `Checkpoint.load_indexer` says which becomes which. `where` is its prefix."""
    if smooth_scales_cq is not None:
        check_vector("smooth_scales_cq", smooth_scales_cq, FP32, dims.q_lora_rank)
    w_qb = source.transposed("wq_b", dims.query_dim, dims.q_lora_rank)
    wk, w_proj = (
        np.ascontiguousarray(source.weight(module, n_out, dims.hidden_size).T)
        for module, n_out in (("wk", dims.head_dim), ("weights_proj", dims.n_heads))
    )
    gamma, beta = (source.vector("k_norm", dims.head_dim, kind) for kind in ("weight", "bias"))
    rope_dim = dims.qk_rope_head_dim
    if not isinstance(w_qb, Int8Linear):
        return IndexerWeights.from_bf16(
            w_qb, wk, w_proj, gamma, beta, smooth_scales_cq=smooth_scales_cq, rope=rope, qk_rope_head_dim=rope_dim
        )
    if smooth_scales_cq is not None:
        raise ValueError(f"smooth_scales_cq: expected None where {where}wq_b holds int8 codes, got scales")
    rotation = sylvester_hadamard(dims.head_dim)
    return IndexerWeights(
        w_qb.codes, w_qb.scale, wk, w_proj, gamma, beta, rotation, rotation, rope=rope, qk_rope_head_dim=rope_dim
    )


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}"
