"""The bench that measures how far the two numerics profiles are apart."""

import ml_dtypes
import numpy as np
import pytest
from numerics_profiles import Difference, difference, measure

from mla_numba import MlaDims


def test_difference_by_hand():
    codes = np.array([[3, -4], [0, 0]], np.int8)
    assert difference("q_norm", codes, codes + np.int8(1)) == Difference("q_norm", 4, 4, 1.0, "code", 0.4)
    scales = np.array([0.0, 2.0, 4.0], np.float32)
    got = difference("k_scale_cache", scales, np.array([0.0, 2.5, 4.0], np.float32))
    assert got == Difference("k_scale_cache", 3, 1, 0.25, "relative", pytest.approx(0.5 / 20**0.5))
    real = np.array([1.0, -8.0], ml_dtypes.bfloat16)
    assert difference("query_nope", real, -real).largest == 16.0


@pytest.mark.parametrize("quant", ["a", "b", "ab"])
def test_measure_reads_every_output_and_cache(quant):
    found = {d.name: d for d in measure(MlaDims(256, 4, 128, 128, 64, 64), quant, 200, n_checked=2)}
    scales = {"q_norm_scale", "k_scale_cache"} if "b" in quant else set()
    assert set(found) == {"query_nope", "query_rope", "q_norm", "kv_cache", "kr_cache"} | scales
    assert found["q_norm"].n == 200 * 128
    if "b" in quant:
        assert (found["q_norm"].largest, found["q_norm"].unit) == (1.0, "code")
        assert 0 < found["q_norm_scale"].largest <= 2**-8
        assert 0 < found["query_nope"].relative_rms < 0.05
    if quant == "b":
        assert found["kr_cache"].n_differ == 0
