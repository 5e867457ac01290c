"""What part of its weights a call reads from another NUMA node, and how long it takes, simulated.

`python bench/far_share.py` plans calls for machines of several nodes, which need not be here, and simulates how workers
draw the tasks (`tiling.plan.drawing`): of one row for all workers, and of a row for each node's group. It prints, for
both, the part of the weights that lie on another node than the worker that reads them, the idle part of the workers'
time, and the milliseconds of the call. It fails where workers in groups are idle for more than `--most` of the time,
with 8 tokens or more and memory that is equally far for all.

Weights lie where they were packed, by as many threads, each of which keeps to a core of its node. Every token block of
a walk reads its panels anew. A task takes what the planner's model says (`bench/idle_share.py`), and `--far` times as
long where its weights lie on another node. `--markdown` prints the table as docs/many_cores.md has it.
"""

from __future__ import annotations

from typing import NamedTuple

import click
from idle_share import CHECKED_TOKENS, TOKENS, Busy, markdown, plan_for, simulate
from rich import box
from rich.table import Column, Table

from mla_numba.cli.options import token_list
from mla_numba.cli.shown import print_wide
from tiling import CpuTiling


class Calls(NamedTuple):
    """A call whose workers draw from one row, and in groups; and in groups where no memory is far."""

    one_row: Busy
    groups: Busy
    near: Busy


def calls_of(t: int, n_nodes: int, n_threads: int, bytes_s: float, far: float) -> Calls:
    """The calls of `t` tokens on so many nodes of equally many threads."""
    one_row, groups = (
        plan_for(t, n_threads, bytes_s, tiling=tiling, n_nodes=n_nodes) for tiling in (CpuTiling(n_groups=1), None)
    )
    return Calls(simulate(one_row, far), simulate(groups, far), simulate(groups))


def _both(calls: Calls, field: str) -> str:
    before, after = (getattr(call, field) for call in (calls.one_row, calls.groups))
    return f"{before * 1e3:.3f}, {after * 1e3:.3f}" if field == "seconds" else f"{before:.0%}, {after:.0%}"


@click.command()
@click.option("--tokens", type=token_list, default=TOKENS, show_default=True, help="Tokens of calls.")
@click.option("--nodes", type=token_list, default="2,4", show_default=True, help="Numbers of NUMA nodes.")
@click.option("--threads", type=click.IntRange(1), default=64, show_default=True, help="Threads of all nodes.")
@click.option(
    "--per-thread", type=click.FloatRange(0, min_open=True), default=7.0, show_default=True, help="GB/s of each thread."
)
@click.option(
    "--far", type=click.FloatRange(1), default=2.0, show_default=True, help="Time of a task whose weights are far."
)
@click.option("--most", type=click.FloatRange(0, 1), default=0.08, show_default=True, help="Idle part that passes.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table for the documentation.")
def main(
    tokens: tuple[int, ...],
    nodes: tuple[int, ...],
    threads: int,
    per_thread: float,
    far: float,
    most: float,
    as_markdown: bool,
) -> None:
    """Print what is read from another node, of one row and in groups; fail where groups are idle for too long."""
    calls = {t: [calls_of(t, n, threads, threads * per_thread * 1e9, far) for n in nodes] for t in tokens}
    fields = {"far": "far", "idle": "idle", "seconds": "ms"}
    headings = [f"{n} x {threads // n}: {name}" for n in nodes for name in fields.values()]
    cells = {t: [_both(call, field) for call in row for field in fields] for t, row in calls.items()}
    if as_markdown:
        click.echo(markdown(cells, headings))
    else:
        table = Table("tokens", *(Column(heading, justify="right") for heading in headings), box=box.SIMPLE)
        for t, row in cells.items():
            table.add_row(str(t), *row)
        print_wide(table, 120)
    worst = max((call.near.idle for t, row in calls.items() if t >= CHECKED_TOKENS for call in row), default=0.0)
    if worst > most:
        raise click.ClickException(f"{worst:.1%} of the workers' time is idle in groups, more than {most:.0%}")


if __name__ == "__main__":
    main()
