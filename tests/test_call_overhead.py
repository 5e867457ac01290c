"""What a call costs besides its kernels."""

import gc
import sys
import tracemalloc
import weakref

import pytest
from helpers import make_call, make_inputs, make_weights

from mla_numba import MlaDims, MlaProlog
from tiling import ceil_div

DIMS = MlaDims(64, 2, 32, 32, 16, 8)


@pytest.fixture(scope="module")
def prolog():
    return MlaProlog(make_weights(DIMS, "b"))


def arguments(t):
    n_blocks = ceil_div(t, 64)
    call = make_call(DIMS, True, t, n_blocks, 64)
    return (*make_inputs(DIMS, t, n_blocks * 64), call.cache, call.out)


@pytest.mark.parametrize("t", [1, 1000])
def test_a_call_into_given_outputs_allocates_no_arrays(prolog, t):
    given = arguments(t)
    prolog(*given)
    tracemalloc.start()
    try:
        prolog(*given)  # what is kept from a first call under tracemalloc itself
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        prolog(*given)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Views and tuples for the kernel, the same for every t: x alone has t * 128 bytes.
    assert peak - before < 16_000, (before, peak)


def test_a_call_makes_few_calls_of_its_own(prolog):
    """What a call costs in Python, counted: a time would be that of the machine's other work too."""
    given = arguments(1)
    prolog(*given)
    called = []
    sys.setprofile(lambda frame, event, arg: called.append(arg or frame) if event in ("call", "c_call") else None)
    try:
        prolog(*given)
    finally:
        sys.setprofile(None)
    assert len(called) < 250, called


def test_a_prolog_goes_with_its_last_reference():
    """Not when the garbage collector comes by, which may be long after: a layer's weights are 85 MB."""
    prolog = MlaProlog(make_weights(DIMS, "b"))
    prolog(*arguments(3))
    prolog.plan(5)
    alive = weakref.ref(prolog)
    gc.disable()
    try:
        del prolog
        assert alive() is None
    finally:
        gc.enable()
