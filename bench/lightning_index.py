"""Measure the lightning index against compositions of PyTorch's operators and against the machine's limit.

`python bench/lightning_index.py --tokens 1 --tokens 8 --keys 65536` prints a table for each number of tokens, of one
sequence with the sizes of DeepSeek-V3.2: 64 heads, keys of 128 codes in blocks of 128, the 2048 best. The calls take
turns. First each is checked: our list has to be the oracle's, and a composition's, whose sums over the heads are added
in another order, may differ from it only by keys whose scores are as good as equal.

The limit is the time that reading the keys once or multiplying them takes, whichever is longer.

Compositions push ours out of the caches. With `--alone` there are none: calls take turns among copies of the keys,
which so come from memory, and find the rest in the caches.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin would take the cores from whose turn it is

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from shared.left_out import LeftOutError, or_left_out
from shared.torch_index import BLOCK, KeyTensors, QueryTensors, chosen, fp32_scores, int8_scores

import mla_numba as mla
from mla_numba.interop.torch.prolog import to_torch
from mla_numba.oracle.index_agreement import compare_index
from mla_numba.testing import Bench, do_bench
from tiling.roofline import Work

OURS = "lightning_index"
N_COPIES = 6  # of the keys, with `--alone`: together more than a cache holds


class Sizes(NamedTuple):
    """Tokens and keys of the sequence, heads, codes of a key, and how many are chosen."""

    t: int
    n_keys: int
    n_heads: int = 64
    head_dim: int = 128
    k: int = 2048

    @property
    def work(self) -> Work:
        """What a call has to move and to compute."""
        products = sum(self.n_keys - i for i in range(self.t)) * self.n_heads * self.head_dim
        n_bytes = self.n_keys * (self.head_dim + 2) + self.t * (self.n_heads * (self.head_dim + 4) + 4 * self.k)
        return Work(n_bytes, 0, 2 * products)


class Calls:
    """A sequence, and the ways to find the best of its keys for its last `t` tokens."""

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        t, n_keys, n_heads, head_dim, self.k = sizes
        self.sizes = sizes
        n_blocks = -(-n_keys // BLOCK)
        self.out = mla.IndexerOutput(
            rng.integers(-128, 128, (t, n_heads, head_dim)).astype(np.int8),
            rng.uniform(0.01, 0.02, (t, n_heads, 1)).astype(np.float16),
            rng.standard_normal((t, n_heads)).astype(np.float16),
        )
        self.cache = mla.IndexerCache(
            rng.integers(-128, 128, (n_blocks, BLOCK, 1, head_dim)).astype(np.int8),
            rng.uniform(0.01, 0.02, (n_blocks, BLOCK, 1, 1)).astype(np.float16),
        )
        self.table = rng.permutation(n_blocks)[None].astype(np.int32)
        self.act_seq = np.array([n_keys], np.int32)

    def ours(self, cache: mla.IndexerCache | None = None) -> Any:
        """The library's own, over the keys or a copy of them."""
        return mla.lightning_index(self.out, cache or self.cache, self.table, self.act_seq, self.k)

    def ways(self, compiled: bool = True, chunk: int = 8192) -> dict[str, Callable[[], Any]]:
        """All of them by name; compositions go through the keys in chunks that stay in a cache."""
        queries = QueryTensors(*map(to_torch, self.out))
        keys = KeyTensors(*map(to_torch, (self.cache.k, self.cache.k_scale, self.table[0])), self.sizes.n_keys)
        arguments = (queries, keys, self.k, chunk)
        products: dict[str, Callable[..., torch.Tensor]] = {"fp32": fp32_scores, "int8": int8_scores}
        made = {name: partial(chosen, scores, *arguments) for name, scores in products.items()}
        if compiled:  # without that setting the compiler leaves the rounding to fp16 out
            fused = torch.compile(int8_scores, dynamic=False, options={"emulate_precision_casts": True})
            made["int8, compiled"] = partial(chosen, fused, *arguments)
        return {OURS: self.ours} | made

    def check(self, name: str, call: Callable[[], Any]) -> None:
        """Raises `AssertionError` where a list is wrong."""
        index = np.asarray(call())
        found = compare_index(index, self.out, self.cache, self.table, self.act_seq)
        assert not found.n_wrong, f"{name}: {found}"
        assert name != OURS or found.n_same_list == found.n_tokens, f"{name}: {found}"


def measure(calls: Calls, n_rounds: int | None, compiled: bool = True) -> tuple[Bench, dict[str, str]]:
    """All ways in turns, each checked before; and why compositions are left out.

    Without VNNI PyTorch's products of int8 saturate.
    """
    left_out = {}
    with torch.inference_mode():
        ways = calls.ways(compiled)
        calls.check(OURS, ways[OURS])
        for name in [name for name in ways if name != OURS]:
            try:
                with or_left_out():
                    calls.check(name, ways[name])
            except LeftOutError as error:
                left_out[name] = str(error)
                del ways[name]
        return do_bench(ways, n_rounds=n_rounds, seconds=10, work=calls.sizes.work), left_out


def measure_alone(calls: Calls, n_rounds: int | None) -> Bench:
    """Ours, checked before, over copies of the keys in turns."""
    calls.check(OURS, calls.ours)
    copies = [partial(calls.ours, calls.cache.copy()) for _ in range(N_COPIES)]
    return do_bench({OURS: copies}, n_rounds=n_rounds, seconds=10, work=calls.sizes.work)


@click.command(help="The lightning index against PyTorch and the machine's limit.")
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=(1, 8), help="Tokens of a call; may repeat.")
@click.option("--keys", type=click.IntRange(2048), default=65536, help="Keys of the sequence.")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Calls of each way; by default for 10 s.")
@click.option("--alone", is_flag=True, help="Without compositions, keys from memory and all else from the caches.")
def main(tokens: tuple[int, ...], keys: int, rounds: int | None, alone: bool) -> None:
    """The command line."""
    console = Console(width=100)
    for t in tokens:
        calls = Calls(Sizes(t, keys))
        bench, left_out = (measure_alone(calls, rounds), {}) if alone else measure(calls, rounds)
        columns = [Column(name, justify="right") for name in ("min ms", "median ms", "over ours", "of the limit")]
        title = f"{t} tokens, {keys} keys, {torch.get_num_threads()} threads; limit {bench.least_ms:.3f} ms"
        table = Table("way", *columns, box=box.SIMPLE, title=title)
        for name, taken in bench.ms.items():
            least = bench.least_ms or 0.0
            table.add_row(
                name, f"{min(taken):.3f}", f"{bench.median(name).median:.3f}", f"{bench.ratio(name, OURS).median:.2f}",
                f"{least / min(taken):.0%} to {least / bench.median(name).median:.0%}",
            )  # fmt: skip
        console.print(table)
        for name, reason in left_out.items():
            console.print(f"{name} left out: {reason}", soft_wrap=True)
        console.print(str(bench.conditions))


if __name__ == "__main__":
    main()
