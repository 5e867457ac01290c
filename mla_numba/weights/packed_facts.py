"""What is said of packed weights, by a file or by whoever made the object, against what the kernels rely on."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from tiling import ceil_div, round_up

from ..base.checks import check_choice, check_epsilon, check_k_int8
from ..base.dims import MlaDims
from ..base.head_shard import HeadShard
from ..base.indexer_dims import IndexerDims
from ..base.modes import QUANT_MODES, ROPE_STYLES, QuantMode, RopeStyle
from ..kernels import ISA
from ..kernels.scalars import NONE_NONZERO

__all__ = [
    "FACTS",
    "PRODUCTS",
    "Facts",
    "GemmSize",
    "IndexerFacts",
    "check_mode",
    "check_shard",
    "gemm_sizes",
    "integers_of",
    "is_vector",
    "object_of",
    "read_facts",
    "read_indexer_facts",
]

PRODUCTS = ("down", "up", "uk")
FACTS = ("kp", "n_parts", "least_magnitude")


class Facts(NamedTuple):
    """The facts in a prolog's file, checked: what `PackedWeights` is made of beside its arrays."""

    dims: MlaDims
    quant: QuantMode
    epsilon_cq: np.float32
    epsilon_ckv: np.float32
    head_shard: HeadShard | None


class IndexerFacts(NamedTuple):
    """The same of an indexer's file, for `PackedIndexer`."""

    dims: IndexerDims
    rope: RopeStyle
    epsilon: np.float32


class GemmSize(NamedTuple):
    """What `PackedGemm` a product of these dimensions and this mode is, under this CPU's register tile."""

    kp: int
    n_parts: int
    n_columns: int
    quantised: bool

    def fits(self, gemm: Any) -> bool:
        """Whether the arrays and facts of a `PackedGemm` are such that kernels stay within the arrays."""
        n_scales = self.n_columns if self.quantised else 0
        return (
            all(type(getattr(gemm, fact)) is int for fact in FACTS)
            and (gemm.kp, gemm.n_parts) == (self.kp, self.n_parts)
            and 0 <= gemm.least_magnitude <= (0 if self.quantised else NONE_NONZERO)
            and is_vector(gemm.panels, "int8" if self.quantised else "uint16", self.n_columns * self.kp)
            and is_vector(gemm.offset, "int32", n_scales)
            and is_vector(gemm.col_scale, "float32", n_scales)
        )


def gemm_sizes(dims: MlaDims, quant: QuantMode) -> dict[str, GemmSize]:
    """The size of each product by its name."""
    heads, is_int8_down = dims.num_attention_heads, "a" in quant

    def size(k: int, quantised: bool, n_parts: int, *columns: tuple[int, int]) -> GemmSize:
        """Of (batch, n) columns each."""
        kr = ISA.kr_int8 if quantised else ISA.kr_bf16
        kp = n_parts * round_up(k // n_parts, kr)
        return GemmSize(kp, n_parts, sum(batch * ceil_div(n, ISA.nr) for batch, n in columns) * ISA.nr, quantised)

    return {
        "down": size(
            dims.hidden_size, is_int8_down, 1 if is_int8_down else 2, (1, dims.q_lora_rank), (1, dims.kv_a_dim)
        ),
        "up": size(dims.q_lora_rank, "b" in quant, 1, (heads, dims.q_head_dim)),
        "uk": size(dims.qk_nope_head_dim, False, 1, (heads, dims.kv_lora_rank)),
    }


def check_mode(dims: object, quant: object) -> QuantMode:
    """The mode; raises `TypeError` or `ValueError` unless there can be weights of these dimensions in it."""
    if not isinstance(dims, MlaDims):
        raise TypeError(f"dims: expected MlaDims, got {type(dims).__name__}")
    mode = next((known for known in QUANT_MODES if isinstance(quant, str) and known == quant), None)
    if mode is None:
        raise ValueError(f"quant: expected one of {', '.join(QUANT_MODES)}, got {reprlib.repr(quant)}")
    if "a" in mode:
        check_k_int8("dims.hidden_size", dims.hidden_size)
    elif dims.hidden_size % 2:
        raise ValueError(f"dims.hidden_size: expected an even number in mode {mode!r}, got {dims.hidden_size}")
    if "b" in mode:
        check_k_int8("dims.q_lora_rank", dims.q_lora_rank)
        if dims.kv_lora_rank % 4:
            raise ValueError(f"dims.kv_lora_rank: expected 4 groups in mode {mode!r}, got {dims.kv_lora_rank}")
    return mode


def check_shard(shard: object, dims: MlaDims) -> None:
    """Raises `TypeError` or `ValueError` unless `shard` is None, or a shard of as many heads as `dims` has."""
    if shard is None:
        return
    if not isinstance(shard, HeadShard):
        raise TypeError(f"head_shard: expected HeadShard or None, got {type(shard).__name__}")
    if len(shard.heads) != dims.num_attention_heads:
        raise ValueError(f"head_shard: expected {dims.num_attention_heads} heads, got {shard}")


def is_vector(array: object, dtype: str, *lengths: int) -> bool:
    """Whether it is an array (n,) as kernels take it, n one of `lengths`."""
    return (
        isinstance(array, np.ndarray)
        and array.dtype == np.dtype(dtype)
        and array.ndim == 1
        and len(array) in lengths
        and array.flags.c_contiguous
        and array.flags.aligned
    )


def read_facts(source: str, facts: Mapping[str, Any]) -> Facts:
    """The facts of a prolog's file, each of its type and in its range.

    Raises `ValueError` naming the file, `source`, and the fact. Whether the arrays have the sizes that the facts give
    is for `GemmSize.fits`.
    """
    sizes = _sizes_of(source, facts, MlaDims)
    quant = facts.get("quant")
    shard_facts = None
    if "head_shard" in facts:
        names = [field.name for field in fields(HeadShard)]
        shard_facts = integers_of(source, "head_shard", object_of(source, "head_shard", facts), names)
    try:
        dims = MlaDims(**sizes)
        mode = check_mode(dims, quant)
        epsilon_cq, epsilon_ckv = (check_epsilon(name, facts.get(name)) for name in ("epsilon_cq", "epsilon_ckv"))
        shard = HeadShard(**shard_facts) if shard_facts is not None else None
        check_shard(shard, dims)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: expected the facts of a prolog, got others: {error}") from None
    return Facts(dims, mode, epsilon_cq, epsilon_ckv, shard)


def read_indexer_facts(source: str, facts: Mapping[str, Any]) -> IndexerFacts:
    """The facts of an indexer's file, each of its type and in its range; raises as `read_facts` does."""
    sizes = _sizes_of(source, facts, IndexerDims)
    try:
        dims = IndexerDims(**sizes)
        check_k_int8("dims.q_lora_rank", dims.q_lora_rank)
        rope = check_choice("rope", facts.get("rope"), ROPE_STYLES)
        epsilon = check_epsilon("epsilon", facts.get("epsilon"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: expected the facts of an indexer, got others: {error}") from None
    return IndexerFacts(dims, rope, epsilon)


def object_of(source: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The object of that name; raises `ValueError` where it is none."""
    value = values.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{source}: expected {name}, an object, got {reprlib.repr(value)}")
    return value


def integers_of(source: str, where: str, values: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """The integers of these names, in this order; raises `ValueError` where one is none."""
    found = {name: values.get(name) for name in names}
    for name, value in found.items():
        if type(value) is not int:
            raise ValueError(f"{source}: expected {where}.{name}, an integer, got {reprlib.repr(value)}")
    return {name: values[name] for name in found}


def _sizes_of(source: str, facts: Mapping[str, Any], cls: type[MlaDims | IndexerDims]) -> dict[str, int]:
    return integers_of(source, "dims", object_of(source, "dims", facts), [field.name for field in fields(cls)])
