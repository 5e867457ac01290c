"""Prologs and packed weights pickled and copied."""

import copy
import pickle

import numpy as np
import pytest
from helpers import make_cache, make_inputs, make_weights, run_python

from mla_numba import (
    CpuTiling,
    MlaDims,
    MlaProlog,
    PackedWeights,
)
from mla_numba.kernels import max_threads
from mla_numba.oracle.bits import check_output, reference_run
from mla_numba.weights import packed

DIMS = MlaDims(130, 3, 50, 68, 33, 34)


@pytest.mark.parametrize("again", [lambda c: pickle.loads(pickle.dumps(c)), copy.deepcopy, copy.copy])
def test_a_call_writes_the_arrays_of_a_copied_cache(again):
    weights, inputs = make_weights(DIMS, "b"), make_inputs(DIMS, 9, 32)
    cache = make_cache(DIMS, True, 2, 16)
    copied = again(cache)
    want = reference_run(weights, *inputs, cache.copy())
    assert check_output(MlaProlog(weights)(*inputs, copied), copied, want) == []


@pytest.mark.parametrize("mode", ["none", "ab smooth"])
@pytest.mark.parametrize("again", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy, copy.copy])
def test_the_copy_computes_the_same(mode, again):
    weights = make_weights(DIMS, mode)
    settings = {"tile_config": CpuTiling(down_kc=64), "check_finite": True, "numerics": "cann"}
    prolog = again(MlaProlog(weights, "prefill", n_threads=1, **settings))
    assert (prolog.phase, prolog.n_threads) == ("prefill", 1)
    assert {name: getattr(prolog, name) for name in settings} == settings
    assert prolog.plan(9).tiles
    cache, inputs = make_cache(DIMS, "b" in mode, 2, 16), make_inputs(DIMS, 9, 32)
    want = reference_run(weights, *inputs, cache, numerics="cann")
    assert check_output(prolog(*inputs, cache), cache, want) == []


def test_panels_begin_at_a_cache_line_again():
    weights = pickle.loads(pickle.dumps(make_weights(DIMS, "b").pack()))
    assert isinstance(weights, PackedWeights)
    for gemm in (weights.down, weights.up, weights.uk):
        assert gemm.panels.__array_interface__["data"][0] % 64 == 0


def test_a_process_with_fewer_threads_takes_those(tmp_path):
    path = tmp_path / "prolog.pickle"
    path.write_bytes(pickle.dumps(MlaProlog(make_weights(DIMS, "b"))))
    code = f"import pickle; print(pickle.loads(open({str(path)!r}, 'rb').read()).n_threads)"
    assert run_python("-c", code, NUMBA_NUM_THREADS="1").split() == ["1"]
    assert pickle.loads(path.read_bytes()).n_threads == max_threads()


def test_panels_of_another_order_are_refused(monkeypatch):
    data = pickle.dumps(make_weights(DIMS, "b").pack())
    monkeypatch.setattr(packed, "_PANEL_ORDER", np.inf)
    with pytest.raises(
        ValueError, match=r"^PackedWeights: expected panels as .* \(order inf, .* got those of .*order 1"
    ):
        pickle.loads(data)
