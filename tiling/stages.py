"""The four matrix products of the prolog: names, ordinals and shapes."""

from dataclasses import dataclass, fields
from typing import Protocol, Self

from tiling.arith import round_up
from tiling.check import check_choice, check_int
from tiling.gemm import GemmPlan, MicroTile
from tiling.modes import QUANT_MODES, Dtype, QuantMode

__all__ = ["Dims", "PlanDims", "StageShape", "stage_shapes"]


class Dims(Protocol):
    """Anything with the dimensions of the prolog, under the names of the model's config.json."""

    @property
    def hidden_size(self) -> int:
        """Length of a hidden state."""

    @property
    def num_attention_heads(self) -> int:
        """Query heads."""

    @property
    def q_lora_rank(self) -> int:
        """Length of the compressed query."""

    @property
    def kv_lora_rank(self) -> int:
        """Length of the compressed key."""

    @property
    def qk_nope_head_dim(self) -> int:
        """Length of a head's part without position."""

    @property
    def qk_rope_head_dim(self) -> int:
        """Length of a head's rotated part."""


@dataclass(frozen=True, slots=True)
class PlanDims:
    """The dimensions a plan was made for, under the names of config.json. ``plan_prolog`` has an example.

    Args:
        hidden_size: Length of a hidden state.
        num_attention_heads: Query heads.
        q_lora_rank: Length of the compressed query.
        kv_lora_rank: Length of the compressed key.
        qk_nope_head_dim: Length of a head's part without position.
        qk_rope_head_dim: Length of a head's rotated part.

    Raises:
        TypeError: A field is no int.
        ValueError: A field is below 1 or above 2^31 - 1.
    """

    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int

    def __post_init__(self) -> None:
        """Check the dimensions."""
        for f in fields(self):
            check_int(f.name, getattr(self, f.name), 1)

    @classmethod
    def of(cls, dims: Dims) -> Self:
        """Copy dimensions.

        Args:
            dims: Anything with these attributes.

        Returns:
            The dimensions alone.

        Raises:
            TypeError: An attribute is missing or no int.
            ValueError: It is out of range.
        """
        missing = [f.name for f in fields(cls) if not hasattr(dims, f.name)]
        if missing:
            raise TypeError(
                f"dims: expected the dimensions of a prolog, got {type(dims).__name__} without {missing[0]}"
            )
        return cls(*(getattr(dims, f.name) for f in fields(cls)))


@dataclass(frozen=True)
class StageShape:
    """Shape of one product without its rows; ``ordinal`` is its key in the scheduling settings."""

    stage: str
    ordinal: int
    dtype: Dtype
    batch: int
    k: int
    n: int
    k_parts: int

    def fit(self, m: int, micro: MicroTile, *, mc: int, kc: int, nc: int, l1_reuse: int) -> GemmPlan:
        """Plan for ``m`` rows with the wanted blocks rounded up to the register tile and clipped to the product."""
        part_kp = round_up(self.k // self.k_parts, micro.kr)
        return GemmPlan(
            stage=self.stage,
            dtype=self.dtype,
            batch=self.batch,
            m=m,
            k=self.k,
            n=self.n,
            k_parts=self.k_parts,
            micro=micro,
            mc=min(mc, max(m, 1)),
            kc=min(round_up(kc, micro.kr), part_kp),
            nc=min(round_up(nc, micro.nr), round_up(self.n, micro.nr)),
            l1_reuse=l1_reuse,
        )

    def matches(self, plan: GemmPlan) -> bool:
        """Whether ``plan`` is one of this product."""
        wanted = (self.stage, self.dtype, self.batch, self.k, self.n, self.k_parts)
        return wanted == (plan.stage, plan.dtype, plan.batch, plan.k, plan.n, plan.k_parts)


def stage_shapes(dims: Dims, quant: QuantMode) -> tuple[StageShape, StageShape, StageShape, StageShape]:
    """The products by ordinal: query down, query up (per head), key down, query times w_uk (per head).

    ``quant`` is one of ``QUANT_MODES``: "a" makes the down projections int8, "b" the query's up projection. Only the
    bf16 query down projection sums k in two halves.
    """
    check_choice("quant", quant, QUANT_MODES)
    d = PlanDims.of(dims)
    a: Dtype = "int8" if quant in ("a", "ab") else "bf16"
    b: Dtype = "int8" if quant in ("b", "ab") else "bf16"
    a_name, b_name = ("QuantMatmul" if dtype == "int8" else "Matmul" for dtype in (a, b))
    k_parts = 1 if a == "int8" else 2
    if d.hidden_size % k_parts != 0:
        raise ValueError(f"hidden_size: expected an even number for two sums over its halves, got {d.hidden_size}")
    n_head = d.qk_nope_head_dim + d.qk_rope_head_dim
    return (
        StageShape(f"{a_name}_qa", 0, a, 1, d.hidden_size, d.q_lora_rank, k_parts),
        StageShape(f"{b_name}_qb", 1, b, d.num_attention_heads, d.q_lora_rank, n_head, 1),
        StageShape(f"{a_name}_kva", 2, a, 1, d.hidden_size, d.kv_lora_rank + d.qk_rope_head_dim, 1),
        StageShape("Matmul_qNope_wUk", 3, "bf16", d.num_attention_heads, d.qk_nope_head_dim, d.kv_lora_rank, 1),
    )
