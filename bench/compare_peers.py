"""Time `MlaProlog` against the PyTorch compositions of `shared/peers.py`.

`python bench/compare_peers.py --tokens 1 8 32 --rounds 30 --threads 2 --peers P1t P3w --weight-sets 4`

`--isa avx2` compares them as on a CPU that has no more. `--record FILE` keeps the run, without the times of single
rounds, for `ratio_chart.py`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column, Table
from shared.held_to import HELD_TO, variables
from shared.options import DIMS, ManyValues

if TYPE_CHECKING:
    from shared.round_robin import Comparison

PEER_NAMES = ("P1", "P1t", "P2", "P2p", "P3w")
TUNABLES = {
    "hugetlb": 1,  # huge pages for weights
    "mmap_max": 0,  # keep freed outputs: page faults would otherwise dominate at many tokens
    "trim_threshold": 1 << 40,
}


def ensure_environment(n_threads: int, isa: str | None) -> None:
    """Start this command anew where the environment is not the one that libraries have to find when they load."""
    wanted = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(n_threads),
        "MKL_NUM_THREADS": str(n_threads),
        "NUMBA_NUM_THREADS": str(n_threads),
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items()),
    } | (variables(isa) if isa else {})
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


@click.command(cls=ManyValues)
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=(1, 8, 32, 128, 512), help="Tokens a call.")
@click.option(
    "--peers", type=click.Choice(PEER_NAMES), multiple=True, default=PEER_NAMES, help="Which to compare with."
)
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Calls of each implementation.")
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True)
@click.option("--weight-sets", type=click.IntRange(1), default=1, show_default=True, help="Layers to take in turns.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the inputs.")
@click.option("--dims", type=click.IntRange(1), nargs=6, help=f"{DIMS}; by default DeepSeek-V3.2's.")
@click.option("--isa", type=click.Choice(list(HELD_TO)), help="Hold all to an instruction set that is not the best.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the times of all rounds.")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Keep the run in this JSON file.")
@click.option("--cpu", help="Name of the CPU, where the one in /proc/cpuinfo says too little.")
def main(
    tokens: tuple[int, ...],
    peers: tuple[str, ...],
    rounds: int,
    threads: int,
    weight_sets: int,
    seed: int,
    dims: tuple[int, ...] | None,
    isa: str | None,
    as_json: bool,
    record: Path | None,
    cpu: str | None,
) -> None:
    """Check every implementation against the reference, then time all of them in turns, in one process."""
    ensure_environment(threads, isa)
    import torch  # not before: OpenMP and malloc read the environment when they load
    from shared.contenders import DisagreementError
    from shared.round_robin import compare, describe_machine

    import mla_numba as mla
    from mla_numba.testing import Probes

    torch.set_num_threads(threads)
    console, progress = Console(), Console(stderr=True)
    sizes = mla.MlaDims(*dims) if dims else mla.MlaDims.deepseek_v32()
    progress.print(f"packing {weight_sets} weight sets")
    sets = [mla.MlaWeights.random(sizes, seed=seed, quant="b") for seed in range(weight_sets)]
    prologs = [mla.MlaProlog(weights, n_threads=threads) for weights in sets]
    probes = Probes(threads)
    results = []
    for n_tokens in tokens:
        progress.print(f"{n_tokens} tokens: preparing, checking and timing")
        try:
            results.append(compare(sizes, sets, prologs, n_tokens, peers, rounds, seed, probes))
        except DisagreementError as error:
            raise click.ClickException(str(error)) from error
        if not as_json:
            show(console, results[-1])
    settings = {"dims": str(sizes), "rounds": rounds, "weight_sets": weight_sets}
    machine = describe_machine(prologs[0]) | ({"cpu": cpu} if cpu else {})
    run = {**settings, **machine, "results": [result.to_dict() for result in results]}
    if record is not None:
        record.write_text(json.dumps(without_rounds(run), indent=1) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps(run))
        return
    for name, value in {**settings, **machine}.items():
        console.print(f"{name}: {value}", markup=False, highlight=False)


def without_rounds(run: dict[str, Any]) -> dict[str, Any]:
    """The run without the times of single rounds."""
    results = []
    for result in run["results"]:
        rows = [{name: value for name, value in row.items() if name != "ms"} for row in result["implementations"]]
        results.append(result | {"implementations": rows})
    return run | {"results": results}


def show(console: Console, result: Comparison) -> None:
    """Print one number of tokens: a row an implementation, and what each was made of."""
    from mla_numba.cli.shown import no_share, share_text

    bench = result.bench
    console.print(f"{result.n_tokens} tokens; {bench.conditions}", markup=False, highlight=False, soft_wrap=True)
    headings = ("min ms", "median ms", "time / ours, median\nof rounds (95 %)", "time / ours,\nof minima", "limit")
    table = Table("implementation", *(Column(heading, justify="right") for heading in headings))
    for name, ms in bench.ms.items():
        times = (f"{min(ms):.3f}", f"{bench.median(name).median:.3f}")
        share = bench.share(name)
        limit = share_text(share.value if share else None)
        table.add_row(name, *times, str(result.ratio(name)), f"{result.ratio_of_minima(name):.3f}", limit)
    for name in result.left_out:
        table.add_row(name, *["-"] * len(headings))
    console.print(table)
    reasons = [share.reason for share in map(bench.share, bench.ms) if share]
    if any(reasons):
        console.print(no_share(reasons), markup=False, highlight=False)
    for name, chosen in result.chosen.items():
        console.print(f"  {name}: {chosen}", markup=False, highlight=False)
    for name, reason in result.left_out.items():
        console.print(f"  {name} left out: {reason}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
