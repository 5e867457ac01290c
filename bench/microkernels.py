"""Measure the microkernels by themselves, one thread, operands in cache: which share of the machine's peak they reach.

`python bench/microkernels.py` prints a row for each kind of weight, with register tiles of all MR rows and of one row.
The same rows of A and one panel of B are multiplied again and again, and the peaks are measured in turns with that. The
first products of each are compared with the microkernel's oracle, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, NamedTuple

import click
import numba
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table

from mla_numba.base.memory import aligned_empty
from mla_numba.call.planning import this_machine
from mla_numba.cli.options import finite, json_option
from mla_numba.cli.shown import share_text
from mla_numba.kernels import ISA
from mla_numba.kernels.llvm_ir import IN_L1
from mla_numba.kernels.micro.operands import A, B, C
from mla_numba.kernels.micro.ukernel import A_BF16_DTYPE, A_INT8_DTYPE, A_OFFSET, MR, NR, ukernel
from mla_numba.tuning.rates import Probes
from mla_numba.weights import packed_gemm

Array = np.ndarray[Any, Any]
N_TILES = 11  # register tiles below each other: 132 rows of 12, and a panel of B that stays in L1 meanwhile


@numba.njit
def multiply(n_times: int, mr: int, k: int, a: Array, b: Array, c: Array, no_subnormals: bool) -> None:
    """`n_times` over, every tile of A times the panel; the last sums are left in c."""
    for _ in range(n_times):
        for tile in range(N_TILES):
            rows, sums = A(a, tile * mr * k, k), C(c, tile * mr * NR, False)
            ukernel(mr, k, rows, B(b, 0, 0, 0, IN_L1), sums, no_subnormals)


@dataclass(frozen=True)
class Case:
    """A microkernel on operands: `peak` is the field of `Rates` that limits it."""

    name: str
    mr: int
    k: int
    peak: str
    a: Array
    b: Array
    no_subnormals: bool

    @property
    def n_ops(self) -> int:
        """Operations of one pass; a multiply-add is two."""
        return 2 * N_TILES * self.mr * NR * self.k

    def run(self, n_times: int, c: Array) -> None:
        """Passes over the operands, into c."""
        multiply(n_times, self.mr, self.k, self.a, self.b, c, self.no_subnormals)

    def sums(self) -> Array:
        """Room for the sums of all tiles."""
        return np.zeros(N_TILES * self.mr * NR, np.int32 if self.b.dtype == np.int8 else np.float32)

    def check(self) -> None:
        """Raises unless one pass gives the oracle's bits."""
        got, want = self.sums(), self.sums()
        self.run(1, got)
        for tile in range(N_TILES):
            rows, sums = A(self.a, tile * self.mr * self.k, self.k), C(want, tile * self.mr * NR, False)
            ukernel(self.mr, self.k, rows, B(self.b, 0, 0, 0, IN_L1), sums, self.no_subnormals)
        if (got.view(np.int32) != want.view(np.int32)).any():
            raise click.ClickException(f"{self.name}: not the bits of its oracle")


def cases(k: int) -> Iterator[Case]:
    """int8, bf16 and, where pairs have an instruction of their own, bf16 by multiply-adds; of MR rows and of one."""
    rng = np.random.default_rng(0)
    codes = (rng.integers(-127, 128, N_TILES * MR * k) + int(A_OFFSET)).astype(A_INT8_DTYPE)
    real = rng.standard_normal(N_TILES * MR * k).astype(packed_gemm.BF16)
    a_bf16 = real.view(np.uint16) if np.uint16 == A_BF16_DTYPE else real.astype(np.float32)
    weight, bits = aligned_empty(k * NR, np.int8), aligned_empty(k * NR, np.uint16)  # as packed weights are
    weight[:] = rng.integers(-127, 128, k * NR)
    bits[:] = rng.standard_normal(k * NR).astype(packed_gemm.BF16).view(np.uint16)
    for mr in (MR, 1):
        yield Case("int8", mr, k, "ops_s", codes, weight, True)
        yield Case("bf16", mr, k, "bf16_flops_s" if ISA.bf16_dot else "flops_s", a_bf16, bits, True)
    if ISA.bf16_dot:
        yield Case("bf16 by multiply-adds", 1, k, "flops_s", a_bf16, bits, False)


def best_seconds(run: Callable[[], None], seconds: float) -> float:
    """The shortest of the runs that fit into `seconds`, three at least."""
    times, end = [], perf_counter() + seconds
    while len(times) < 3 or perf_counter() < end:
        begin = perf_counter()
        run()
        times.append(perf_counter() - begin)
    return min(times)


class Measured(NamedTuple):
    """Operations a second of a case, and of its peak."""

    case: Case
    ops_s: float
    peak_ops_s: float

    @property
    def share(self) -> float:
        """The share of the peak; more than 1 where that was measured in a slower moment."""
        return self.ops_s / self.peak_ops_s

    @property
    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        numbers = {"ops_s": self.ops_s, "peak_ops_s": self.peak_ops_s, "share": self.share}
        return {"weight": self.case.name, "mr": self.case.mr, "nr": NR, "k": self.case.k, **numbers}


def measure(case: Case, probes: Probes, seconds: float) -> Measured:
    """Times a case and its peak in turns."""
    case.check()
    c = case.sums()
    n_times = max(int(2e7) // case.n_ops, 1)  # about a tenth of a millisecond
    rates, peaks = [], []
    for _ in range(3):
        took = best_seconds(lambda: case.run(n_times, c), seconds / 3)
        rates.append(n_times * case.n_ops / took)
        peaks.append(getattr(probes.rates(1, seconds / 3), case.peak))
    return Measured(case, max(rates), max(peaks))


def show(kernels: list[Measured], k: int) -> None:
    """Prints a row for each."""
    shown = Table(
        Column("weight"), *(Column(h, justify="right") for h in ("tile", "Gop/s", "peak", "share")), box=box.MARKDOWN
    )
    for case, rate, peak in kernels:
        tile = f"{case.mr} x {NR}"
        shown.add_row(case.name, tile, f"{rate / 1e9:.0f}", f"{peak / 1e9:.0f}", share_text(rate / peak))
    console = Console()
    console.print(f"{this_machine()}; one thread, k = {k}", soft_wrap=True)
    console.print(shown)
    if max(kernel.share for kernel in kernels) > 1:
        console.print(
            "(!) more than 100 %: the peak was measured in a slower moment than the microkernel; no share of it"
        )


@click.command(help=__doc__)
@click.option("--k", default=512, type=click.IntRange(1), show_default=True, help="Length of k, a multiple of KR.")
@click.option(
    "--seconds", default=0.6, type=click.FloatRange(0, 3600), show_default=True, callback=finite,
    help="Of measuring each.",
)  # fmt: skip
@json_option
def main(k: int, seconds: float, as_json: bool) -> None:
    kr = max(ISA.kr_bf16, ISA.kr_int8)
    if k % kr:
        raise click.UsageError(f"--k: expected a multiple of {kr}, got {k}")
    probes = Probes(1)
    kernels = [measure(case, probes, seconds) for case in cases(k)]
    if as_json:
        machine = asdict(this_machine())
        click.echo(json.dumps({"machine": machine, "kernels": [kernel.as_dict for kernel in kernels]}))
    else:
        show(kernels, k)


if __name__ == "__main__":
    main()
