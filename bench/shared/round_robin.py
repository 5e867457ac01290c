"""`MlaProlog` and its PyTorch peers in one process: checked against the reference, then timed in turns.

`mla_numba.testing.do_bench` times them: in each round every implementation makes one call, so that a slow spell of the
machine falls on all of them, and a ratio of one round compares calls made within milliseconds of each other. Between
two turns of one implementation the others have put their own weights into the caches; with several weight sets each
call also takes the next set, as the layers of a model do, so that none finds what the one before it has just read.
Worker threads have to sleep, not spin, between turns: `compare_peers.py` sets that in the environment.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

import mla_numba as mla
from mla_numba.oracle.bits import reference_run
from mla_numba.testing import Bench, Interval, Probes, do_bench
from mla_numba.tuning.rates import rates_as_dict

from .contenders import OURS, check_ours, check_peer, make_inputs, ours, torch_peer
from .held_to import limits_set
from .left_out import LeftOutError, or_left_out

__all__ = ["Comparison", "compare", "describe_machine"]


@dataclass(frozen=True)
class Comparison:
    """All implementations at one number of tokens; `left_out` has a reason for each that failed.

    `chosen`: the plan or the operators of each, in a line.
    """

    n_tokens: int
    bench: Bench
    chosen: dict[str, str]
    left_out: dict[str, str]

    def ratio(self, name: str) -> Interval:
        """How many times our time the implementation takes: the median over rounds."""
        return self.bench.ratio(name, OURS)

    def ratio_of_minima(self, name: str) -> float:
        """The same of the fastest rounds."""
        return min(self.bench.ms[name]) / min(self.bench.ms[OURS])

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON takes it."""
        implementations = []
        for name, ms in self.bench.ms.items():
            ratio, share = self.ratio(name), self.bench.share(name)
            implementations.append(
                {
                    "name": name,
                    "chosen": self.chosen[name],
                    "min_ms": min(ms),
                    "median_ms": self.bench.median(name).median,
                    "ratio_paired_median": ratio.median,
                    "ratio_low": ratio.low,
                    "ratio_high": ratio.high,
                    "ratio_of_minima": self.ratio_of_minima(name),
                    "share": None if share is None else share.value,
                    "share_reason": "" if share is None else share.reason,
                    "ms": list(ms),
                }
            )
        return {
            "tokens": self.n_tokens,
            "implementations": implementations,
            "left_out": self.left_out,
            "conditions": self.bench.conditions.as_dict(),
            "rates": rates_as_dict(self.bench.rates),
        }


def compare(
    dims: mla.MlaDims,
    weight_sets: Sequence[mla.MlaWeights],
    prologs: Sequence[mla.MlaProlog],
    n_tokens: int,
    peer_names: Sequence[str],
    n_rounds: int,
    seed: int = 0,
    probes: Probes | None = None,
) -> Comparison:
    """Prepare, check and time ours and the peers; `prologs` has a MlaProlog for each weight set, `seed` is the inputs'.

    `probes` measure the machine before and behind, made here if not given.
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
    bench = do_bench(
        {contender.name: contender.calls for contender in contenders},
        n_rounds=n_rounds,
        work=prologs[0].plan(n_tokens),
        probes=probes or Probes(prologs[0].n_threads),
    )
    chosen = {contender.name: contender.made_of for contender in contenders}
    return Comparison(n_tokens, bench, chosen, left_out)


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
