"""Outputs within the reference operator's tolerances, and beyond them."""

import ml_dtypes
import numpy as np
import pytest

from mla_numba.dump_names import OUTPUTS
from mla_numba.oracle.tolerance import TOLERANCES, Tolerance, compare_within

BF16 = np.dtype(ml_dtypes.bfloat16)


def agreement(name, want, **changes):
    got = want.copy()
    for index, value in changes.get("at", {}).items():
        got.flat[index] = value
    return compare_within(name, got, want, **{key: value for key, value in changes.items() if key != "at"})


def test_every_output_has_a_tolerance():
    assert {name for name, _ in TOLERANCES} == set(OUTPUTS)


def test_the_share_of_elements_beyond_decides():
    want = np.ones(400, BF16)
    two = agreement("query_nope_out", want, at={3: 1.25, 7: 2})
    assert (two.n_beyond, two.share_beyond, two.passed, two.exact) == (2, 0.005, True, False)
    assert (two.max_abs, two.max_abs_at, two.max_rel) == (1, (7,), 1)
    assert (two.mismatch.n_differ, two.mismatch.first) == (2, (3,))
    assert not agreement("query_nope_out", want, at={3: 1.25, 7: 2, 9: 2}).passed
    assert not agreement("kr_cache_out", want, at={3: 1.25}).passed
    assert not agreement("query_nope_out", want, at={3: 1.0078125}, exact=True).passed


def test_the_tolerance_is_absolute_and_relative():
    want = np.full(1000, 2.0, np.float32)
    bound = 2.5e-5 + 0.005 * 2
    within = agreement("k_scale_cache_out", want, at={0: 2 + bound * 0.99})
    beyond = agreement("k_scale_cache_out", want, at={0: 2 - bound * 1.01})
    assert (within.n_beyond, within.passed, beyond.n_beyond, beyond.passed) == (0, True, 1, False)
    assert beyond.max_rel == pytest.approx(bound * 1.01 / 2, rel=1e-3)


def test_codes_may_be_a_step_apart():
    want = np.zeros(300, np.int8)
    want[0] = 127
    one = agreement("kv_cache_out", want, at={5: 1})
    assert (one.passed, one.max_abs, one.max_rel) == (True, 1, 0)
    assert not agreement("kv_cache_out", want, at={5: 2}).passed
    wide = agreement("q_norm_out", want, at={0: -128})  # no difference of int8 codes holds 255
    assert (wide.max_abs, wide.n_beyond, wide.passed) == (255, 1, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nan_or_inf_fails_wherever_it_is(value):
    want = np.ones(4000, BF16)
    found = agreement("query_rope_out", want, at={77: value})
    assert not found.passed
    assert (found.n_nan, found.n_inf) == ((1, 0) if np.isnan(value) else (0, 1))
    assert (found.n_beyond, found.max_abs, found.max_abs_at) == (1, 0, None)
    want[77] = value  # also where the oracle has one
    again = agreement("query_rope_out", want)
    assert (again.exact, again.passed, again.n_beyond) == (True, False, 1)
    assert agreement("query_rope_out", want, exact=True).passed


def test_another_tolerance_than_the_outputs_and_how_it_reads():
    want = np.array([0.0, 1, 10, 100])
    got = want + np.array([0.5, 2, 1.5, 12])
    found = compare_within("a", got, want, tolerance=Tolerance(absolute=1, relative=0.1, share=0.25))
    assert (found.n_beyond, found.max_abs, found.max_abs_at, found.passed) == (2, 12, (3,), False)
    assert compare_within("a", got, want, tolerance=Tolerance(1, 0.1, 0.5)).passed
    assert str(found) == (
        "a: 2 of 4 elements beyond 1 + 0.1 |expected|, 25.0% of all beyond it; the largest difference is 12, at [3]"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_nan_or_inf_fails_whatever_share_is_allowed(bad):
    want = np.zeros(1000, np.float32)
    got = want.copy()
    got[7] = bad
    found = compare_within("a", got, want, tolerance=Tolerance(absolute=1, relative=0, share=0.5))
    assert (found.n_beyond, found.passed) == (1, False)
    assert str(found).endswith("; 1 NaN, 0 Inf" if np.isnan(bad) else "; 0 NaN, 1 Inf")
