"""Predict how a layer scales over ranks on the machine that docs/scaling.md describes, and write the page's figures.

`python bench/scaling_chart.py` writes docs/pictures/scaling.svg and what stands between `<!-- NAME -->` and
`<!-- /NAME -->` on the page. `--check` writes nothing and fails where a file differs. Nothing is measured.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from docs_pictures import shows_the_same
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from ratio_chart import fill

import mla_numba as mla
from mla_numba.cli.chart_style import FASTER, MUTED, OTHERS, SETTINGS, head, svg_text, tokens_text
from mla_numba.distributed.predict import Prediction, predict
from tiling import Cluster, Costs, LinkRate, PlanDims
from tiling.modes import IsaName

ROOT = Path(__file__).parents[1]
PAGE = Path("docs/scaling.md")
CHART = Path("docs/pictures/scaling.svg")
FENCE = re.compile(r"^```json title=\"cluster\.json\"\n(.*?)^```$", flags=re.S | re.M)

TOKENS = (1, 8, 32, 128, 512)
SIZES = (1, 2, 4, 8, 16, 32, 64)
MEMORY_SIZES = (1, 2, 4, 8)
QUANT = "b"
N_LAYERS = 61  # of DeepSeek-V3.2
CONTEXT = 131072
PAYS = 0.9  # of the time of half as many ranks: what takes longer does not pay

# The machine on which two ranks were measured for docs/performance.md, with the link that was measured there.
MEASURED_ISA: IsaName = "avx512bf16"
MEASURED_LINK = LinkRate(latency_s=7e-6, bytes_s=5.3e9)

Curves = dict[int, list[Prediction]]


def described(page: str) -> Cluster:
    """The machine that the page describes."""
    found = FENCE.search(page)
    if found is None:
        raise click.ClickException(f'{PAGE}: expected a block ```json title="cluster.json", got none')
    return Cluster.from_json(found[1])


def curves(cluster: Cluster) -> Curves:
    """A rank a socket: the predictions by tokens of a call."""
    dims = mla.MlaDims.deepseek_v32()
    return {t: [predict(cluster, dims, t, size, cluster.n_cores, QUANT) for size in SIZES] for t in TOKENS}


def pays_up_to(of_t: list[Prediction]) -> int:
    """The most ranks that take at most nine tenths of the time of half as many, and so of all before."""
    for few, many in pairwise(of_t):
        if many.seconds > PAYS * few.seconds:
            return few.size
    return of_t[-1].size


def faster(of_t: list[Prediction], size: int) -> float:
    """How many times as fast some ranks are as one."""
    by_size = {one.size: one for one in of_t}
    return of_t[0].seconds / by_size[size].seconds


def message(found: Curves) -> str:
    """What the picture says."""
    best = {t: pays_up_to(of_t) for t, of_t in found.items()}
    few, many = min(TOKENS), max(TOKENS)
    return (
        f"Ranks pay up to {best[few]} for {tokens_text(few)} ({faster(found[few], best[few]):.1f} times as fast), "
        f"up to {best[many]} for {many} ({faster(found[many], best[many]):.1f} times)"
    )


def draw(cluster: Cluster, found: Curves) -> str:
    """The picture as SVG text: how many times as fast as one rank, by ranks; a line for each number of tokens."""
    colours = dict(zip(found, (OTHERS[0], OTHERS[1], OTHERS[2], OTHERS[3], FASTER), strict=True))
    with rc_context(SETTINGS):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(SIZES, SIZES, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("as many times as ranks", (8, 8), (0, 6), textcoords="offset points", ha="right", color=MUTED)
        for t, of_t in found.items():
            values = [faster(of_t, size) for size in SIZES]
            axes.plot(SIZES, values, color=colours[t], linewidth=2)
            at = SIZES.index(pays_up_to(of_t))
            axes.plot(SIZES[at], values[at], "o", color=colours[t], markersize=7)
        _label_ends(axes, {t: faster(of_t, SIZES[-1]) for t, of_t in found.items()}, colours)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_ylim(0.9, 16)
        axes.set_xlim(0.95, 64)
        for axis, ticks in ((axes.xaxis, SIZES), (axes.yaxis, (1, 2, 4, 8, 16))):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
        axes.grid(axis="y")
        axes.set_xlabel(f"ranks of {cluster.n_cores} threads, one a socket")
        axes.set_ylabel("times as fast as one rank")
        how = "A dot is where twice as many ranks would save less than a tenth of the time. Modelled, not measured."
        head(figure, message(found), how, f"{cluster.name}; DeepSeek-V3.2, quant {QUANT}, one layer")
        return svg_text(figure, message(found))


def _label_ends(axes: Any, ends: dict[int, float], colours: dict[int, str]) -> None:
    """The tokens of each line behind its end, far enough apart to be read."""
    below = 0.0
    for t, value in sorted(ends.items(), key=lambda item: item[1]):
        below = max(value, below * 1.13)
        axes.annotate(
            tokens_text(t), (SIZES[-1], below), (8, 0), textcoords="offset points", va="center", color=colours[t],
            annotation_clip=False,
        )  # fmt: skip


def times_table(found: Curves) -> str:
    """Modelled milliseconds, the chosen way of the down-projection, and where ranks stop paying."""
    lines = [f"| T | 1 rank | {' | '.join(map(str, SIZES[1:]))} | pays up to |"]
    lines.append("|---" * (len(SIZES) + 2) + "|")
    for t, of_t in found.items():
        cells = [f"{one.seconds * 1e3:.3f}" + ("" if one.down == "split" or one.size == 1 else " r") for one in of_t]
        lines.append(f"| {t} | {' | '.join(cells)} | {pays_up_to(of_t)} |")
    return "\n".join(lines)


def ways_table(found: Curves) -> str:
    """Either way of the down-projection on 2 and on 8 ranks."""
    lines = ["| T | ranks | replicated ms | split ms | of that the exchange ms | KB that arrive | least ms |"]
    lines.append("|---" * 7 + "|")
    for t in TOKENS:
        for one in found[t]:
            if one.size in (2, 8):
                ms = [f"{s * 1e3:.3f}" for s in (one.replicated_s, one.split_s, one.exchange_s)]
                least = f"{one.least_s * 1e3:.3f}"
                lines.append(f"| {t} | {one.size} | {' | '.join(ms)} | {one.exchanged_bytes / 1e3:.1f} | {least} |")
    return "\n".join(lines)


def measured_machine() -> Cluster:
    """Two cores with the constants of the model that were measured on them."""
    costs = Costs.of_isa(MEASURED_ISA)
    rates = {name: getattr(costs, name) for name in ("memory_bytes_s", "core_bytes_s", "bf16_flops_s", "int8_ops_s")}
    caches = {"l1d_bytes": 48 << 10, "l2_bytes": 1 << 20, "l3_bytes": 32 << 20}
    links = {"socket_link": MEASURED_LINK, "node_link": MEASURED_LINK}
    return Cluster("two cores", "x86_64", MEASURED_ISA, 1, 2, **caches, **rates, **links, launch_s=costs.launch_s)


def near_table() -> str:
    """Two ranks of a thread each by the time of one process of two threads."""
    dims, cluster = mla.MlaDims.deepseek_v32(), measured_machine()
    lines = ["| T | replicated | split |", "|---" * 3 + "|"]
    for t in TOKENS:
        one, two = (predict(cluster, dims, t, size, 2 // size, QUANT) for size in (1, 2))
        lines.append(f"| {t} | {two.replicated_s / one.seconds:.2f} | {two.split_s / one.seconds:.2f} |")
    return "\n".join(lines)


def memory_table(found: Curves) -> str:
    """Memory of a rank: weights, which shrink, and the cache, which does not."""
    dims = mla.MlaDims.deepseek_v32()
    slot = cache_bytes_a_slot(dims)
    lines = [
        f"| ranks | heads a rank | weights of a layer, MB | of {N_LAYERS} layers, GB | "
        f"cache of {CONTEXT} tokens, {N_LAYERS} layers, GB | both, GB |",
        "|---" * 6 + "|",
    ]
    for one in found[1]:
        if one.size in MEMORY_SIZES:
            weights, cache = one.weight_bytes * N_LAYERS, slot * CONTEXT * N_LAYERS
            lines.append(
                f"| {one.size} | {one.n_heads} | {one.weight_bytes / 1e6:.1f} | {weights / 1e9:.2f} | "
                f"{cache / 1e9:.2f} | {(weights + cache) / 1e9:.2f} |"
            )
    return "\n".join(lines)


def cache_bytes_a_slot(dims: PlanDims) -> int:
    """Bytes of a token in the int8 cache of one layer."""
    cache = mla.PagedCache.allocate(dims, n_blocks=1, block_size=1)
    return sum(array.nbytes for array in cache.arrays().values())


def render(page: str) -> dict[Path, str]:
    """Both files by their path in the checkout."""
    cluster = described(page)
    found = curves(cluster)
    slot = cache_bytes_a_slot(mla.MlaDims.deepseek_v32())
    places = {
        "times": f"\n\n{times_table(found)}\n\n",
        "ways": f"\n\n{ways_table(found)}\n\n",
        "near": f"\n\n{near_table()}\n\n",
        "memory": f"\n\n{memory_table(found)}\n\n",
        "slot": f"{slot}",
        "whole": f"{found[1][0].weight_bytes / 1e6:.1f}",
        "rest": f"{found[1][-1].weight_bytes / 1e6:.1f}",
    }
    return {PAGE: fill(page, places), CHART: draw(cluster, found)}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail where a file is not what the model says.")
def main(check: bool) -> None:
    """Predict the scaling over ranks, draw it and write the tables of docs/scaling.md."""
    for path, text in render((ROOT / PAGE).read_text(encoding="utf-8")).items():
        file = ROOT / path
        kept = file.read_text(encoding="utf-8") if file.exists() else ""
        same = kept == text if path == PAGE else bool(kept) and shows_the_same(kept, text)
        if check and not same:
            raise click.ClickException(f"{path}: expected what the model says; run python bench/scaling_chart.py")
        if not check and not same:
            file.write_text(text, encoding="utf-8")
            click.echo(str(path))


if __name__ == "__main__":
    main()
