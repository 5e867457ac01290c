"""The plans of the three sweeps over one tile of tokens."""

from dataclasses import dataclass

from tiling.arith import ceil_div
from tiling.check import MAX_TOKENS, check_flag, check_int
from tiling.gemm import ITEM_BYTES, GemmPlan, row_distance
from tiling.roofline import Work

__all__ = ["DownPlan", "HeadsPlan", "RowPlan"]


@dataclass(frozen=True)
class DownPlan:
    """Sweep 1: both products of the hidden states, in one parallel region. ``plan_prolog`` has an example.

    ``grain`` is the number of tasks a worker takes at a time; the tasks of ``qa`` come before those of ``kva``. With
    more than one of ``legs``, that many tasks take a walk's k one after the other, each going on with the sums of the
    one before: first come the first legs of all walks.
    """

    qa: GemmPlan
    kva: GemmPlan
    grain: int
    legs: int = 1

    def __post_init__(self) -> None:
        """Check that both products read the same operand, and that each leg has a step of k."""
        check_int("grain", self.grain, 1)
        check_int("legs", self.legs, 1)
        n_steps = self.qa.kp // self.qa.micro.kr
        if self.legs > n_steps:
            raise ValueError(f"legs: expected at most {n_steps}, the steps of k, got {self.legs}")
        for name in ("m", "k", "dtype", "micro"):
            qa, kva = getattr(self.qa, name), getattr(self.kva, name)
            if qa != kva:
                raise ValueError(f"kva.{name}: expected that of qa, {qa}, got {kva}")

    @property
    def n_relays(self) -> int:
        """Walks and token blocks of both products."""
        return self.qa.n_tasks + self.kva.n_tasks

    @property
    def n_tasks(self) -> int:
        """Tasks of both products."""
        return self.n_relays * self.legs

    @property
    def relay_bytes(self) -> int:
        """Bytes of the sums that legs hand on, 0 where there is one leg alone."""
        return self.n_relays * max(self.qa.accumulator_bytes, self.kva.accumulator_bytes) if self.legs > 1 else 0

    @property
    def work(self) -> Work:
        """Bytes of weights, hidden states and results, and the operations."""
        return self.qa.work + self.kva.work + Work(2 * self.qa.m * (self.qa.k + self.qa.n + self.kva.n))

    def __repr__(self) -> str:
        """The line of ``str`` in brackets."""
        return f"<DownPlan: {self}>"

    def __str__(self) -> str:
        """One line."""
        legs = f" in {self.legs} legs" if self.legs > 1 else ""
        return f"down: {self.n_tasks} tasks by {self.grain}{legs}"


@dataclass(frozen=True)
class RowPlan:
    """Sweep 2: the elementwise steps, in tasks of whole token rows. ``plan_prolog`` has an example.

    Query rows (RmsNorm_qa, Quant_qMnRes) go in tasks of ``rows_q`` tokens at most, key rows (RmsNorm_compressedkv,
    Quant_knope, RotaryPosEmb, ScatterUpdate_*) in tasks of ``rows_k``. There are ``t`` rows, of ``q_lora_rank``,
    ``kv_lora_rank`` and ``qk_rope_head_dim`` elements. ``quantised`` says whether codes and scales are
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

    @property
    def work(self) -> Work:
        """Bytes read and written; elementwise operations are not counted."""
        return Work(self.activation_bytes)

    def __repr__(self) -> str:
        """The line of ``str`` in brackets."""
        return f"<RowPlan: {self}>"

    def __str__(self) -> str:
        """One line."""
        return f"rows: {self.n_tasks} tasks, rows_q {self.rows_q} rows_k {self.rows_k}"


@dataclass(frozen=True)
class HeadsPlan:
    """Sweep 3: one task is one head of one block of at most ``qb.mc`` tokens. ``plan_prolog`` has an example.

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
    def ldq(self) -> int:
        """Elements from one row to the next of a head's query, whose nope part is the A of the product with w_uk."""
        return row_distance(self.qb.np_, self.wuk.micro.a_bytes)

    @property
    def n_tasks(self) -> int:
        """Heads times token blocks."""
        return self.qb.batch * self.qb.n_row_blocks

    @property
    def work(self) -> Work:
        """Bytes of weights, normalised queries and results, and the operations."""
        rope = self.qb.n - self.wuk.k
        row = self.qb.k * ITEM_BYTES[self.qb.dtype] + 2 * self.wuk.batch * (self.wuk.n + rope)
        return self.qb.work + self.wuk.work + Work(self.qb.m * row)

    def __repr__(self) -> str:
        """The line of ``str`` in brackets."""
        return f"<HeadsPlan: {self}>"

    def __str__(self) -> str:
        """One line."""
        return f"heads: {self.n_tasks} tasks by {self.grain}"
