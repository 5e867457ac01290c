"""`MlaProlog` and its PyTorch peers in one process: checked against the reference, then timed in turns.

In each round every implementation makes one call, the order moved on by one each round, so that a slow spell of the
machine falls on all of them and a ratio of one round compares calls made within milliseconds of each other. Between
two turns of one implementation the others have put their own weights into the caches; with several weight sets each
call also takes the next set, as the layers of a model do, so that none finds what the one before it has just read.
Worker threads have to sleep, not spin, between turns: `compare_peers.py` sets that in the environment.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np
import torch

import mla_numba as mla
from mla_numba.oracle.bits import reference_run

from .contenders import OURS, Contender, check_ours, check_peer, make_inputs, ours, torch_peer
from .held_to import limits_set
from .left_out import LeftOutError, or_left_out

__all__ = ["Comparison", "Timed", "compare", "describe_machine"]


@dataclass
class Timed:
    """An implementation's milliseconds, one a round."""

    name: str
    chosen: str
    ms: list[float] = field(default_factory=list)

    @property
    def min_ms(self) -> float:
        """The fastest round."""
        return min(self.ms)

    @property
    def median_ms(self) -> float:
        """The middle round."""
        return median(self.ms)


@dataclass
class Comparison:
    """All implementations at one number of tokens; `left_out` has a reason for each that failed."""

    n_tokens: int
    timed: list[Timed]
    left_out: dict[str, str]
    load_before: float
    load_after: float

    def ratio(self, name: str) -> tuple[float, float]:
        """How many times our time the implementation takes: the median over rounds, and of the fastest rounds."""
        by_name = {timed.name: timed for timed in self.timed}
        ours, other = by_name[OURS], by_name[name]
        paired = median(b / a for a, b in zip(ours.ms, other.ms, strict=True))
        return paired, other.min_ms / ours.min_ms

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON takes it."""
        implementations = []
        for timed in self.timed:
            paired, of_minima = self.ratio(timed.name)
            implementations.append(
                {
                    "name": timed.name,
                    "chosen": timed.chosen,
                    "min_ms": timed.min_ms,
                    "median_ms": timed.median_ms,
                    "ratio_paired_median": paired,
                    "ratio_of_minima": of_minima,
                    "ms": timed.ms,
                }
            )
        return {
            "tokens": self.n_tokens,
            "implementations": implementations,
            "left_out": self.left_out,
            "load_before": self.load_before,
            "load_after": self.load_after,
        }


def compare(
    dims: mla.MlaDims,
    weight_sets: Sequence[mla.MlaWeights],
    prologs: Sequence[mla.MlaProlog],
    n_tokens: int,
    peer_names: Sequence[str],
    n_rounds: int,
    seed: int = 0,
) -> Comparison:
    """Prepare, check and time ours and the peers; `prologs` has a MlaProlog for each weight set, `seed` is the inputs'.

    Raises `DisagreementError` naming the arrays where ours is wrong. A peer that this machine can't run, or that is
    wrong on it, is left out.
    """
    inputs, empty = make_inputs(dims, n_tokens, seed)
    own = ours(prologs, inputs, empty)
    wanted = [check_ours(own, 0, reference_run(weight_sets[0], *inputs, empty), empty)]
    wanted += [own.read(i) for i in range(1, len(weight_sets))]
    contenders, left_out = [own], {}
    for name in peer_names:
        try:
            with or_left_out():
                peer = torch_peer(name, weight_sets, inputs, empty)
                for i, want in enumerate(wanted):
                    check_peer(peer, i, want)
        except LeftOutError as error:
            left_out[name] = str(error)
            continue
        contenders.append(peer)
    timed = [Timed(contender.name, contender.made_of) for contender in contenders]
    before = os.getloadavg()[0]
    _time(contenders, timed, n_rounds)
    return Comparison(n_tokens, timed, left_out, before, os.getloadavg()[0])


def _time(contenders: Sequence[Contender], timed: Sequence[Timed], n_rounds: int) -> None:
    """Time all contenders for n_rounds, after one round that isn't counted."""
    pairs = list(zip(contenders, timed, strict=True))
    turns = count()
    gc.collect()
    gc.disable()
    try:
        for i in range(-1, n_rounds):
            shift = i % len(pairs)
            for contender, times in (*pairs[shift:], *pairs[:shift]):
                call = contender.calls[next(turns) % len(contender.calls)]
                start = time.perf_counter_ns()
                call()
                elapsed = time.perf_counter_ns() - start
                if i >= 0:
                    times.ms.append(elapsed / 1e6)
    finally:
        gc.enable()


def describe_machine(prolog: mla.MlaProlog) -> dict[str, str]:
    """Versions, CPU, threads, and how threads run and wait on either side. Call it after a comparison."""
    libraries = [line.strip(" -") for line in torch.__config__.show().splitlines() if "Math" in line or "DNN v" in line]
    try:
        layer = numba.threading_layer()
    except ValueError:
        layer = "none started"
    return {
        "cpu": _cpu_name(),
        "isa": prolog.machine.isa,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "torch_limits": limits_set(dict(os.environ)) or "none",
        "threads": f"{OURS} {prolog.n_threads}, torch {torch.get_num_threads()}",
        "threading": f"{OURS}: Numba's {layer}; torch: {_torch_threading()}",
        "waiting": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "malloc": os.environ.get("GLIBC_TUNABLES", "not set"),
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in (
                ("mla_numba", mla.__version__),
                ("python", platform.python_version()),
                ("numba", numba.__version__),
                ("numpy", np.__version__),
                ("torch", torch.__version__),
            )
        ),
        "torch_libraries": "; ".join(libraries),
    }


def _torch_threading() -> str:
    for line in torch.__config__.parallel_info().splitlines():
        if "parallel backend" in line:
            return line.split(":")[1].strip()
    return "unknown"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
