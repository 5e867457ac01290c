"""The constants of the planner's model: measured once for each instruction set, of AArch64 predicted."""

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Self

from tiling.check import check_rate, check_str
from tiling.json import JsonText
from tiling.modes import IsaName
from tiling.rates import Rates

__all__ = ["COSTS_FILE", "Costs"]

COSTS_FILE = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class Costs(JsonText):
    """Constants of the planner's model, per second or in seconds; rates are those of one core unless said otherwise.

    - ``memory_bytes_s``: bytes all threads together read from memory at most, ``core_bytes_s``: one of them.
    - ``l3_bytes_s, l2_bytes_s``: bytes of operands that are read again from these caches, ``c_bytes_s``: bytes of
      accumulators that do not stay in L1d.
    - ``bf16_flops_s, int8_ops_s``: operations of full register tiles whose operands are in L1d.
    - ``step_rows``: rows that would take as long as loading B does in each step of k of a register tile.
    - ``call_s``: a microkernel's begin and end, which load and store its accumulators.
    - ``walk_s``: a walk's begin and end; ``jump_s``: going on in another panel, where the read ahead ends.
    - ``element_s``: one element of a sweep's results, scaled, rounded and stored; ``row_s``: one token's elementwise
      steps.
    - ``task_s``: drawing a task; ``launch_s``: waking the other threads, once a tile of tokens.
    - ``overlap_loss``: the part of the shorter of moving and computing that is not hidden behind the longer.

    Of avx512 and avxvnni only the rates of operations are measured; the others are those of avx512vnni and avx2.
    Those of AArch64 are not measured: rates of operations are what llvm-mca predicts for a Neoverse V2 at 3 GHz
    (neoni8mm), a Neoverse N1 at 3 GHz (neondot) and a Cortex-A72 at 1.8 GHz (neon), the others round numbers of the
    order that such machines have. ``mla-numba tune`` measures the rates of a machine.

    Examples:
        >>> from tiling import Costs
        >>> costs = Costs.of_isa("portable")
        >>> costs.core_bytes_s <= costs.memory_bytes_s
        True
    """

    memory_bytes_s: float
    core_bytes_s: float
    l3_bytes_s: float
    l2_bytes_s: float
    c_bytes_s: float
    bf16_flops_s: float
    int8_ops_s: float
    step_rows: float
    call_s: float
    walk_s: float
    jump_s: float
    element_s: float
    row_s: float
    task_s: float
    launch_s: float
    overlap_loss: float

    def __post_init__(self) -> None:
        """Check that each constant is positive and finite."""
        for f in fields(self):
            check_rate(f.name, getattr(self, f.name))

    @staticmethod
    def of_isa(isa: IsaName) -> "Costs":
        """The constants that come with the package.

        Args:
            isa: An instruction set of ``machine.ISA_NAMES``.

        Returns:
            Its constants.

        Raises:
            TypeError: ``isa`` is no string.
            ValueError: There is no such instruction set.
        """
        return _of_isa(check_str("isa", isa))

    def with_rates(self, rates: Rates, n_threads: int) -> Self:
        """These constants with what threads of a machine were measured to reach.

        Args:
            rates: What they reach together.
            n_threads: How many they are.

        Returns:
            Constants of that machine.
        """
        return replace(
            self,
            memory_bytes_s=rates.bandwidth_bytes_s,
            core_bytes_s=max(self.core_bytes_s, rates.bandwidth_bytes_s / n_threads),
            bf16_flops_s=max(rates.flops_s, rates.bf16_flops_s or 0) / n_threads,
            int8_ops_s=rates.ops_s / n_threads,
        )


@cache
def _of_isa(isa: str) -> Costs:
    table = json.loads(COSTS_FILE.read_text(encoding="utf-8"))
    if isa not in table:
        raise ValueError(f"isa: expected one of {', '.join(table)}, got {isa!r}")
    return Costs(**table[isa])
