"""Time sparse attention in turns with compositions of PyTorch's operators, and against the machine's limit.

`python bench/sparse_attention.py --tokens 1 8 --rounds 30 --threads 2`

Each token attends to positions of its own, anywhere in one sequence. Calls take turns among several lists, so that keys
come from memory as they do in a decode step. Ours is first held against the NumPy reference, bit for bit, on some of
the heads. A composition is right if it is as near to that as the reference operator's own test asks for: all but 0.5 %
of the elements within 1e-4 + 0.005 of their magnitude. Others are named and, without `--all`, left out. The limit is
that of the products and of the bytes gathered.

Compositions push ours out of the caches. With `--alone` there are none: keys come from memory, and all else from the
caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from shared.options import ManyValues
from shared.torch_attention import COMPOSITIONS, MOST_OUTSIDE, AttentionTensors, share_outside, tensors_of

import mla_numba as mla
from mla_numba.base.checks import BF16, Array
from mla_numba.cli.options import threads_option
from mla_numba.interop.torch.prolog import to_numpy
from mla_numba.oracle.bits import compare_bits
from mla_numba.oracle.sparse_attention import sparse_attention_reference
from mla_numba.testing import Bench, Probes, do_bench
from tiling import Work

OURS = "mla_numba"
BLOCK_SIZE = 128
SOFTMAX_SCALE = 0.135


class Sizes(NamedTuple):
    """A call: its heads, widths, keys of the sequence, and positions a token."""

    heads: int
    latent: int
    rope: int
    context: int
    k: int


class Problem(NamedTuple):
    """One call in several versions, whose lists differ."""

    out: mla.PrologOutput
    cache: mla.PagedCache
    indices: list[Array]
    block_table: Array
    act_seq: Array

    @classmethod
    def random(cls, sizes: Sizes, t: int, n_lists: int) -> Problem:
        """Random codes, scales, queries and lists."""
        rng = np.random.default_rng(0)
        lead = (-(-sizes.context // BLOCK_SIZE), BLOCK_SIZE, 1)

        def normal(*shape: int, by: float = 1) -> Array:
            return (rng.standard_normal(shape, np.float32) * np.float32(by)).astype(BF16)

        cache = mla.PagedCache(
            rng.integers(-127, 128, (*lead, sizes.latent), np.int8), normal(*lead, sizes.rope),
            rng.random((*lead, 4), np.float32) * np.float32(0.02) + np.float32(0.001),
        )  # fmt: skip
        queries = [normal(t, sizes.heads, width, by=0.3) for width in (sizes.latent, sizes.rope)]
        out = mla.PrologOutput(*queries, np.zeros((t, 1), np.int8), None)
        seen = sizes.context - t + 1  # what the first token sees
        indices = [
            np.stack([rng.permutation(seen)[: sizes.k] for _ in range(t)]).astype(np.int32) for _ in range(n_lists)
        ]
        table = rng.permutation(lead[0])[None].astype(np.int32)
        return cls(out, cache, indices, table, np.array([sizes.context], np.int32))

    def tensors(self, index: Array) -> AttentionTensors:
        """The call as PyTorch takes it, positions resolved to slots ahead."""
        slots = self.block_table[0][index // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + index % BLOCK_SIZE
        return tensors_of(self.out, self.cache, slots, SOFTMAX_SCALE)

    def run(self, index: Array, latent: Array | None = None, n_threads: int | None = None) -> Array:
        """Our call."""
        settings: dict[str, Any] = {"latent": latent, "n_threads": n_threads}
        return mla.sparse_attention(
            self.out, self.cache, index, self.block_table, self.act_seq, softmax_scale=SOFTMAX_SCALE, **settings
        )


def work_of(sizes: Sizes, t: int) -> Work:
    """The products of a call, and the bytes of keys, queries and latents."""
    k = min(sizes.k, sizes.context)
    keys = t * k * (sizes.latent + 16 + 2 * sizes.rope)
    queries = 2 * t * sizes.heads * (2 * sizes.latent + sizes.rope)
    return Work(keys + queries, flops=2 * t * sizes.heads * k * (2 * sizes.latent + sizes.rope))


def check(problem: Problem, n_threads: int) -> Array:
    """Our latents of the first list. Ends the command unless the bits of some heads are the reference's."""
    latent = problem.run(problem.indices[0], n_threads=n_threads)
    some = slice(None, None, max(latent.shape[1] // 2, 1))
    out = problem.out._replace(query_nope=problem.out.query_nope[:, some], query_rope=problem.out.query_rope[:, some])
    want = sparse_attention_reference(
        out, problem.cache, problem.indices[0], problem.block_table, problem.act_seq, SOFTMAX_SCALE
    )
    mismatch = compare_bits("latent", latent[:, some], want)
    if mismatch:
        raise click.ClickException(str(mismatch))
    return latent


def contenders(
    problem: Problem, latent: Array, n_threads: int, names: tuple[str, ...], also_wrong: bool = False
) -> tuple[dict[str, list[Callable[[], Any]]], list[str]]:
    """Calls by name, a list of calls each; and what is wrong, with the share of elements that are."""
    given = [problem.tensors(index) for index in problem.indices]
    place = np.empty_like(latent)
    calls: dict[str, list[Callable[[], Any]]] = {
        OURS: [partial(problem.run, index, place, n_threads) for index in problem.indices]
    }
    wrong = []
    for name in names:
        outside = share_outside(to_numpy(COMPOSITIONS[name](given[0])), latent)
        if outside > MOST_OUTSIDE:
            wrong.append(f"{name}: {outside:.1%} of its elements are outside the tolerance")
        if outside <= MOST_OUTSIDE or also_wrong:
            calls[name] = [partial(COMPOSITIONS[name], tensors) for tensors in given]
    return calls, wrong


def show(console: Console, t: int, bench: Bench, wrong: list[str]) -> None:
    """A row for each implementation."""
    headings = ("min ms", "median ms (95 %)", f"times {OURS}", "least ms", "limit, median", "limit, min")
    table = Table(f"{t} tokens", *(Column(heading, justify="right") for heading in headings), box=box.SIMPLE)
    least = bench.least_ms or 0.0
    for name, ms in bench.ms.items():
        share = bench.share(name)
        reached = "" if share is None or share.value is None else f"{share.value:.0%}"
        ratio = "" if name == OURS else str(bench.ratio(name, OURS))
        table.add_row(
            name, f"{min(ms):.3f}", str(bench.median(name)), ratio, f"{least:.3f}", reached, f"{least / min(ms):.0%}"
        )
    if bench.conditions.is_busy:
        console.print(str(bench.conditions), soft_wrap=True)
    console.print(table)
    for line in wrong:
        console.print(f"wrong: {line}", soft_wrap=True)


@click.command(cls=ManyValues, help=__doc__)
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=(1, 8), help="Tokens a call.")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
@click.option("--lists", type=click.IntRange(1), default=16, show_default=True, help="Lists that take turns.")
@click.option("--sizes", type=click.IntRange(1), nargs=5, default=(128, 512, 64, 65536, 2048), show_default=True,
              help="Heads, latent and rope part, keys of the sequence, positions a token.")  # fmt: skip
@click.option("--peers", type=click.Choice([*COMPOSITIONS]), multiple=True, default=tuple(COMPOSITIONS))
@click.option("--all", "also_wrong", is_flag=True, help="Time compositions that are wrong, too.")
@click.option("--alone", is_flag=True, help="Without compositions: only keys come from memory.")
@threads_option
def main(
    tokens: tuple[int, ...],
    rounds: int,
    lists: int,
    sizes: tuple[int, ...],
    peers: tuple[str, ...],
    also_wrong: bool,
    alone: bool,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    console, probes = Console(width=130), Probes(threads)
    for t in tokens:
        problem = Problem.random(Sizes(*sizes), t, lists)
        with torch.inference_mode():
            calls, wrong = contenders(problem, check(problem, threads), threads, () if alone else peers, also_wrong)
            bench = do_bench(calls, n_rounds=rounds, work=work_of(Sizes(*sizes), t), probes=probes)
        show(console, t, bench, wrong)


if __name__ == "__main__":
    main()
