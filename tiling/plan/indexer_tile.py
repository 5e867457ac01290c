"""The plan of the indexer's prolog over one tile of tokens: its products, and the buffers they need."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

from tiling.arith import round_up
from tiling.check import MAX_THREADS, MAX_TOKENS, check_flag, check_int
from tiling.choose.candidates import Choice, Chooser
from tiling.choose.costs import Costs
from tiling.cpu_tiling import CpuTiling
from tiling.gemm import LINE_BYTES, GemmPlan, MicroTile, apart
from tiling.machine import Machine
from tiling.modes import Dtype
from tiling.plan.sweeps import DownPlan, HeadsPlan
from tiling.roofline import Work
from tiling.stages import StageShape

__all__ = ["IndexerPlanDims", "IndexerShape", "IndexerTile", "choose_indexer", "indexer_shapes"]


class IndexerShape(Protocol):
    """Anything with the dimensions of an indexer."""

    @property
    def hidden_size(self) -> int:
        """Length of a hidden state."""

    @property
    def q_lora_rank(self) -> int:
        """Length of the compressed query."""

    @property
    def n_heads(self) -> int:
        """Heads of the indexer."""

    @property
    def head_dim(self) -> int:
        """Length of a head, and of a key."""

    @property
    def qk_rope_head_dim(self) -> int:
        """Length of the rotated part of either."""


@dataclass(frozen=True, slots=True)
class IndexerPlanDims:
    """The dimensions an indexer's plan was made for. ``plan_indexer`` has an example.

    Args:
        hidden_size: Length of a hidden state.
        q_lora_rank: Length of the compressed query.
        n_heads: Heads of the indexer.
        head_dim: Length of a head, and of a key.
        qk_rope_head_dim: Length of the rotated part of either.

    Raises:
        TypeError: A field is no int.
        ValueError: A field is below 1 or above 2^31 - 1.
    """

    hidden_size: int
    q_lora_rank: int
    n_heads: int
    head_dim: int
    qk_rope_head_dim: int

    def __post_init__(self) -> None:
        """Check the dimensions."""
        for f in fields(self):
            check_int(f.name, getattr(self, f.name), 1)

    @classmethod
    def of(cls, dims: IndexerShape) -> Self:
        """Copy dimensions.

        Args:
            dims: Anything with these attributes.

        Returns:
            The dimensions alone.
        """
        return cls(*(getattr(dims, f.name) for f in fields(cls)))


def indexer_shapes(dims: IndexerShape) -> tuple[StageShape, StageShape, StageShape, StageShape]:
    """The products by the places that those of the prolog have: keys, queries, weights, queries times Hadamard matrix.

    The fourth has one weight for all heads, counted here as if each head had its own.
    """
    hidden, heads, width = dims.hidden_size, dims.n_heads, dims.head_dim
    return (
        StageShape("Matmul_indexK", 0, "bf16", 1, hidden, width, 1),
        StageShape("QuantMatmul_indexQ", 1, "int8", heads, dims.q_lora_rank, width, 1),
        StageShape("Matmul_indexWeights", 2, "bf16", 1, hidden, heads, 1),
        StageShape("Hadamard_indexQ", 3, "bf16", heads, width, width, 1),
    )


@dataclass(frozen=True)
class IndexerTile:
    """The indexer's prolog over one tile of ``t`` tokens, by ``n_workers`` threads. ``plan_indexer`` has an example.

    Args:
        t: Tokens.
        n_workers: Threads.
        down: The products of x: Matmul_indexK and Matmul_indexWeights.
        heads: The products of q_norm: QuantMatmul_indexQ and, in a task with it, Hadamard_indexQ.
        rows_x: Rows of a task that makes x and q_norm operands, at most.
        rows_k: Rows of a task of the keys, at most: LayerNorm_indexK to Scatter_indexK.
        packs_x: Whether x has to be made an operand, or is one of the prolog's.
        packs_q: The same of q_norm.
    """

    t: int
    n_workers: int
    down: DownPlan
    heads: HeadsPlan
    rows_x: int
    rows_k: int
    packs_x: bool
    packs_q: bool

    def __post_init__(self) -> None:
        """Check that the parts are about the same tokens."""
        check_int("t", self.t, 1, MAX_TOKENS)
        check_int("n_workers", self.n_workers, 1, MAX_THREADS)
        for name in ("rows_x", "rows_k"):
            check_int(name, getattr(self, name), 1)
        for name in ("packs_x", "packs_q"):
            check_flag(name, getattr(self, name))
        for name, t in (("down", self.down.qa.m), ("heads", self.heads.qb.m)):
            if t != self.t:
                raise ValueError(f"{name}: expected a plan for {self.t} tokens, got one for {t}")

    def beside(self, qa: GemmPlan) -> Self:
        """The same tile beside a prolog, which has made q_norm an operand and, if its product reads it alike, x too.

        Args:
            qa: The prolog's product of x.

        Returns:
            The plan of such a tile.
        """
        k = self.down.qa
        return replace(self, packs_x=(qa.dtype, qa.kp, qa.lda) != (k.dtype, k.kp, k.lda), packs_q=False)

    @property
    def gemms(self) -> tuple[GemmPlan, GemmPlan, GemmPlan, GemmPlan]:
        """The products, as of ``indexer_shapes``."""
        return self.down.qa, self.heads.qb, self.down.kva, self.heads.wuk

    @property
    def n_rows(self) -> int:
        """Rows of a worker's scratch: of a token block of a head, or of a task of keys."""
        return max(self.heads.qb.mc, self.rows_k)

    @property
    def workspace(self) -> dict[str, int]:
        """Bytes of each buffer, those of the workers for all of them together, with room between them.

        ``index_x`` and ``index_q`` hidden states and normalised queries as operands, where the prolog's are not there;
        ``k_a`` and ``w_a`` the fp32 products of x. Of each worker ``index_c`` accumulators, ``index_rows`` rows as
        operands of the product with a Hadamard matrix, ``index_bits`` bf16 rows, ``index_y`` fp32 rows.
        """
        k, qb, weights, hadamard = self.gemms
        shared = {
            "index_x": self.t * k.lda * k.micro.a_bytes if self.packs_x else 0,
            "index_q": self.t * qb.lda * qb.micro.a_bytes if self.packs_q else 0,
            "k_a": self.t * k.n * 4,
            "w_a": self.t * weights.n * 4,
        }
        row_bytes = self.heads.ldq * hadamard.micro.a_bytes
        by_worker = {
            "index_c": apart(max(gemm.accumulator_bytes for gemm in self.gemms)),
            "index_rows": apart(self.n_rows * row_bytes, row_bytes),
            "index_bits": apart(self.n_rows * hadamard.n * 2),
            "index_y": apart((2 * hadamard.n + 16) * 4),
        }
        sizes = {name: round_up(size, LINE_BYTES) for name, size in shared.items() if size}
        return sizes | {name: self.n_workers * size for name, size in by_worker.items()}

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(self.workspace.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, each read once: both Hadamard matrices among them."""
        k, qb, weights, hadamard = self.gemms
        return k.weight_bytes + qb.weight_bytes + weights.weight_bytes + 2 * hadamard.weight_bytes // hadamard.batch

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs but for cos and sin: x, q_norm and its scales, slots."""
        k, qb, _, _ = self.gemms
        return self.t * (2 * k.k + qb.k + 4 + 8)

    @property
    def written_bytes(self) -> int:
        """Bytes of the outputs and of cache rows: codes, and an fp16 scale or weight beside each head and key."""
        k, qb, _, _ = self.gemms
        return self.t * (qb.batch * (qb.n + 2 + 2) + k.n + 2)

    @property
    def flops(self) -> int:
        """Operations of the bf16 products, the keys' with their Hadamard matrix among them."""
        k, _, weights, hadamard = self.gemms
        return k.ops + weights.ops + hadamard.ops + 2 * self.t * hadamard.k * hadamard.n

    @property
    def int8_ops(self) -> int:
        """Operations of the int8 product."""
        return self.heads.qb.ops

    @property
    def sweep_work(self) -> dict[str, Work]:
        """Bytes and operations that the indexer adds to each sweep of a prolog, by its name; see ``TilePlan``."""
        k, qb, weights, hadamard = self.gemms
        of_matrix = hadamard.weight_bytes // hadamard.batch
        sums = 4 * self.t * (k.n + weights.n)
        x = 2 * self.t * k.k if self.packs_x else 0
        queries = self.t * (qb.k + qb.batch * (qb.n + 2))
        return {
            "down": k.work + weights.work + Work(sums + x),
            "rows": Work(
                sums + self.t * (k.n + 2 + 2 * weights.n) + of_matrix, flops=2 * self.t * hadamard.k * hadamard.n
            ),
            "heads": qb.work + Work(of_matrix + queries, flops=hadamard.ops),
        }

    def __repr__(self) -> str:
        """The line of ``str`` in brackets."""
        return f"<IndexerTile: {self}>"

    def __str__(self) -> str:
        """One line."""
        packed = f"rows_x {self.rows_x} " if self.packs_x or self.packs_q else ""
        return f"indexer: {self.down}; rows: {packed}rows_k {self.rows_k}; {self.heads}"


def choose_indexer(
    dims: IndexerShape,
    micro: Mapping[Dtype, MicroTile],
    machine: Machine,
    costs: Costs,
    t: int,
    n_workers: int,
) -> tuple[IndexerTile, Choice]:
    """The planner's choice for a tile that stands alone, and the model's word on it."""
    shapes = indexer_shapes(dims)
    # One leg: beside the prolog the sums of other tasks may be under way.
    one_leg = CpuTiling(down_legs=1, heads_legs=1)
    choice = Chooser(shapes, micro, machine, costs, t, n_workers, one_leg).choose()
    v = choice.values

    def fit(i: int, mc: str, kc: str, walk: str) -> GemmPlan:
        shape = shapes[i]
        tile = micro[shape.dtype]
        return shape.fit(t, tile, mc=v[mc], kc=v[kc], nc=v[walk] * tile.nr, l1_reuse=1)

    k, weights = (fit(i, "down_mc", "down_kc", "down_walk") for i in (0, 2))
    tile = IndexerTile(
        t=t,
        n_workers=n_workers,
        down=DownPlan(k, weights, v["down_grain"]),
        heads=HeadsPlan(fit(1, "qb_mc", "qb_kc", "qb_walk"), fit(3, "wuk_mc", "wuk_kc", "wuk_walk"), v["heads_grain"]),
        rows_x=v["rows_q"],
        rows_k=v["rows_k"],
        packs_x=True,
        packs_q=True,
    )
    return tile, choice
