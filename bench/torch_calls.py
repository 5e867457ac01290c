"""Measure what a call costs through PyTorch: one prolog as MlaProlog, as TorchProlog and under torch.compile.

`python bench/torch_calls.py --tokens 1 --tokens 8 --tokens 512` prints a table for each number of tokens, at
DeepSeek-V3.2's dimensions. Each way is called in turn, with outputs of its own ("given") or new ones in each call, and
has to give the reference's bits first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table

import mla_numba as mla
from mla_numba.interop.torch.prolog import (
    TorchCache,
    TorchProlog,
    to_numpy,
    to_torch,
)
from mla_numba.oracle.bits import check_output, reference_run
from mla_numba.oracle.inputs import Inputs, random_inputs

CAPACITY = 64 * 128


class Calls:
    """A layer's prolog, and the arguments of a call of `t` tokens as tensors."""

    def __init__(self, dims: mla.MlaDims, t: int, seed: int = 0) -> None:
        self.weights = mla.MlaWeights.random(dims, seed)
        self.module = TorchProlog(self.weights)
        self.arrays: Inputs = random_inputs(dims, t, seed, CAPACITY)
        self.inputs = [to_torch(array) for array in self.arrays]
        self.cache = TorchCache.allocate(dims, CAPACITY // 128)
        self.out = self.module.allocate_output(t)

    def ways(self) -> dict[str, Callable[[], Any]]:
        """The calls to be compared, by name."""
        prolog, module, compiled = self.module.prolog, self.module, torch.compile(self.module, fullgraph=True)
        arrays, cache = self.arrays, self.cache.numpy()
        out = prolog.allocate_output(len(arrays.x))
        return {
            "MlaProlog, given": lambda: prolog(*arrays, cache, out),
            "TorchProlog, given": lambda: module(*self.inputs, self.cache, self.out),
            "compiled, given": lambda: compiled(*self.inputs, self.cache, self.out),
            "MlaProlog, new": lambda: prolog(*arrays, cache),
            "TorchProlog, new": lambda: module(*self.inputs, self.cache),
            "compiled, new": lambda: compiled(*self.inputs, self.cache),
        }

    def check(self, call: Callable[[], Any]) -> None:
        """Raises `AssertionError` where a call does not give the reference's bits."""
        for tensor in (self.cache.kv, self.cache.kr, self.cache.k_scale):
            tensor.zero_()
        want = reference_run(self.weights, *self.arrays, self.cache.numpy())
        out = mla.PrologOutput(*(a if isinstance(a, np.ndarray) else to_numpy(a) for a in call()))
        wrong = check_output(out, self.cache.numpy(), want)
        assert not wrong, "\n".join(map(str, wrong))


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(calls: Calls, n_rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn."""
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        ways = calls.ways()
        for call in ways.values():
            calls.check(call)
        for _ in range(n_rounds):
            for name, call in ways.items():
                times.setdefault(name, []).append(seconds(call))
    return times


@click.command(help="What a call costs through PyTorch.")
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=(1, 8), help="Tokens of a call; may repeat.")
@click.option("--rounds", type=click.IntRange(1), default=200, help="Calls of each way.")
def main(tokens: tuple[int, ...], rounds: int) -> None:
    """The command line."""
    console = Console(width=100)
    for t in tokens:
        times = measure(Calls(mla.MlaDims.deepseek_v32(), t), rounds)
        columns = [Column(name, justify="right") for name in ("min ms", "median ms", "median over MlaProlog's")]
        table = Table("way", *columns, box=box.SIMPLE, title=f"{t} tokens, {torch.get_num_threads()} threads")
        for name, taken in times.items():
            base = np.median(times[f"MlaProlog, {name.rpartition(' ')[2]}"])
            median = float(np.median(taken))
            table.add_row(name, f"{min(taken) * 1e3:.3f}", f"{median * 1e3:.3f}", f"{median / base:.3f}")
        console.print(table)


if __name__ == "__main__":
    main()
