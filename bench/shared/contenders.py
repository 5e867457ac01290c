"""Implementations of the whole prolog, ready to be timed: a call a weight set, and a way to read what it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import mla_numba as mla
from mla_numba.oracle.bits import check_output, poison
from mla_numba.oracle.inputs import Inputs, random_inputs
from mla_numba.reference import ReferenceOutput
from mla_numba.tolerance import Agreement, compare_within, tolerance_of
from tiling import ceil_div

__all__ = [
    "BLOCK_SIZE",
    "OURS",
    "Contender",
    "DisagreementError",
    "check_ours",
    "check_peer",
    "disagreements",
    "make_inputs",
    "numpy_peer",
    "onnx_peer",
    "ours",
    "torch_peer",
]

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
class Contender:
    """An implementation with one call a weight set, and how to read what the call of a set computes.

    `made_of`: the plan or the operators, in a line. `caveat`: what goes before the report of a result that is wrong.
    """

    name: str
    made_of: str
    calls: list[Call]
    read: Callable[[int], Outputs]
    caveat: str = ""


def make_inputs(dims: mla.MlaDims, t: int, seed: int, *, quantized: bool = True) -> tuple[Inputs, mla.PagedCache]:
    """Inputs of t tokens, and an empty cache of one block more than they need."""
    n_blocks = ceil_div(max(t, 1), BLOCK_SIZE) + 1
    inputs = random_inputs(dims, t, seed, capacity=n_blocks * BLOCK_SIZE)
    inputs = inputs._replace(x=inputs.x * inputs.x.dtype.type(X_SCALE))
    return inputs, mla.PagedCache.allocate(dims, n_blocks, BLOCK_SIZE, quantized=quantized)


def ours(prologs: Sequence[mla.MlaProlog], inputs: Inputs, empty: mla.PagedCache) -> Contender:
    """`MlaProlog`, one a weight set, into one set of outputs and one cache."""
    cache = empty.copy()
    out = prologs[0].allocate_output(len(inputs.x))

    def call_of(prolog: mla.MlaProlog) -> Call:
        return lambda: prolog(*inputs, cache, out)

    calls = [call_of(prolog) for prolog in prologs]

    def read(i: int) -> Outputs:
        poison(*out)
        for array, before in zip(cache.arrays().values(), empty.arrays().values(), strict=True):
            array[...] = before
        calls[i]()
        arrays = out._asdict() | cache.arrays()
        return {name: np.array(array) for name, array in arrays.items() if array is not None}

    return Contender(OURS, str(prologs[0].plan(len(inputs.x))).splitlines()[0], calls, read)


def check_ours(contender: Contender, i: int, reference: ReferenceOutput, empty: mla.PagedCache) -> Outputs:
    """What the call of weight set i computes; raises `DisagreementError` unless it is the reference's, to the bit."""
    got = contender.read(i)
    out = mla.PrologOutput(*(got.get(name) for name in mla.PrologOutput._fields))
    arrays = (got.get(name) for name in ("kv_cache", "kr_cache", "k_scale_cache"))
    mismatches = check_output(out, mla.PagedCache(*arrays, empty.cache_mode), reference)
    if mismatches:
        raise DisagreementError(f"{OURS}, {len(out.q_norm)} tokens: " + "; ".join(map(str, mismatches)))
    return got


def disagreements(got: Outputs, want: Outputs) -> list[Agreement]:
    """The outputs and caches that are beyond the tolerances of the reference operator's own test."""
    compared = [
        compare_within(name, got[name], array, tolerance=tolerance_of(f"{name}_out", array.dtype))
        for name, array in want.items()
    ]
    return [agreement for agreement in compared if not agreement.passed]


def check_peer(contender: Contender, i: int, want: Outputs) -> None:
    """Raises `DisagreementError` unless what the call of weight set i computes is within the tolerances of `want`."""
    beyond = disagreements(contender.read(i), want)
    if beyond:
        t = len(want["q_norm"])
        found = contender.caveat + "; ".join(map(str, beyond))
        raise DisagreementError(f"{contender.name}, {t} tokens, weight set {i}: {found}")


def torch_peer(name: str, weight_sets: Sequence[mla.MlaWeights], inputs: Inputs, empty: mla.PagedCache) -> Contender:
    """The composition of that name; raises whatever PyTorch does where this machine lacks an operator or a compiler."""
    from .peers import PEERS
    from .torch_operators import as_torch, from_torch

    peer = PEERS[name](len(inputs.x))
    layers = [peer.prepare(weights) for weights in weight_sets]
    arguments = [as_torch(array) for array in inputs]
    caches = tuple(as_torch(array) for array in empty.copy().arrays().values())

    def call_of(layer: Callable[..., Any]) -> Call:
        return lambda: layer(*arguments, caches)

    calls = [call_of(layer) for layer in layers]

    def read(i: int) -> Outputs:
        tensors = calls[i]()._asdict() | dict(zip(empty.arrays(), caches, strict=True))
        return {name: from_torch(tensor) for name, tensor in tensors.items()}

    calls[0]()
    return Contender(name, peer.chosen(), calls, read, peer.caveat())


def numpy_peer(weight_sets: Sequence[mla.MlaWeights], inputs: Inputs, empty: mla.PagedCache) -> Contender:
    """Plain NumPy."""
    from .numpy_prolog import prepare

    cache = empty.copy()

    def call_of(layer: Callable[..., mla.PrologOutput]) -> Call:
        return lambda: layer(inputs, cache)

    calls = [call_of(prepare(weights)) for weights in weight_sets]
    return Contender("numpy", "fp32 copies, BLAS", calls, lambda i: calls[i]()._asdict() | _copies(cache))


def onnx_peer(
    weight_sets: Sequence[mla.MlaWeights], inputs: Inputs, empty: mla.PagedCache, n_threads: int
) -> Contender:
    """One ONNX Runtime session a weight set."""
    from .onnx_graphs import prepare

    cache = empty.copy()
    prepared = [prepare(weights, inputs, cache, n_threads) for weights in weight_sets]

    def read(i: int) -> Outputs:
        call, out = prepared[i]
        call()
        return out._asdict() | _copies(cache)

    made_of = "down: fp32 MatMul, up: MatMulInteger u8s8, heads: fp32 MatMul"
    return Contender("onnxruntime", made_of, [call for call, _ in prepared], read)


def _copies(cache: mla.PagedCache) -> Outputs:
    return {name: array.copy() for name, array in cache.arrays().items()}
