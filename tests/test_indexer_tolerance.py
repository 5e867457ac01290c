"""Outputs of the indexer's prolog and of sparse attention within the reference operators' tolerances, and beyond."""

import ml_dtypes
import numpy as np
import pytest

import mla_numba as mla
from mla_numba.oracle.indexer import IndexerReferenceOutput
from mla_numba.tolerance import INDEXER_TOLERANCES, compare_attention, compare_indexer

FIELDS = IndexerReferenceOutput._fields
T, HEADS, WIDTH = 8, 50, 32


def make():
    """An output and a cache, as of a call and as the oracle's; no memory is shared."""

    def arrays():
        return (
            np.ones((T, HEADS, WIDTH), np.int8), np.ones((T, HEADS, 1), np.float16), np.ones((T, HEADS), np.float16),
            np.ones((2, 16, 1, WIDTH), np.int8), np.ones((2, 16, 1, 1), np.float16),
        )  # fmt: skip

    got = arrays()
    return mla.IndexerOutput(*got[:3]), mla.IndexerCache(*got[3:]), IndexerReferenceOutput(*arrays())


def passed(changes, fused=False):
    """Which outputs pass once elements are changed: by name a value, and how many elements get it."""
    out, cache, want = make()
    arrays = out._asdict() | cache.arrays()
    for name, (value, n) in changes.items():
        arrays[name].reshape(-1)[:n] = value
    found = compare_indexer(out, cache, want, fused=fused)
    assert [agreement.name for agreement in found] == list(FIELDS)
    return {agreement.name for agreement in found if agreement.passed}


def test_every_output_has_two_tolerances():
    assert set(INDEXER_TOLERANCES) == {(name, fused) for name in FIELDS for fused in (False, True)}


@pytest.mark.parametrize("fused", [False, True])
def test_codes_may_be_a_step_apart_and_queries_of_the_fused_operator_two(fused):
    everything = 10**6
    assert passed({"query": (2, everything), "k_cache": (0, everything)}, fused) == set(FIELDS)
    two = passed({"query": (3, everything), "k_cache": (3, 1)}, fused)
    assert two == set(FIELDS) - {"k_cache"} - (set() if fused else {"query"})


@pytest.mark.parametrize("fused", [False, True])
def test_scales_may_be_apart_in_a_share_of_the_elements(fused):
    step = 1 + 2**-10  # the next fp16 number: further than 2.5e-5
    few, more = round(0.005 * T * HEADS), round(0.005 * T * HEADS) + 1
    assert "query_scale" in passed({"query_scale": (1.25, few)}, fused)
    assert "query_scale" not in passed({"query_scale": (1.25, more)}, fused)
    assert ("query_scale" in passed({"query_scale": (step, T * HEADS)}, fused)) == fused  # 0.006 of its magnitude
    assert ("weights" in passed({"weights": (step, few)}, fused)) == fused
    assert "k_scale_cache" not in passed({"k_scale_cache": (step, 1)}, fused)  # 0.5 % of 32 is none


def test_a_nan_fails():
    assert passed({"weights": (np.nan, 1)}, fused=True) == set(FIELDS) - {"weights"}


def test_latents():
    want = np.ones((2, 4, 64), ml_dtypes.bfloat16)
    got = want.copy()
    got.reshape(-1)[:3] = 1.25  # 0.5 % of 512 are 3
    assert compare_attention(got, want).passed
    got.reshape(-1)[3] = 1.25
    assert not compare_attention(got, want).passed
    assert compare_attention(got, want).n_beyond == 4


def test_wrong_arguments_are_named():
    out, cache, want = make()
    with pytest.raises(TypeError, match=r"^output: expected IndexerOutput, got IndexerReferenceOutput"):
        compare_indexer(want, cache, want)
    with pytest.raises(TypeError, match=r"^reference: expected IndexerReferenceOutput, got IndexerOutput"):
        compare_indexer(out, cache, out)
    with pytest.raises(ValueError, match=r"^weights: expected shape \(8, 50\), got \(7, 50\)"):
        compare_indexer(out._replace(weights=out.weights[:7]), cache, want)
    with pytest.raises(TypeError, match=r"^fused: expected"):
        compare_indexer(out, cache, want, fused=1)
