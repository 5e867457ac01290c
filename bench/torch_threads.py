"""Measure whether the threads of PyTorch and of the prolog take each other's cores.

`python bench/torch_threads.py --tokens 8` calls a bf16 product of torch and a prolog by turns: back to back, and with a
pause in which all threads but the caller's fall asleep. Both find the same data in the caches, so a ratio above 1 is
what threads cost that still wait for more of their own work. The prolog has to give the reference's bits first.

`--second-pool` makes Numba use an OpenMP pool of its own, as it does in a process that ran a kernel before it imported
a torch with another libgomp.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import numba
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch_calls import Calls, seconds

import mla_numba as mla

N_COLUMNS = 2048
PAUSE = 5e-3  # GNU OpenMP's threads wait some milliseconds before they sleep


def pause() -> None:
    """Waits without giving the core away, so that the caller itself is as awake as without."""
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass


def measure(torchs: Callable[[], Any], ours: Callable[[], Any], n_rounds: int) -> dict[str, tuple[list[float], ...]]:
    """Seconds of either with pauses and back to back: (apart, together) by name."""
    times: dict[str, tuple[list[float], ...]] = {"torch": ([], []), "prolog": ([], [])}
    for _ in range(n_rounds):
        for kind in (0, 1):
            for i in range(12):
                for name, call in (("torch", torchs), ("prolog", ours)):
                    taken = seconds(call)
                    if i >= 2:
                        times[name][kind].append(taken)
                    if kind == 0:
                        pause()
    return times


def load_second_pool() -> None:
    """Numba's pool bound to the system's libgomp, although torch's is there."""
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    finally:
        sys.setdlopenflags(before)


@click.command(help="Whether the threads of PyTorch and of the prolog take each other's cores.")
@click.option("--tokens", type=click.IntRange(1), default=8, help="Tokens of a call, and rows of torch's product.")
@click.option("--rounds", type=click.IntRange(1), default=20, help="Rounds of ten calls each.")
@click.option("--second-pool", is_flag=True, help="A pool for Numba alone.")
def main(tokens: int, rounds: int, second_pool: bool) -> None:
    """The command line."""
    if second_pool:
        load_second_pool()
    dims = mla.MlaDims.deepseek_v32()
    calls = Calls(dims, tokens)
    a = torch.randn(tokens, dims.hidden_size).bfloat16()
    b = torch.randn(N_COLUMNS, dims.hidden_size).bfloat16().t()
    with torch.inference_mode():
        calls.check(lambda: calls.module(*calls.inputs, calls.cache))
        times = measure(lambda: a @ b, lambda: calls.module(*calls.inputs, calls.cache, calls.out), rounds)
    names = ("apart: min ms", "median", "together: min ms", "median", "ratio of minima", "of medians")
    table = Table("", *(Column(name, justify="right") for name in names), box=box.SIMPLE)
    for name, both in times.items():
        (least, median), (least_t, median_t) = ((min(v) * 1e3, float(np.median(v)) * 1e3) for v in both)
        row = (least, median, least_t, median_t, least_t / least, median_t / median)
        table.add_row(name, *(f"{value:.2f}" for value in row))
    console = Console(width=110)
    console.print(
        f"{tokens} tokens, {torch.get_num_threads()} threads of torch, {calls.module.prolog.n_threads} of Numba on "
        f"{numba.threading_layer()}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
