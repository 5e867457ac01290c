"""`MlaProlog` and its PyTorch peers in one process: checked against the reference, then timed in turns.

In each round every implementation makes one call, the order moved on by one each round, so that a slow spell of the
machine falls on all of them and a ratio of one round compares calls made within milliseconds of each other. Between
two turns of one implementation the others have put their own weights into the caches; with several weight sets each
call also takes the next set, as the layers of a model do. Worker threads have to sleep, not spin, between turns:
`compare_peers.py` sets that in the environment.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numba
import numpy as np
import torch
from agreement import check_agreement
from peers import PEERS
from torch_operators import as_torch

import mla_numba as mla
from mla_numba.inputs import Inputs, random_inputs
from mla_numba.verify import check_output, poison, reference_run

__all__ = ["OURS", "Comparison", "DisagreementError", "Timed", "compare", "describe_machine"]

OURS = "mla_numba"
BLOCK_SIZE = 128

# Hidden states are N(0, 1) times this. Where x*cos and y*sin cancel, one bf16 rounding of a larger x is more than the
# tolerance of kr_cache, which forgives no element; with fp32 sums in another order some such rounding is certain.
X_SCALE = 2.0**-7

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]
Outputs = dict[str, Array]


class DisagreementError(Exception):
    """An implementation is not within the tolerances, or ours is not the reference to the bit."""


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
    """All implementations at one number of tokens; `left_out` has a reason for each that could not run."""

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


@dataclass
class _Contender:
    """An implementation with one call a weight set, and how to read what the call of a set computes."""

    timed: Timed
    calls: list[Call]
    read: Callable[[int], Outputs]


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

    Raises `DisagreementError` naming the implementation and the arrays. A peer that this machine can't run is left out.
    """
    n_blocks = -(-max(n_tokens, 1) // BLOCK_SIZE) + 1
    inputs = random_inputs(dims, n_tokens, seed, capacity=n_blocks * BLOCK_SIZE)
    inputs = inputs._replace(x=inputs.x * inputs.x.dtype.type(X_SCALE))
    empty = mla.PagedCache.allocate(dims, n_blocks, BLOCK_SIZE)
    ours = _ours(prologs, inputs, empty)
    wanted = _check_ours(ours, prologs, weight_sets, inputs, empty)
    contenders, left_out = [ours], {}
    for name in peer_names:
        try:
            peer = _peer(name, weight_sets, inputs, empty)
            peer.calls[0]()
        except RuntimeError as error:  # an operator or a compiler that this machine lacks
            left_out[name] = str(error).strip().splitlines()[0]
            continue
        for i, want in enumerate(wanted):
            beyond = check_agreement(peer.read(i), want)
            if beyond:
                raise DisagreementError(f"{name}, {n_tokens} tokens, weight set {i}: " + "; ".join(map(str, beyond)))
        contenders.append(peer)
    before = os.getloadavg()[0]
    _time(contenders, n_rounds)
    return Comparison(n_tokens, [c.timed for c in contenders], left_out, before, os.getloadavg()[0])


def _time(contenders: Sequence[_Contender], n_rounds: int) -> None:
    """Time all contenders for n_rounds, after one round that isn't counted."""
    gc.collect()
    gc.disable()
    try:
        for i in range(-1, n_rounds):
            shift = i % len(contenders)
            for contender in (*contenders[shift:], *contenders[:shift]):
                call = contender.calls[i % len(contender.calls)]
                start = time.perf_counter_ns()
                call()
                elapsed = time.perf_counter_ns() - start
                if i >= 0:
                    contender.timed.ms.append(elapsed / 1e6)
    finally:
        gc.enable()


def _ours(prologs: Sequence[mla.MlaProlog], inputs: Inputs, empty: mla.PagedCache) -> _Contender:
    cache = empty.copy()
    out = prologs[0].allocate_output(len(inputs.x))

    def call_of(prolog: mla.MlaProlog) -> Call:
        return lambda: prolog(*inputs, cache, out)

    calls = [call_of(prolog) for prolog in prologs]

    def read(i: int) -> Outputs:
        poison(*out)
        calls[i]()
        return {name: np.array(array) for name, array in (out._asdict() | cache.arrays()).items()}

    return _Contender(Timed(OURS, str(prologs[0].plan(len(inputs.x))).splitlines()[0]), calls, read)


def _check_ours(
    ours: _Contender,
    prologs: Sequence[mla.MlaProlog],
    weight_sets: Sequence[mla.MlaWeights],
    inputs: Inputs,
    empty: mla.PagedCache,
) -> list[Outputs]:
    """What each weight set gives; the first is the reference's, to the bit."""
    cache = empty.copy()
    mismatches = check_output(prologs[0](*inputs, cache), cache, reference_run(weight_sets[0], *inputs, empty))
    if mismatches:
        raise DisagreementError(f"{OURS}, {len(inputs.x)} tokens: " + "; ".join(map(str, mismatches)))
    return [ours.read(i) for i in range(len(weight_sets))]


def _peer(name: str, weight_sets: Sequence[mla.MlaWeights], inputs: Inputs, empty: mla.PagedCache) -> _Contender:
    peer = PEERS[name](len(inputs.x))
    layers = [peer.prepare(weights) for weights in weight_sets]
    arguments = [as_torch(array) for array in inputs]
    caches = tuple(as_torch(array) for array in empty.copy().arrays().values())

    def call_of(layer: Callable[..., Any]) -> Call:
        return lambda: layer(*arguments, caches)

    calls = [call_of(layer) for layer in layers]

    def read(i: int) -> Outputs:
        tensors = calls[i]()._asdict() | dict(zip(empty.arrays(), caches, strict=True))
        return {name: _as_numpy(tensor) for name, tensor in tensors.items()}

    return _Contender(Timed(name, peer.chosen()), calls, read)


def _as_numpy(tensor: torch.Tensor) -> Array:
    """A copy of the tensor as an array."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


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
