"""Prologs and packed weights pickled and copied."""

import copy
import pickle
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from helpers import make_cache, make_inputs, make_weights, run_python
from helpers.public_objects import public_classes

from mla_numba import (
    BoundCall,
    Checkpoint,
    CpuTiling,
    IndexerProlog,
    MlaDims,
    MlaProlog,
    PackedWeights,
    PrologOutput,
)
from mla_numba.base.threads import usual_threads
from mla_numba.kernels import max_threads
from mla_numba.oracle.bits import check_output, reference_run
from mla_numba.weights import packed_gemm

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
    assert pickle.loads(path.read_bytes()).n_threads == usual_threads(max_threads())


def test_panels_of_another_order_are_refused(monkeypatch):
    data = pickle.dumps(make_weights(DIMS, "b").pack())
    monkeypatch.setattr(packed_gemm, "_PANEL_ORDER", np.inf)
    with pytest.raises(
        ValueError, match=r"^PackedWeights: expected panels as .* \(order inf, .* got those of .*order 1"
    ):
        pickle.loads(data)


AGAIN = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "copy": copy.copy, "deepcopy": copy.deepcopy}
NOT_COPIED = {BoundCall}  # views of the caller's arrays
AS_A_WHOLE = {Checkpoint, IndexerProlog, MlaProlog}  # compared by what they do, prologs above and with indexers


def differences(got, want, name=""):
    """Where two objects differ: in type, in an array's bits, or in another value."""
    if type(got) is not type(want):
        return [f"{name}: {type(got)}"]
    if isinstance(want, np.ndarray):
        same = got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
        return [] if same else [name]
    if is_dataclass(want):
        pairs = [(f.name, getattr(got, f.name), getattr(want, f.name)) for f in fields(want) if f.name != "views"]
    elif isinstance(want, tuple | list) and len(got) == len(want):
        pairs = [(str(i), g, w) for i, (g, w) in enumerate(zip(got, want, strict=True))]
    else:
        return [] if got == want else [name]
    return [one for key, g, w in pairs for one in differences(g, w, f"{name}.{key}")]


@pytest.mark.parametrize("how", AGAIN)
@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_public_objects_are_copied_whole(objects, cls, how):
    value = objects[cls]
    if cls in NOT_COPIED:
        with pytest.raises(TypeError, match="expected to stay in its process"):
            AGAIN[how](value)
        return
    got = AGAIN[how](value)
    assert repr(got) == repr(value)
    assert cls in AS_A_WHOLE or differences(got, value) == []


@pytest.mark.parametrize("how", AGAIN)
def test_a_copied_checkpoint_reads_the_same(objects, how):
    checkpoint = objects[Checkpoint]
    assert differences(AGAIN[how](checkpoint).load_layer(0), checkpoint.load_layer(0)) == []


def test_a_difference_is_found(objects):
    value = objects[PrologOutput]
    other = value._replace(q_norm=value.q_norm + np.int8(1))
    assert differences(other, value) == [".2"]
    assert differences(replace(DIMS, hidden_size=132), DIMS) == [".hidden_size"]
