"""The plan of one tile of tokens: its sweeps, and the buffers they need."""

from dataclasses import dataclass

from tiling.arith import round_up
from tiling.check import MAX_THREADS, MAX_TOKENS, check_int, check_ints
from tiling.gemm import PAIR_BYTES, GemmPlan, apart
from tiling.html import table, to_html
from tiling.plan.cells import GEMM_COLUMNS, gemm_cells
from tiling.plan.groups import groups_text
from tiling.plan.indexer_tile import IndexerTile
from tiling.plan.sweeps import DownPlan, HeadsPlan, RowPlan
from tiling.roofline import Work

__all__ = ["TilePlan"]


@dataclass(frozen=True)
class TilePlan:
    """The three sweeps over one tile of ``t`` tokens, by ``n_workers`` threads. ``plan_prolog`` has an example.

    Args:
        t: Tokens.
        n_workers: Threads.
        down: Sweep 1.
        rows: Sweep 2.
        heads: Sweep 3.
        indexer: What an indexer adds to them, if there is one.
        groups: Threads of each group, one a NUMA node, which draws the legs of its own share of the weights first;
            empty for a single group.
    """

    t: int
    n_workers: int
    down: DownPlan
    rows: RowPlan
    heads: HeadsPlan
    indexer: IndexerTile | None = None
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that the sweeps are about the same tokens."""
        check_int("t", self.t, 1, MAX_TOKENS)
        check_int("n_workers", self.n_workers, 1, MAX_THREADS)
        for name, t in (("down", self.down.qa.m), ("rows", self.rows.t), ("heads", self.heads.qb.m)):
            if t != self.t:
                raise ValueError(f"{name}: expected a plan for {self.t} tokens, got one for {t}")
        if check_ints("groups", self.groups, 1) and sum(self.groups) != self.n_workers:
            raise ValueError(f"groups: expected {self.n_workers} threads together, got {sum(self.groups)}")
        indexer = self.indexer
        if indexer is not None and (indexer.t, indexer.n_workers) != (self.t, self.n_workers):
            raise ValueError(
                f"indexer: expected a plan for {self.t} tokens by {self.n_workers} threads, got one for {indexer.t} by "
                f"{indexer.n_workers}"
            )

    @property
    def has_legs(self) -> bool:
        """Whether tasks of a sweep go on where others ended."""
        return self.down.legs > 1 or self.heads.legs > 1

    @property
    def gemms(self) -> tuple[GemmPlan, GemmPlan, GemmPlan, GemmPlan]:
        """The four products of the prolog itself by ordinal."""
        return self.down.qa, self.heads.qb, self.down.kva, self.heads.wuk

    @property
    def all_gemms(self) -> tuple[GemmPlan, ...]:
        """The products of the prolog, then those of the indexer."""
        return self.gemms if self.indexer is None else self.gemms + self.indexer.gemms

    @property
    def shared_workspace(self) -> dict[str, int]:
        """Bytes of each buffer that all workers share, rounded up to pairs of cache lines.

        ``x_rows`` hidden states as operands, ``x_scale`` their fp32 scales (int8 down projections only), ``q_a`` and
        ``kv_a`` the bf16 down projections, ``q_rows`` normalised queries as operands of the up projection, ``relays``
        what legs hand on: accumulators of the down sweep, and then queries of heads.
        """
        qa, qb, kva, _ = self.gemms
        sizes = {
            "x_rows": self.t * qa.lda * qa.micro.a_bytes,
            "x_scale": self.t * 4 if qa.dtype == "int8" else 0,
            "q_a": self.t * qa.n * 2,
            "kv_a": self.t * kva.n * 2,
            "q_rows": self.t * qb.lda * qb.micro.a_bytes,
            "relays": max(self.down.relay_bytes, self.heads.relay_bytes),
        }
        return {name: round_up(size, PAIR_BYTES) for name, size in sizes.items() if size > 0}

    @property
    def worker_workspace(self) -> dict[str, int]:
        """Bytes of each buffer of one worker, with room behind it, so that workers write far apart.

        ``c`` accumulators of a task, ``q_head`` the columns of one head as operands of the product with w_uk, an even
        number of rows, ``y`` one fp32 row on its way to codes, with 16 lanes of sums behind it.
        """
        qa = self.down.qa
        hidden = qa.k if qa.dtype == "int8" else 0
        row = max(self.rows.q_lora_rank, self.rows.kv_lora_rank, self.rows.qk_rope_head_dim, hidden)
        return {
            "c": apart(max(gemm.accumulator_bytes for gemm in self.gemms)),
            "q_head": apart(self.heads.q_head_bytes, self.heads.ldq * self.heads.wuk.micro.a_bytes),
            "y": apart((row + 16) * 4),
        }

    @property
    def workspace(self) -> dict[str, int]:
        """Bytes of every buffer, those of the workers for all of them together, and those of the indexer."""
        own = self.shared_workspace | {name: self.n_workers * size for name, size in self.worker_workspace.items()}
        return own if self.indexer is None else own | self.indexer.workspace

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(self.workspace.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, each read once."""
        of_indexer = 0 if self.indexer is None else self.indexer.weight_bytes
        return sum(gemm.weight_bytes for gemm in self.gemms) + of_indexer

    @property
    def activation_bytes(self) -> int:
        """Bytes that must move besides the weights: inputs once, outputs and cache rows once, nothing in between."""
        qa, _, _, wuk = self.gemms
        rope = self.rows.qk_rope_head_dim
        inputs = self.t * (2 * qa.k + 2 * 2 * rope + 8)
        queries = self.t * wuk.batch * (wuk.n + rope) * 2
        of_indexer = 0 if self.indexer is None else self.indexer.written_bytes
        return inputs + self.rows.written_bytes + queries + of_indexer

    @property
    def flops(self) -> int:
        """Operations of the bf16 products."""
        of_indexer = 0 if self.indexer is None else self.indexer.flops
        return sum(gemm.work.flops for gemm in self.gemms) + of_indexer

    @property
    def int8_ops(self) -> int:
        """Operations of the int8 products."""
        of_indexer = 0 if self.indexer is None else self.indexer.int8_ops
        return sum(gemm.work.int8_ops for gemm in self.gemms) + of_indexer

    @property
    def sweep_work(self) -> dict[str, Work]:
        """Bytes and operations of each sweep by its name: its weights, and what it reads and writes of activations.

        Buffers between sweeps are included. They stay in cache and are not in the tile's own bytes.
        """
        own = {"down": self.down.work, "rows": self.rows.work, "heads": self.heads.work}
        if self.indexer is None:
            return own
        return {name: work + self.indexer.sweep_work[name] for name, work in own.items()}

    def __repr__(self) -> str:
        """The line of ``str`` in brackets."""
        return f"<TilePlan: {self}>"

    def _repr_html_(self) -> str:
        """A table for notebooks: a row for each product."""
        return to_html(table(str(self), GEMM_COLUMNS, [gemm_cells(gemm) for gemm in self.all_gemms]))

    def __str__(self) -> str:
        """One line."""
        workers = "1 worker" if self.n_workers == 1 else f"{self.n_workers} workers"
        if self.groups:
            workers += f" in {groups_text(self.groups)}"
        indexer = "" if self.indexer is None else f"{self.indexer}; "
        return (
            f"tile of {self.t}: {workers}; {self.down}; {self.rows}; {self.heads}; {indexer}"
            f"workspace {self.workspace_bytes / 2**20:.2f} MiB"
        )
