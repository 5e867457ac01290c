"""How busy plans keep many cores: what part of their time workers have nothing to do, simulated.

`python bench/idle_share.py` plans calls of several numbers of tokens for machines of several numbers of threads, which
need not be here, simulates how workers draw the tasks of each plan (`tiling.plan.drawing`), and prints a table: the
idle part of the workers' time in whole calls, in brackets that of the down and of the heads sweep. It fails if
more than `--most` of the time is idle at 64 threads with 8 tokens or more.

Tasks take what the planner's model says. `--bandwidth` is what memory gives all threads together, `--per-thread` each
of them; in either case each worker gets an even share, whether or not others are idle. `--whole` shows plans without
legs, as a comparison. `--markdown` prints a table for the documentation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import click
from rich import box
from rich.table import Column, Table

from mla_numba import MlaDims
from mla_numba.call.planning import MICRO_TILES
from mla_numba.cli.options import token_list
from mla_numba.cli.shown import print_wide
from mla_numba.kernels import ISA
from tiling import Costs, CpuTiling, Machine, PrologPlan, plan_prolog

TOKENS, THREADS = "1,8,32,128,512", "1,2,4,8,16,32,48,64,96,128"
CHECKED_THREADS, CHECKED_TOKENS = 64, 8


class Busy(NamedTuple):
    """A simulated call: its seconds, and the idle part of the workers' time in it, in its down and its heads sweeps."""

    seconds: float
    idle: float
    down: float
    heads: float

    def __str__(self) -> str:
        return f"{self.idle:.0%} ({self.down:.0%}, {self.heads:.0%})"


def simulate(plan: PrologPlan) -> Busy:
    """A plan's tiles one after the other."""
    drawings = [plan.drawing(plan.tile_plan(factor)) for _, factor in plan.tiles]

    def mean(pairs: list[tuple[float, float]]) -> float:
        return sum(idle * seconds for seconds, idle in pairs) / sum(seconds for seconds, _ in pairs)

    sweeps = [[drawing.sweeps[name][:2] for drawing in drawings] for name in ("down", "heads")]
    whole = [(drawing.seconds, drawing.idle) for drawing in drawings]
    return Busy(sum(seconds for seconds, _ in whole), mean(whole), *map(mean, sweeps))


def plan_for(t: int, n_threads: int, bytes_s: float, whole: bool) -> PrologPlan:
    """The plan of a machine of this one's kind of cores, whose threads together read so many bytes a second."""
    machine = Machine(
        f"{n_threads} cores", "any", ISA.name, l1d_bytes=48 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20,
        n_physical_cores=n_threads, n_usable_cores=n_threads,
    )  # fmt: skip
    costs = replace(Costs.of_isa(ISA.name), memory_bytes_s=bytes_s)
    tiling = CpuTiling(down_legs=1, heads_legs=1) if whole else None
    dims = MlaDims.deepseek_v32()
    return plan_prolog(dims, t, tiling, machine, micro=MICRO_TILES, n_threads=n_threads, costs=costs)


def markdown(cells: dict[int, list[Busy]], threads: tuple[int, ...]) -> str:
    """The table for the documentation."""
    rows = [["tokens", *(f"{n} threads" for n in threads)], ["---:"] * (1 + len(threads))]
    rows += [[str(t), *map(str, row)] for t, row in cells.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@click.command()
@click.option("--tokens", type=token_list, default=TOKENS, show_default=True, help="Tokens of calls.")
@click.option("--threads", type=token_list, default=THREADS, show_default=True, help="Numbers of threads.")
@click.option("--bandwidth", type=click.FloatRange(0, min_open=True), help="GB/s of all threads together.")
@click.option(
    "--per-thread", type=click.FloatRange(0, min_open=True), default=7.0, show_default=True,
    help="GB/s of each thread, where --bandwidth is not given.",
)  # fmt: skip
@click.option("--whole", is_flag=True, help="Of plans whose tasks are not cut in legs.")
@click.option("--most", type=click.FloatRange(0, 1), default=0.08, show_default=True, help="Idle part that passes.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a table for the documentation.")
def main(
    tokens: tuple[int, ...],
    threads: tuple[int, ...],
    bandwidth: float | None,
    per_thread: float,
    whole: bool,
    most: float,
    as_markdown: bool,
) -> None:
    """Print how busy plans keep workers; fail where too many are idle at 64 threads."""
    cells = {t: [simulate(plan_for(t, n, 1e9 * (bandwidth or n * per_thread), whole)) for n in threads] for t in tokens}
    if as_markdown:
        click.echo(markdown(cells, threads))
    else:
        table = Table("tokens", *(Column(f"{n} threads", justify="right") for n in threads), box=box.SIMPLE)
        for t, row in cells.items():
            table.add_row(str(t), *map(str, row))
        print_wide(table)
    at = threads.index(CHECKED_THREADS) if CHECKED_THREADS in threads else None
    if at is None:
        return
    worst = max((row[at].idle for t, row in cells.items() if t >= CHECKED_TOKENS), default=0.0)
    if worst > most:
        raise click.ClickException(
            f"{worst:.1%} of the workers' time is idle at {CHECKED_THREADS} threads, more than {most:.0%}"
        )


if __name__ == "__main__":
    main()
