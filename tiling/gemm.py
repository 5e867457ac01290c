"""The plan of one matrix product: register tile, cache blocks, tasks."""

from dataclasses import dataclass

from tiling.arith import ceil_div, round_up
from tiling.check import (
    MAX_COUNT,
    MAX_TOKENS,
    check_choice,
    check_int,
    short_int,
)
from tiling.modes import DTYPES, Dtype
from tiling.roofline import Work

__all__ = ["DTYPES", "ITEM_BYTES", "LINE_BYTES", "PAIR_BYTES", "GemmPlan", "MicroTile", "apart", "row_distance"]


LINE_BYTES = 64  # of a cache line
PAIR_BYTES = 2 * LINE_BYTES  # cores fetch lines in pairs
_APART_BYTES = 4096  # how far ahead a core may fetch by itself: no further than to the end of a page
_MAX_MICRO = 4096
_MAX_SIZE = 2 * MAX_COUNT  # of k or n: two dimensions beside each other
ITEM_BYTES = {"bf16": 2, "int8": 1}
_COLUMN_BYTES = {"bf16": 0, "int8": 8}  # int8: an fp32 scale and an int32 compensation per packed column


def apart(n_bytes: int, unit: int = LINE_BYTES) -> int:
    """Bytes from what one worker writes, ``n_bytes`` of it, to what the next one writes, in whole units.

    A core fetches ahead of what it reads and writes, up to the end of a page. Without a page between them it would take
    lines from another core that is writing to them, which costs both of them more than the work itself may take.
    """
    return round_up(n_bytes + _APART_BYTES, unit)


def row_distance(n: int, item_bytes: int) -> int:
    """Elements from one row of ``n`` to the next where a microkernel reads the rows: whole cache lines, an odd number.

    A register tile reads its rows side by side. An even number of lines, a power of two most of all, puts them on few
    sets of L1, where they push each other out or are taken for one another; an odd one puts them all on other sets.
    """
    return (ceil_div(n * item_bytes, LINE_BYTES) | 1) * LINE_BYTES // item_bytes


@dataclass(frozen=True)
class MicroTile:
    """Register tile of a microkernel, dictated by the instruction set.

    ``mr`` rows by ``nr`` columns of the output stay in registers; ``kr`` elements of k are taken by one instruction.
    ``a_bytes`` is the size of one packed element of A: 4 where bf16 is widened to fp32, 1 or 2 for int8 codes. A row of
    A ends with ``a_begin`` more elements, for what its sums begin with.
    Tiles of at most ``two_panels`` rows may take two panels at once, where a walk has more than one.
    ``plan_prolog`` has an example.
    """

    mr: int
    nr: int
    kr: int
    a_bytes: int
    two_panels: int = 0
    a_begin: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("mr", "nr", "kr", "a_bytes"):
            check_int(name, getattr(self, name), 1, _MAX_MICRO)
        check_int("two_panels", self.two_panels, 0, self.mr)
        check_int("a_begin", self.a_begin, 0, _MAX_MICRO)

    def has_two_panels(self, rows: int) -> bool:
        """Whether one of the tiles that the kernels cut ``rows`` rows into takes two panels at once.

        Args:
            rows: The rows of a token block.

        Returns:
            Whether one does.
        """
        n_tiles, few = ceil_div(rows, self.mr), self.two_panels
        if n_tiles <= 1 or rows // n_tiles <= few:
            return 0 < rows // max(n_tiles, 1) <= few
        return 0 < few == rows // n_tiles - 1 and rows - few <= (n_tiles - 1) * self.mr

    def __str__(self) -> str:
        """One line."""
        return f"mr{self.mr} nr{self.nr} kr{self.kr}"


@dataclass(frozen=True)
class GemmPlan:
    """How one product ``(m, k) @ (k, n)``, ``batch`` times with a weight each, is cut into tasks and blocks.

    - ``stage``: name of the step; ``dtype``: the weight's type, "bf16" or "int8".
    - ``k_parts``: number of separate sums over even parts of k, added at the end.
    - ``mc``: rows of a task's block at most, 1 where m is 0; ``kc``: k elements per block, a multiple of kr within one
      part; ``nc``: columns of one tile, a multiple of nr.
    - ``l1_reuse``: tiles that share one block of A in cache.

    - ``m, k, n``: sizes of the product; ``micro``: its register tile.

    A task is one row block by one walk: ``walk`` panels of nr columns, one after the other over the same A block.
    ``plan_prolog`` has an example.
    """

    stage: str
    dtype: Dtype
    batch: int
    m: int
    k: int
    n: int
    k_parts: int
    micro: MicroTile
    mc: int
    kc: int
    nc: int
    l1_reuse: int

    def __post_init__(self) -> None:
        """Check that the blocks fit the product and the register tile."""
        check_choice(f"{self.stage}.dtype", self.dtype, DTYPES)
        check_int(f"{self.stage}.m", self.m, 0, MAX_TOKENS)
        for name in ("batch", "l1_reuse"):
            check_int(f"{self.stage}.{name}", getattr(self, name), 1)
        for name in ("k", "n"):
            check_int(f"{self.stage}.{name}", getattr(self, name), 1, _MAX_SIZE)
        for name in ("k_parts", "mc", "kc", "nc"):  # the product bounds them
            check_int(f"{self.stage}.{name}", getattr(self, name), 1, None)
        self._expect("k", self.k % self.k_parts == 0, f"a multiple of k_parts = {self.k_parts}")
        self._expect("mc", self.mc <= max(self.m, 1), f"at most m = {self.m}, or 1")
        self._expect("kc", self.kc % self.micro.kr == 0, f"a multiple of kr = {self.micro.kr}")
        self._expect("kc", self.kc <= self.part_kp, f"at most the padded part of k, {self.part_kp}")
        self._expect("nc", self.nc % self.micro.nr == 0, f"a multiple of nr = {self.micro.nr}")
        self._expect("nc", self.nc <= self.np_, f"at most the padded n, {self.np_}")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{self.stage}.{name}: expected {expected}, got {short_int(getattr(self, name))}")

    @property
    def part_kp(self) -> int:
        """Length of one part of k, padded to kr."""
        return round_up(self.k // self.k_parts, self.micro.kr)

    @property
    def kp(self) -> int:
        """Length of k with each part padded to kr."""
        return self.k_parts * self.part_kp

    @property
    def n_steps(self) -> int:
        """Steps of k: what one instruction takes of it is one."""
        return self.kp // self.micro.kr

    @property
    def lda(self) -> int:
        """Elements from one row of A to the next."""
        return row_distance(self.kp + self.micro.a_begin, self.micro.a_bytes)

    @property
    def n_panels(self) -> int:
        """Panels of nr columns of one weight."""
        return ceil_div(self.n, self.micro.nr)

    @property
    def np_(self) -> int:
        """Columns of one weight, padded to nr."""
        return self.n_panels * self.micro.nr

    @property
    def walk(self) -> int:
        """Panels a task walks at most while its A block stays in cache."""
        return min(self.n_panels, self.l1_reuse * self.nc // self.micro.nr)

    @property
    def n_row_blocks(self) -> int:
        """Row blocks of m."""
        return ceil_div(self.m, self.mc)

    @property
    def n_walks(self) -> int:
        """Walks of one weight."""
        return ceil_div(self.n_panels, self.walk)

    @property
    def n_tasks(self) -> int:
        """Tasks of the whole product."""
        return self.batch * self.n_row_blocks * self.n_walks

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights; int8 ones with 4 bytes of scale and 4 of compensation per packed column."""
        columns = self.batch * self.np_
        return columns * (self.kp * ITEM_BYTES[self.dtype] + _COLUMN_BYTES[self.dtype])

    @property
    def ops(self) -> int:
        """Multiplications and additions, padding not counted."""
        return 2 * self.batch * self.m * self.k * self.n

    @property
    def work(self) -> Work:
        """Bytes of the weights, and the operations by the weight's type."""
        is_bf16 = self.dtype == "bf16"
        return Work(self.weight_bytes, flops=self.ops if is_bf16 else 0, int8_ops=0 if is_bf16 else self.ops)

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of a task's 4-byte accumulators, one set for each part of k."""
        return self.k_parts * self.mc * self.walk * self.micro.nr * 4

    def __str__(self) -> str:
        """One line."""
        heads = "" if self.batch == 1 else f"{self.batch} x "
        parts = "" if self.k_parts == 1 else f" in {self.k_parts} parts"
        return (
            f"{self.stage} {self.dtype} {heads}m{self.m} k{self.k}{parts} n{self.n}: {self.micro}, "
            f"mc{self.mc} kc{self.kc} nc{self.nc}, walk {self.walk} of {self.n_panels} panels, {self.n_tasks} tasks"
        )
