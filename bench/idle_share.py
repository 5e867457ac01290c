"""How busy plans keep many cores: what part of their time workers have nothing to do, simulated.

`python bench/idle_share.py` plans calls of several numbers of tokens for machines of several numbers of threads, which
need not be here, simulates how workers draw the tasks of each plan (`tiling.plan.drawing`), and prints a table: the
idle part of the workers' time in whole calls, in brackets that of the down and of the heads sweep. It fails if
more than `--most` of the time is idle at 64 threads with 8 tokens or more.

Tasks take what the planner's model says. `--bandwidth` is what memory gives all threads together, `--per-thread` each
of them; in either case each worker gets an even share, whether or not others are idle. `--whole` shows plans without
legs, as a comparison. `--markdown` prints a table as docs/many_cores.md has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import click
from rich import box
from rich.table import Column, Table

from mla_numba import MlaDims
from mla_numba.call.planning import micro_tiles
from mla_numba.cli.options import token_list
from mla_numba.cli.shown import print_wide
from mla_numba.kernels import ISAS
from tiling import Costs, CpuTiling, Machine, PrologPlan, plan_prolog
from tiling.modes import IsaName
from tiling.plan.groups import even_groups

TOKENS, THREADS = "1,8,32,128,512", "1,2,4,8,16,32,48,64,96,128"
CHECKED_THREADS, CHECKED_TOKENS = 64, 8
WHOLE = CpuTiling(down_legs=1, heads_legs=1)


class Busy(NamedTuple):
    """A simulated call: its seconds, the idle part of the workers' time in it, in its down and its heads sweeps.

    n_tasks: fewest and most tasks of a worker in a tile's down sweep, and in its heads sweep. far: the part of the
    weights that is read from another NUMA node.
    """

    seconds: float
    idle: float
    down: float
    heads: float
    n_tasks: tuple[str, str]
    far: float

    def __str__(self) -> str:
        return f"{self.idle:.0%} ({self.down:.0%}, {self.heads:.0%})"


def simulate(plan: PrologPlan, far: float = 1.0) -> Busy:
    """A plan's tiles one after the other. far: so many times as long a task takes whose weights lie on another node."""
    drawings = [plan.drawing(plan.tile_plan(factor), far) for _, factor in plan.tiles]

    def mean(pairs: list[tuple[float, float]]) -> float:
        return sum(idle * seconds for seconds, idle in pairs) / sum(seconds for seconds, _ in pairs)

    sweeps = [[drawing.sweeps[name][:2] for drawing in drawings] for name in ("down", "heads")]
    whole = [(drawing.seconds, drawing.idle) for drawing in drawings]
    counts = [[n for drawing in drawings for n in drawing.n_tasks(phase)] for phase in ("down", "heads")]
    down, heads = (f"{min(n)}" if min(n) == max(n) else f"{min(n)}-{max(n)}" for n in counts)
    away = sum(drawing.far for drawing in drawings) / len(drawings)
    return Busy(sum(seconds for seconds, _ in whole), mean(whole), *map(mean, sweeps), (down, heads), away)


def plan_for(
    t: int,
    n_threads: int,
    bytes_s: float,
    isa: IsaName = "avx512bf16",
    tiling: CpuTiling | None = None,
    n_nodes: int = 1,
) -> PrologPlan:
    """The plan of a machine with cores of an instruction set that together read so many bytes a second from memory.

    They are shared evenly by NUMA nodes.
    """
    machine = Machine(
        f"{n_threads} cores", "any", isa, l1d_bytes=48 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20,
        n_physical_cores=n_threads, n_usable_cores=n_threads, node_cores=even_groups(n_threads, n_nodes),
    )  # fmt: skip
    costs = replace(Costs.of_isa(isa), memory_bytes_s=bytes_s)
    dims = MlaDims.deepseek_v32()
    return plan_prolog(dims, t, tiling, machine, micro=micro_tiles(ISAS[isa]), n_threads=n_threads, costs=costs)


def markdown(cells: dict[int, list[str]], headings: Sequence[object]) -> str:
    """The table for the documentation: a row for each number of tokens."""
    rows = [["T", *map(str, headings)], ["---"] * (1 + len(headings))]
    rows += [[str(t), *row] for t, row in cells.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@click.command()
@click.option("--tokens", type=token_list, default=TOKENS, show_default=True, help="Tokens of calls.")
@click.option("--threads", type=token_list, default=THREADS, show_default=True, help="Numbers of threads.")
@click.option("--bandwidth", type=click.FloatRange(0, min_open=True), help="GB/s of all threads together.")
@click.option(
    "--per-thread", type=click.FloatRange(0, min_open=True), default=7.0, show_default=True,
    help="GB/s of each thread, where --bandwidth is not given.",
)  # fmt: skip
@click.option(
    "--isa", type=click.Choice(list(ISAS)), default="avx512bf16", show_default=True, help="Of cores and kernels."
)
@click.option("--whole", is_flag=True, help="Of plans whose tasks are not cut in legs.")
@click.option("--tasks", is_flag=True, help="Show tasks a thread: fewest-most in the down, and in the heads sweep.")
@click.option("--most", type=click.FloatRange(0, 1), default=0.08, show_default=True, help="Idle part that passes.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a table for the documentation.")
def main(
    tokens: tuple[int, ...],
    threads: tuple[int, ...],
    bandwidth: float | None,
    per_thread: float,
    isa: IsaName,
    whole: bool,
    tasks: bool,
    most: float,
    as_markdown: bool,
) -> None:
    """Print how busy plans keep workers; fail where too many are idle at 64 threads."""
    tiling = WHOLE if whole else None
    calls = {
        t: [simulate(plan_for(t, n, 1e9 * (bandwidth or n * per_thread), isa, tiling)) for n in threads] for t in tokens
    }
    cells = {t: [", ".join(call.n_tasks) if tasks else str(call) for call in row] for t, row in calls.items()}
    if as_markdown:
        click.echo(markdown(cells, threads))
    else:
        headings = [f"{n} thread{'' if n == 1 else 's'}" for n in threads]
        table = Table("tokens", *(Column(heading, justify="right") for heading in headings), box=box.SIMPLE)
        for t, row in cells.items():
            table.add_row(str(t), *row)
        print_wide(table, 170)
    checked = [row for t, row in calls.items() if t >= CHECKED_TOKENS]
    worst = max(
        (call.idle for row in checked for n, call in zip(threads, row, strict=True) if n == CHECKED_THREADS),
        default=0.0,
    )
    if worst > most:
        raise click.ClickException(
            f"{worst:.1%} of the workers' time is idle at {CHECKED_THREADS} threads, more than {most:.0%}"
        )


if __name__ == "__main__":
    main()
