"""Time one process of several threads against as many processes of one thread that share the heads, in turns.

`mpiexec -n 2 python -m mpi4py bench/ranks.py --tokens 1 8 32 512 --rounds 30`

The first rank runs `MlaProlog` on as many threads as there are ranks while the others sleep; then all run
`ShardedProlog` on a thread each, in both ways of the down-projection. Every result is checked against the first one.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table
from shared.options import DIMS, ManyValues

if TYPE_CHECKING:
    from mla_numba import PrologOutput

_SLEEP_S = 1e-4
WAYS = ("replicated", "split")


def sleep_until(request: Any) -> None:
    """Waits for a message without a busy core, which MPI's own waiting would take from whoever is timed."""
    while not request.Test():
        time.sleep(_SLEEP_S)


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@click.command(cls=ManyValues, help=__doc__)
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=(1, 8, 32, 128, 512), help="Tokens a call.")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
@click.option("--dims", type=click.IntRange(1), nargs=6, help=f"{DIMS}; by default DeepSeek-V3.2's.")
def main(tokens: tuple[int, ...], rounds: int, dims: tuple[int, ...] | None) -> None:
    from mpi4py import MPI

    size = MPI.COMM_WORLD.size
    wanted = {"OMP_WAIT_POLICY": "PASSIVE", "NUMBA_NUM_THREADS": str(size)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        settings = " ".join(f"{name}={value}" for name, value in wanted.items())
        raise click.UsageError(f"expected {settings} in the environment, so that no waiting thread takes a core")

    import mla_numba as mla
    from mla_numba.distributed import ShardedProlog
    from mla_numba.oracle.inputs import random_inputs

    comm = MPI.COMM_WORLD
    sizes = mla.MlaDims(*dims) if dims else mla.MlaDims.deepseek_v32()
    weights = mla.MlaWeights.random(sizes, seed=0)
    shard = weights.shard(comm.rank, size).pack()
    whole = mla.MlaProlog(weights, n_threads=size) if comm.rank == 0 else None
    del weights
    sharded = {way: ShardedProlog(shard, comm, down=way, n_threads=1) for way in WAYS}
    table = Table(Column("T"), *(Column(h, justify="right") for h in HEADINGS), box=box.MARKDOWN)
    for t in tokens:
        cache = mla.PagedCache.allocate(sizes, n_blocks=t // 128 + 1, block_size=128)
        inputs = random_inputs(sizes, t, 0, cache.capacity)
        want = None if whole is None else whole(*inputs, cache)
        for prolog in sharded.values():
            check(prolog(*inputs, cache, gather=True), want)
        times: dict[str, list[float]] = {name: [] for name in ("whole", *WAYS, "exchange")}
        for _ in range(rounds):
            go = np.zeros(1)
            if whole is not None:
                times["whole"].append(seconds(lambda inputs=inputs, cache=cache: whole(*inputs, cache)))
                for rank in range(1, size):
                    comm.Send(go, rank)
            else:
                sleep_until(comm.Irecv(go, 0))
            for way, prolog in sharded.items():
                comm.Barrier()
                _, spent = prolog.profile(*inputs, cache)
                slowest = comm.allreduce(spent.total_s, MPI.MAX)
                times[way].append(slowest)
                if way == "split":
                    times["exchange"].append(comm.allreduce(spent.exchange_s, MPI.MIN))
        if comm.rank == 0:
            table.add_row(str(t), *row(times, sharded["split"].plan(t).exchanged_bytes))
    if comm.rank == 0:
        link = sharded["split"].link
        console = Console(width=130)  # what has no width, such as a pipe, would be taken for 80 columns
        console.print(f"{whole.machine if whole else ''}; {size} ranks, {rounds} rounds", soft_wrap=True)
        console.print(table)
        console.print(f"link: {link.latency_s * 1e6:.1f} us, {link.bytes_s / 1e9:.2f} GB/s", highlight=False)


HEADINGS = (
    "1 process, min ms", "replicated, min ms", "ratio, median", "split, min ms", "ratio, median", "exchange, min us",
    "bytes",
)  # fmt: skip


def row(times: dict[str, list[float]], n_bytes: int) -> list[str]:
    """A row of the table: times, and the median over rounds of each way's time by that of one process."""
    cells = [f"{min(times['whole']) * 1e3:.3f}"]
    for way in WAYS:
        ratios = [mine / one for mine, one in zip(times[way], times["whole"], strict=True)]
        cells += [f"{min(times[way]) * 1e3:.3f}", f"{statistics.median(ratios):.3f}"]
    return [*cells, f"{min(times['exchange']) * 1e6:.1f}", str(n_bytes)]


def check(got: PrologOutput, want: PrologOutput | None) -> None:
    """Ends the job unless the gathered outputs are those of one process, which the first rank alone has."""
    from mla_numba.oracle.bits import compare_bits

    for name, one in ({} if want is None else want._asdict()).items():
        mismatch = None if one is None else compare_bits(name, getattr(got, name), one)
        if mismatch is not None:
            sys.exit(f"the ranks' bits differ from those of one process: {mismatch}")


if __name__ == "__main__":
    main()
