"""Measure what the indexer's prolog adds to the prolog: in one call with it, and in a call of its own behind it.

`python bench/indexer_prolog.py --tokens 1 --tokens 8 --tokens 128` prints a table of DeepSeek-V3.2's dimensions. The
three take turns, and weights come from memory. First both are checked: they have to give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table

import mla_numba as mla
from mla_numba.oracle.inputs import random_inputs
from mla_numba.testing import Bench, copies_to_be_cold, do_bench

PROLOG, ONE, TWO = "prolog", "with its indexer", "then its indexer"
BLOCK = 128


class Calls:
    """Layers of one size whose weights take turns, and a call of `t` tokens."""

    def __init__(self, dims: mla.MlaDims, indexer: mla.IndexerWeights, t: int, n_threads: int | None = None) -> None:
        weights = mla.MlaWeights.random(dims)
        first = weights.pack()
        n_copies = copies_to_be_cold(first.nbytes)
        packed = [first, *(weights.pack() for _ in range(n_copies - 1))]
        of_indexer = [indexer.pack() for _ in packed]
        self.plain = [mla.MlaProlog(p, n_threads=n_threads) for p in packed]
        self.fused = [mla.MlaProlog(p, n_threads=n_threads, indexer=i) for p, i in zip(packed, of_indexer, strict=True)]
        self.alone = [mla.IndexerProlog(i, n_threads=n_threads) for i in of_indexer]
        n_blocks = -(-t // BLOCK)
        self.cache = mla.PagedCache.allocate(dims, n_blocks, BLOCK)
        self.keys = mla.IndexerCache.allocate(indexer.dims, n_blocks, BLOCK)
        self.inputs = random_inputs(dims, t, 1, self.cache.capacity)
        self.out, self.indexed = self.plain[0].allocate_output(t), self.fused[0].allocate_output(t)
        self.index_out = self.alone[0].allocate_output(t)

    def prolog(self, i: int) -> Any:
        """The prolog of layer i without its indexer."""
        return self.plain[i](*self.inputs, self.cache, self.out)

    def one(self, i: int) -> Any:
        """Both in one call."""
        return self.fused[i](*self.inputs, self.cache, self.indexed, indexer_cache=self.keys)

    def two(self, i: int) -> Any:
        """One behind the other."""
        out = self.prolog(i)
        x, cos, sin, slots = self.inputs
        return self.alone[i](x, out.q_norm, out.q_norm_scale, cos, sin, slots, self.keys, self.index_out)

    def check(self) -> None:
        """Raises `click.ClickException` where the two ways differ."""
        found = []
        for run in (self.one, self.two):
            for array in (self.keys.k, self.keys.k_scale):
                array[...] = 0
            run(0)
            found.append([self.keys.k.copy(), self.keys.k_scale.copy()])
        found[0] += [*self.indexed.indexer, *self.indexed]
        found[1] += [*self.index_out, *self.out]
        if any(a.tobytes() != b.tobytes() for a, b in zip(*found, strict=True)):
            raise click.ClickException("one call and two give other bits")

    def ways(self) -> dict[str, list[Callable[[], Any]]]:
        """The calls by name, one for each layer."""
        ways = {PROLOG: self.prolog, ONE: self.one, TWO: self.two}
        return {name: [partial(way, i) for i in range(len(self.plain))] for name, way in ways.items()}


def measure(calls: Calls, seconds: float, n_rounds: int | None = None) -> Bench:
    """All three in turns, once the bits are checked."""
    calls.check()
    return do_bench(calls.ways(), seconds=seconds, n_rounds=n_rounds, n_threads=calls.plain[0].n_threads)


def table(found: dict[int, Bench]) -> Table:
    """Milliseconds, medians and least, and how many times as long as the prolog alone."""
    columns = ("tokens", "call", "ms", "least ms", "by the prolog", "of the least")
    shown = Table(*(Column(name, justify="left" if name == "call" else "right") for name in columns), box=box.MARKDOWN)
    for t, bench in found.items():
        least = min(bench.ms[PROLOG])
        for name, times in bench.ms.items():
            ratio = "" if name == PROLOG else f"{bench.ratio(name, PROLOG).median:.2f}"
            of_least = "" if name == PROLOG else f"{min(times) / least:.2f}"
            cells = (f"{bench.median(name).median:.3f}", f"{min(times):.3f}", ratio, of_least)
            shown.add_row(str(t), name, *cells)
    return shown


@click.command(help=__doc__)
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=(1, 8, 128), show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Spent in the calls of each number of tokens.")
@click.option("--threads", type=click.IntRange(1), help="By default all of Numba's.")
def main(tokens: tuple[int, ...], seconds: float, threads: int | None) -> None:
    """Measures and prints."""
    dims = mla.MlaDims.deepseek_v32()
    indexer = mla.IndexerWeights.random(dims)
    found = {}
    for t in tokens:
        found[t] = measure(Calls(dims, indexer, t, threads), seconds)
    console = Console(width=100)
    console.print(table(found))
    for t, bench in found.items():
        for reason in bench.conditions.reasons:
            console.print(f"{t} tokens: {reason}")


if __name__ == "__main__":
    main()
