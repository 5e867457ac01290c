"""Predict how near the microkernels come to the limit of a CPU's ports, for CPUs that are not here.

`python bench/port_limits.py` compiles the microkernels of every instruction set for CPUs that have it, takes the loop
over k of a full register tile, and asks llvm-mca (of the package `llvm` of Linux distributions) how many cycles a turn
takes. The limit is what the multiplications alone would take, spread evenly over the ports that can do them. "put
right" is the share of it where llvm-mca's tables are put right (`shared/table_faults.py`), and "of all" then the share
of what all vector instructions of the loop take but loads: also those that widen and spread operands. `--loops` prints
the loops, `--markdown` a table for the documentation; with `--measure` that has a column of what
`bench/microkernels.py` measures on this machine.

Predicted is one core whose operands are all in L1. docs/instruction_sets.md says how the tables' faults are known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
from rich import box
from rich.table import Column, Table
from shared.inner_loops import InnerLoop, loops_of
from shared.llvm_mca import Prediction, find_llvm_mca, predict

from mla_numba.cli.shown import print_wide, share_text
from mla_numba.kernels import CHOICE, ISA, ISA_VARIABLE, ISAS
from mla_numba.kernels.micro.assembly import Target

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
# CPUs that have an instruction set, and whose ports llvm-mca has a table of.
TARGETS = {
    "avx512bf16": (Target(X86, "sapphirerapids"), Target(X86, "znver4")),
    "avx512vnni": (Target(X86, "cascadelake"), Target(X86, "icelake-server")),
    "avx512": (Target(X86, "skylake-avx512"),),
    "avxvnni": (Target(X86, "alderlake"),),
    "avx2": (Target(X86, "haswell"), Target(X86, "skylake"), Target(X86, "znver3")),
    "neoni8mm": (Target(ARM, "neoverse-v2"),),
    "neondot": (Target(ARM, "neoverse-n1"), Target(ARM, "apple-m1")),
    "neon": (Target(ARM, "cortex-a72"),),
}
CPUS = sorted({target.cpu for targets in TARGETS.values() for target in targets})


class Row(NamedTuple):
    """A microkernel on a CPU."""

    isa: str
    product: str
    tile: str
    cpu: str
    loop: InnerLoop
    prediction: Prediction
    right: Prediction  # where the tables are put right

    @property
    def instructions(self) -> str:
        """What multiplies, and how often in a turn."""
        return ", ".join(f"{n} {name}" for name, n in Counter(map(_mnemonic, self.loop.multiplies)).items())


def _mnemonic(line: str) -> str:
    return line.removeprefix("{vex}").split()[0]


def rows_of(isa: str, target: Target, llvm_mca: str) -> list[Row]:
    """Both microkernels of an instruction set on a CPU."""
    tile = f"{ISAS[isa].mr} x {ISAS[isa].nr}"
    return [
        Row(
            isa,
            "int8" if kernel.is_int8 else "bf16",
            tile,
            target.cpu,
            loop,
            predict(llvm_mca, target, loop),
            predict(llvm_mca, target, loop, tables_right=True),
        )
        for kernel, loop in loops_of(ISAS[isa], target.assembly(ISAS[isa]))
    ]


def measured_shares(isas: set[str]) -> dict[tuple[str, str], float]:
    """The share of the peak by instruction set and product, of those that this CPU can run, each in its process."""
    shares = {}
    for isa in (name for name in (ISA.name, *CHOICE.others) if name in isas):
        script = str(Path(__file__).with_name("microkernels.py"))
        environment = os.environ | {ISA_VARIABLE: isa}
        done = subprocess.run([sys.executable, script, "--json"], env=environment, stdout=subprocess.PIPE, check=True)
        for kernel in json.loads(done.stdout)["kernels"]:
            if kernel["mr"] == ISAS[isa].mr:
                shares[isa, kernel["weight"]] = kernel["share"]
    return shares


def table_of(rows: list[Row]) -> Table:
    """A row for each."""
    numbers = [Column(name, justify="right") for name in ("cycles", "limit", "share", "put right", "of all")]
    columns = ["instruction set", "product", "tile", "CPU", "multiplies in a turn", *numbers]
    shown = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        cycles, limit, _ = row.prediction
        shares = map(share_text, (row.prediction.share, row.right.share, row.right.share_of_all))
        here = (row.isa, row.product, row.tile, row.cpu, row.instructions)
        shown.add_row(*here, f"{cycles:.2f}", f"{limit:.2f}", *shares)
    return shown


def markdown(rows: list[Row], measured: dict[tuple[str, str], float]) -> str:
    """A row for each instruction set and product: the share of the limit, measured and predicted.

    More than 100 % was measured where the peak had a slower moment, and counts as 100 %.
    """
    predicted: dict[str, Callable[[Row], float]] = {
        "predicted": lambda row: row.prediction.share,
        "tables put right": lambda row: row.right.share,
        "of all instructions": lambda row: row.right.share_of_all,
    }
    columns = ["instruction set", "tile", "product", "by", "measured here", *predicted]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for isa, product in dict.fromkeys((row.isa, row.product) for row in rows):
        ours = [row for row in rows if (row.isa, row.product) == (isa, product)]
        here = share_text(min(measured[isa, product], 1)) if (isa, product) in measured else ""
        shares = (", ".join(f"{share_text(share(row))} ({row.cpu})" for row in ours) for share in predicted.values())
        by = ", ".join(dict.fromkeys(map(_mnemonic, ours[0].loop.multiplies)))
        lines.append(f"| {isa} | {ours[0].tile} | {product} | {by} | {here} | {' | '.join(shares)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--isa", "isas", multiple=True, type=click.Choice(list(TARGETS)), help="Only this one; may be repeated.")
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(CPUS), help="Only this one; may be repeated.")
@click.option("--llvm-mca", default=find_llvm_mca, help="The program.  [default: the newest on the path]")
@click.option("--loops", is_flag=True, help="Print the loops too.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a table by instruction set and product.")
@click.option("--measure", is_flag=True, help="With --markdown: measure what this CPU can run.")
def main(
    isas: tuple[str, ...], cpus: tuple[str, ...], llvm_mca: str | None, loops: bool, as_markdown: bool, measure: bool
) -> None:
    if measure and not as_markdown:
        raise click.UsageError("--measure: expected with --markdown")
    if llvm_mca is None:
        raise click.UsageError("--llvm-mca: expected one on the path, got none (Debian has it in the package llvm)")
    chosen = [
        (isa, target)
        for isa, targets in TARGETS.items()
        for target in targets
        if isa in (isas or TARGETS) and target.cpu in (cpus or CPUS)
    ]
    if not chosen:
        raise click.UsageError("--isa, --cpu: expected a CPU that has the instruction set, got none")
    rows = []
    for isa, target in chosen:
        try:
            rows += rows_of(isa, target, llvm_mca)
        except RuntimeError as error:
            raise click.ClickException(f"{isa} on {target.cpu}: {error}") from None
    for row in rows if loops else []:
        click.echo("\n".join([f"{row.isa}, {row.product}, {row.cpu}:", *row.loop.instructions, ""]))
    if as_markdown:
        click.echo(markdown(rows, measured_shares({row.isa for row in rows}) if measure else {}))
    else:
        print_wide(table_of(rows), 120)


if __name__ == "__main__":
    main()
