"""The whole prolog for the suite: every mode of ours and every peer, with its weight sets, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
import pytest
from shared.contenders import (
    OURS,
    Contender,
    Outputs,
    check_ours,
    check_peer,
    make_inputs,
    numpy_peer,
    onnx_peer,
    ours,
    torch_peer,
)
from shared.left_out import or_skipped

import mla_numba as mla
from mla_numba.oracle.bits import reference_run
from mla_numba.oracle.inputs import Inputs

from .session import Suite

__all__ = ["MODES", "PEERS", "PrologCases", "copy_weights"]

MODES = ("b", "none", "a", "ab")
PEERS = ("torch-P1", "torch-P1t", "torch-P2", "torch-P2p", "torch-P3w", "onnxruntime", "numpy")


def copy_weights(weights: mla.MlaWeights) -> mla.MlaWeights:
    """The same values in other memory."""
    arrays = {name: getattr(weights, name) for name in weights.__slots__}
    return replace(weights, **{name: a.copy() for name, a in arrays.items() if isinstance(a, np.ndarray)})


class PrologCases:
    """Contenders by name and number of tokens; what is expensive to make is kept as long as the next bench needs it."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.weights: Callable[[str], mla.MlaWeights] = cache(self._weights)
        self.prologs: Callable[[str], list[mla.MlaProlog]] = cache(self._prologs)
        self.ours: Callable[[str, int], Contender] = lru_cache(4)(self._ours)
        self.peer: Callable[[str, int], Contender] = lru_cache(1)(self._peer)
        self._wanted: Callable[[str, int], Outputs] = lru_cache(4)(self._check_ours)

    def n_sets(self) -> int:
        """Weight sets of every implementation."""
        return self.suite.copies(self.weights("b").nbytes)

    def _weights(self, quant: str) -> mla.MlaWeights:
        if quant == "none":
            return mla.MlaWeights.random(self.suite.dims, seed=0, quant="none")
        return self.weights("none").quantize(quant)

    def _prologs(self, quant: str) -> list[mla.MlaProlog]:
        n_threads = self.suite.n_threads
        return [mla.MlaProlog(self.weights(quant), n_threads=n_threads) for _ in range(self.n_sets())]

    def _ours(self, quant: str, t: int) -> Contender:
        inputs, empty = make_inputs(self.suite.dims, t, 0, quantized="b" in quant)
        made = ours(self.prologs(quant), inputs, empty)
        want = reference_run(self.weights(quant), *inputs, empty)
        for i in range(len(made.calls)):
            check_ours(made, i, want, empty)
        return made

    def _check_ours(self, quant: str, t: int) -> Outputs:
        return self.ours(quant, t).read(0)  # the reference's bits, as `_ours` found

    def _peer(self, name: str, t: int) -> Contender:
        library = name.partition("-")[0]
        pytest.importorskip({"torch": "torch", "onnxruntime": "onnxruntime", "numpy": "numpy"}[library])
        inputs, empty = make_inputs(self.suite.dims, t, 0)
        want = self._wanted("b", t)
        # Copies each, for a peer may work on the memory that it is given.
        sets = [copy_weights(self.weights("b")) for _ in range(self.n_sets())]
        with or_skipped(name):
            made = self._made(name, sets, inputs, empty)
            for i in range(len(made.calls)):
                check_peer(made, i, want)
        return made

    def _made(self, name: str, sets: Sequence[mla.MlaWeights], inputs: Inputs, empty: mla.PagedCache) -> Contender:
        library, _, composition = name.partition("-")
        if library == "torch":
            import torch

            torch.set_num_threads(self.suite.n_threads)
            return torch_peer(composition, sets, inputs, empty)
        if library == "onnxruntime":
            pytest.importorskip("onnx")
            return onnx_peer(sets, inputs, empty, self.suite.n_threads)
        return numpy_peer(sets, inputs, empty)

    def contender(self, implementation: str, t: int) -> Contender:
        """The implementation of that name: ours with its mode, or a peer."""
        library, _, mode = implementation.partition("-")
        return self.ours(mode, t) if library == OURS else self.peer(implementation, t)
