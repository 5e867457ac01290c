"""The plans of the three sweeps, of one tile of tokens, and of the whole prolog."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Self

from tiling.arith import ceil_div, chunks, round_up
from tiling.check import (
    MAX_THREADS,
    MAX_TOKENS,
    check_choice,
    check_flag,
    check_int,
    check_ints,
)
from tiling.choose.candidates import Chooser
from tiling.choose.costs import Costs
from tiling.choose.explain import candidate_lines
from tiling.cpu_tiling import CpuTiling
from tiling.gemm import GemmPlan
from tiling.json import from_json, to_json
from tiling.machine import Machine
from tiling.stages import PlanDims, stage_shapes

__all__ = ["ORIGINS", "PHASES", "DownPlan", "HeadsPlan", "PrologPlan", "RowPlan", "TilePlan"]

PHASES = ("decode", "prefill")
ORIGINS = ("planner", "config", "tiling", "tuned")

_CACHE_LINE_BYTES = 64


@dataclass(frozen=True)
class DownPlan:
    """Sweep 1: both products of the hidden states, in one parallel region.

    ``grain`` is the number of tasks a worker takes at a time; the tasks of ``qa`` come before those of ``kva``.
    """

    qa: GemmPlan
    kva: GemmPlan
    grain: int

    def __post_init__(self) -> None:
        """Check that both products read the same operand."""
        check_int("grain", self.grain, 1)
        for name in ("m", "k", "dtype", "micro"):
            qa, kva = getattr(self.qa, name), getattr(self.kva, name)
            if qa != kva:
                raise ValueError(f"kva.{name}: expected that of qa, {qa}, got {kva}")

    @property
    def n_tasks(self) -> int:
        """Tasks of both products."""
        return self.qa.n_tasks + self.kva.n_tasks

    def __str__(self) -> str:
        """One line."""
        return f"down: {self.n_tasks} tasks by {self.grain}"


@dataclass(frozen=True)
class RowPlan:
    """Sweep 2: the elementwise steps, in tasks of whole token rows.

    Query rows (RmsNorm_qa, Quant_qMnRes) go in tasks of ``rows_q`` tokens at most, key rows (RmsNorm_compressedkv,
    Quant_knope, RotaryPosEmb, ScatterUpdate_*) in tasks of ``rows_k``. ``quantised`` says whether codes and scales are
    written, or bf16. The tasks of query rows come first. Hidden states are packed in tasks of ``rows_q``, too.
    """

    t: int
    rows_q: int
    rows_k: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    quantised: bool

    def __post_init__(self) -> None:
        """Check the fields."""
        check_int("t", self.t, 0, MAX_TOKENS)
        for name in ("rows_q", "rows_k", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim"):
            check_int(name, getattr(self, name), 1)
        check_flag("quantised", self.quantised)

    @property
    def n_q_tasks(self) -> int:
        """Tasks of query rows."""
        return ceil_div(self.t, self.rows_q)

    @property
    def n_k_tasks(self) -> int:
        """Tasks of key rows."""
        return ceil_div(self.t, self.rows_k)

    @property
    def n_tasks(self) -> int:
        """Tasks of both kinds."""
        return self.n_q_tasks + self.n_k_tasks

    @property
    def read_bytes(self) -> int:
        """Bytes read: both down projections, cos, sin and the cache index."""
        row = 2 * (self.q_lora_rank + self.kv_lora_rank + self.qk_rope_head_dim) + 2 * 2 * self.qk_rope_head_dim + 8
        return self.t * row

    @property
    def written_bytes(self) -> int:
        """Bytes written: normalised query and cache rows, with one fp32 scale per query row and four per key row."""
        values = self.q_lora_rank + self.kv_lora_rank
        return self.t * ((values + 4 + 16 if self.quantised else 2 * values) + 2 * self.qk_rope_head_dim)

    @property
    def activation_bytes(self) -> int:
        """Bytes read and written by the sweep."""
        return self.read_bytes + self.written_bytes

    def blocks(self) -> Iterator[tuple[str, int, int]]:
        """Rows ``("q" or "k", m0, m1)`` of each task: even cuts, see ``chunks``."""
        yield from (("q", m0, m1) for m0, m1 in chunks(self.t, self.n_q_tasks))
        yield from (("k", m0, m1) for m0, m1 in chunks(self.t, self.n_k_tasks))

    def __str__(self) -> str:
        """One line."""
        return f"rows: {self.n_tasks} tasks, rows_q {self.rows_q} rows_k {self.rows_k}"


@dataclass(frozen=True)
class HeadsPlan:
    """Sweep 3: one task is one head of one block of at most ``qb.mc`` tokens.

    A task computes the head's qk_nope + qk_rope columns (``qb``), rotates the rope part, and multiplies the nope part
    by the head's w_uk (``wuk``) in row blocks of at most ``wuk.mc``. ``grain`` is the number of tasks a worker takes at
    a time.
    """

    qb: GemmPlan
    wuk: GemmPlan
    grain: int

    def __post_init__(self) -> None:
        """Check that both products belong together and that the inner blocks fit the task."""
        check_int("grain", self.grain, 1)
        for name in ("m", "batch"):
            qb, wuk = getattr(self.qb, name), getattr(self.wuk, name)
            if qb != wuk:
                raise ValueError(f"wuk.{name}: expected that of qb, {qb}, got {wuk}")
        if self.wuk.mc > self.qb.mc:
            raise ValueError(f"wuk.mc: expected at most qb.mc = {self.qb.mc}, got {self.wuk.mc}")

    @property
    def n_tasks(self) -> int:
        """Heads times token blocks."""
        return self.qb.batch * self.qb.n_row_blocks

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Head and rows ``(head, m0, m1)`` of each task; row blocks innermost, so that neighbours share a head."""
        for head in range(self.qb.batch):
            for m0, m1 in self.qb.row_blocks():
                yield head, m0, m1

    def nope_rows(self, m0: int, m1: int) -> list[tuple[int, int]]:
        """Row blocks of ``wuk`` within a task's rows ``(m0, m1)``: an even cut."""
        return [(m0 + a, m0 + b) for a, b in chunks(m1 - m0, ceil_div(m1 - m0, self.wuk.mc))]

    def __str__(self) -> str:
        """One line."""
        return f"heads: {self.n_tasks} tasks by {self.grain}"


@dataclass(frozen=True)
class TilePlan:
    """The three sweeps over one tile of ``t`` tokens, by ``n_workers`` threads."""

    t: int
    n_workers: int
    down: DownPlan
    rows: RowPlan
    heads: HeadsPlan

    def __post_init__(self) -> None:
        """Check that the sweeps are about the same tokens."""
        check_int("t", self.t, 1, MAX_TOKENS)
        check_int("n_workers", self.n_workers, 1, MAX_THREADS)
        for name, t in (("down", self.down.qa.m), ("rows", self.rows.t), ("heads", self.heads.qb.m)):
            if t != self.t:
                raise ValueError(f"{name}: expected a plan for {self.t} tokens, got one for {t}")

    @property
    def gemms(self) -> tuple[GemmPlan, GemmPlan, GemmPlan, GemmPlan]:
        """The four products by ordinal."""
        return self.down.qa, self.heads.qb, self.down.kva, self.heads.wuk

    @property
    def shared_workspace(self) -> dict[str, int]:
        """Bytes of each buffer that all workers share, rounded up to cache lines.

        ``x_rows`` hidden states as operands, ``x_scale`` their fp32 scales (int8 down projections only), ``q_a`` and
        ``kv_a`` the bf16 down projections, ``q_rows`` normalised queries as operands of the up projection.
        """
        qa, qb, kva, _ = self.gemms
        sizes = {
            "x_rows": self.t * qa.lda * qa.micro.a_bytes,
            "x_scale": self.t * 4 if qa.dtype == "int8" else 0,
            "q_a": self.t * qa.n * 2,
            "kv_a": self.t * kva.n * 2,
            "q_rows": self.t * qb.lda * qb.micro.a_bytes,
        }
        return {name: round_up(size, _CACHE_LINE_BYTES) for name, size in sizes.items() if size > 0}

    @property
    def worker_workspace(self) -> dict[str, int]:
        """Bytes of each buffer of one worker, rounded up to cache lines.

        ``c`` accumulators of a task, ``q_head`` the columns of one head as operands of the product with w_uk, ``y`` one
        fp32 row on its way to codes, with 16 lanes of sums behind it.
        """
        qa, qb, _, wuk = self.gemms
        hidden = qa.k if qa.dtype == "int8" else 0
        row = max(self.rows.q_lora_rank, self.rows.kv_lora_rank, self.rows.qk_rope_head_dim, hidden)
        sizes = {
            "c": max(gemm.accumulator_bytes for gemm in self.gemms),
            "q_head": qb.mc * qb.np_ * wuk.micro.a_bytes,
            "y": (row + 16) * 4,
        }
        return {name: round_up(size, _CACHE_LINE_BYTES) for name, size in sizes.items()}

    @property
    def workspace(self) -> dict[str, int]:
        """Bytes of every buffer, those of the workers for all of them together."""
        return self.shared_workspace | {name: self.n_workers * size for name, size in self.worker_workspace.items()}

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(self.workspace.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, each read once."""
        return sum(gemm.weight_bytes for gemm in self.gemms)

    @property
    def activation_bytes(self) -> int:
        """Bytes that must move besides the weights: inputs once, outputs and cache rows once, nothing in between."""
        qa, _, _, wuk = self.gemms
        rope = self.rows.qk_rope_head_dim
        inputs = self.t * (2 * qa.k + 2 * 2 * rope + 8)
        queries = self.t * wuk.batch * (wuk.n + rope) * 2
        return inputs + self.rows.written_bytes + queries

    @property
    def flops(self) -> int:
        """Operations of the bf16 products."""
        return sum(gemm.ops for gemm in self.gemms if gemm.dtype == "bf16")

    @property
    def int8_ops(self) -> int:
        """Operations of the int8 products."""
        return sum(gemm.ops for gemm in self.gemms if gemm.dtype == "int8")

    def __str__(self) -> str:
        """One line."""
        workers = "1 worker" if self.n_workers == 1 else f"{self.n_workers} workers"
        return (
            f"tile of {self.t}: {workers}; {self.down}; {self.rows}; {self.heads}; "
            f"workspace {self.workspace_bytes / 2**20:.2f} MiB"
        )


@dataclass(frozen=True)
class PrologPlan:
    """How ``t`` tokens go through the prolog on one machine, and why so.

    - ``tiles``: ``(offset, factor)`` of each tile of tokens; ``tile_plans``: one plan per distinct factor.
    - ``n_threads``: threads asked for; ``n_workers``: most threads any tile uses.
    - ``acting``: ``(setting, value, effect)`` of each given setting that acted; ``inert``: ``(setting, value, reason)``
      of each that did not; both are empty if nothing was given.
    - ``reasons``: ``(choice, reason)`` of each choice the planner made.
    - ``origin``: where the blocks come from: "planner", "config" (an ``MlaTileConfig``), "tiling" (a ``CpuTiling``, the
      rest by the planner) or "tuned" (one that a search found on this machine). ``tiling``: what was prescribed.
    - ``costs``: the constants of the model by which the planner chose.
    """

    dims: PlanDims
    t: int
    phase: str
    quant: str
    n_threads: int
    machine: Machine
    unroll_list: tuple[int, ...]
    tiles: tuple[tuple[int, int], ...]
    tile_plans: tuple[TilePlan, ...]
    acting: tuple[tuple[str, str, str], ...]
    inert: tuple[tuple[str, str, str], ...]
    reasons: tuple[tuple[str, str], ...]
    origin: str
    tiling: CpuTiling
    costs: Costs

    def __post_init__(self) -> None:
        """Check that the tiles cover the tokens in order and that each has its plan, for these dimensions."""
        check_int("t", self.t, 0, MAX_TOKENS)
        check_int("n_threads", self.n_threads, 1, MAX_THREADS)
        check_ints("unroll_list", self.unroll_list, 1)
        check_choice("phase", self.phase, PHASES)
        check_choice("origin", self.origin, ORIGINS)
        end = 0
        for offset, factor in self.tiles:
            if offset != end:
                raise ValueError(f"tiles: expected one that begins at token {end}, got {offset}")
            end += check_int("tiles: factor", factor, 1)
        if end != self.t:
            raise ValueError(f"tiles: expected {self.t} tokens, got {end}")
        factors = list(dict.fromkeys(factor for _, factor in self.tiles))
        if [tile.t for tile in self.tile_plans] != factors:
            raise ValueError(f"tile_plans: expected one for each of {factors}, got {[p.t for p in self.tile_plans]}")
        shapes = stage_shapes(self.dims, self.quant)
        for tile in self.tile_plans:
            for shape, gemm in zip(shapes, tile.gemms, strict=True):
                if not shape.matches(gemm):
                    raise ValueError(f"tile_plans: expected {shape}, got {gemm}")

    @cached_property
    def _plan_of(self) -> dict[int, TilePlan]:
        return {tile.t: tile for tile in self.tile_plans}

    def tile_plan(self, factor: int) -> TilePlan:
        """The plan of the tiles of ``factor`` tokens."""
        if factor not in self._plan_of:
            raise ValueError(f"factor: expected one of {sorted(self._plan_of)}, got {factor}")
        return self._plan_of[factor]

    def _sum(self, name: str) -> int:
        return sum(getattr(self.tile_plan(factor), name) for _, factor in self.tiles)

    @property
    def n_workers(self) -> int:
        """Most threads any tile uses, 1 if there is no tile."""
        return max((tile.n_workers for tile in self.tile_plans), default=1)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read: all of them once per tile of tokens."""
        return self._sum("weight_bytes")

    @property
    def activation_bytes(self) -> int:
        """Bytes of inputs, outputs and cache rows."""
        return self._sum("activation_bytes")

    @property
    def total_bytes(self) -> int:
        """Bytes of weights and activations."""
        return self.weight_bytes + self.activation_bytes

    @property
    def flops(self) -> int:
        """Operations of the bf16 products."""
        return self._sum("flops")

    @property
    def int8_ops(self) -> int:
        """Operations of the int8 products."""
        return self._sum("int8_ops")

    @cached_property
    def workspace_bytes(self) -> int:
        """Bytes of the largest tile's buffers; the tiles use them one after the other."""
        return max((tile.workspace_bytes for tile in self.tile_plans), default=0)

    def chooser(self, tile: TilePlan) -> Chooser:
        """What chooses, or would choose, the blocks of a tile of this plan."""
        micro = {gemm.dtype: gemm.micro for gemm in tile.gemms}
        return Chooser(
            stage_shapes(self.dims, self.quant), micro, self.machine, self.costs, tile.t, tile.n_workers, self.tiling
        )

    def to_json(self) -> str:
        """JSON text of the whole plan."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that ``to_json`` wrote; it is checked again."""
        return from_json(cls, text)

    def __str__(self) -> str:
        """A line on the whole, then one on each tile and each of its products."""
        sizes = [(factor, len(list(same))) for factor, same in groupby(factor for _, factor in self.tiles)]
        tiles = " + ".join(f"{n} x {factor}" for factor, n in sizes) or "none"
        lines = [
            f"{self.phase} of {self.t} tokens, quant {self.quant}, {self.n_threads} threads on {self.machine.name}: "
            f"tiles {tiles}; {self.total_bytes / 1e6:.1f} MB, {self.flops / 1e9:.2f} Gflop, "
            f"{self.int8_ops / 1e9:.2f} Gop{'; tuned' if self.origin == 'tuned' else ''}"
        ]
        for tile in self.tile_plans:
            lines += [f"  {tile}", *(f"    {gemm}" for gemm in tile.gemms)]
        return "\n".join(lines)

    def explain(self) -> str:
        """The plan, each choice with its reason, and each given setting with what it did or why it did nothing.

        Where the planner chose, also its candidates: the best with the model's word on them, and why others were
        refused.
        """
        lines = [str(self), "", f"Machine: {self.machine}", "", "Choices:"]
        lines += [f"  {choice}: {reason}" for choice, reason in self.reasons]
        lines += ["", "Settings that act:"]
        lines += [f"  {name} = {value}: {effect}" for name, value, effect in self.acting] or ["  none given"]
        lines += ["", "Settings without effect on a CPU:"]
        lines += [f"  {name} = {value}: {reason}" for name, value, reason in self.inert] or ["  none given"]
        if self.origin != "config":
            for tile in self.tile_plans:
                lines += ["", f"Candidates for a tile of {tile.t}:", *candidate_lines(self.chooser(tile))]
        return "\n".join(lines)
