"""Sums and values so small that an instruction which flushes subnormals to zero would show.

Every product here is exact in float32 (zero, or a multiple of 2**-149), so that fused and separate steps agree.
"""

import numpy as np
import pytest
from helpers import BF16, assert_none, make_call, make_inputs, make_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_numba import MlaDims, MlaProlog
from mla_numba.kernels import ISA
from mla_numba.oracle.bits import check_output, reference_run

DIMS = MlaDims(130, 3, 50, 68, 33, 34)
T = ISA.mr + 3
SUBNORMAL = -133  # stands for whole multiples of 2**-133, up to 127 of them
PAIRS = [(SUBNORMAL, -9), (SUBNORMAL, 0), (SUBNORMAL, 30), (-126, -8), (-67, -67), (-100, -30), (-60, -60), (-50, -50)]
PAIRS += [(b, a) for a, b in PAIRS if a != b]


def at(rng, exponent, *shape, binades=3):
    """bf16 of both signs: 8 significant bits in the binades from this exponent on, or subnormals."""
    sign = rng.choice([-1.0, 1.0], shape)
    if exponent == SUBNORMAL:
        return (sign * rng.integers(0, 128, shape) * 2.0**-133).astype(np.float32).astype(BF16)
    values = sign * rng.integers(128, 256, shape) * 2.0 ** (exponent - 7 + rng.integers(0, binades, shape))
    return values.astype(np.float32).astype(BF16)


def assert_call(weights, inputs):
    quantized = "b" in weights.quant
    want = None
    for n in (1, None):
        call = make_call(DIMS, quantized, T, 3, 16)
        want = reference_run(weights, *inputs, call.cache) if want is None else want
        MlaProlog(weights, n_threads=n)(*inputs, call.cache, call.out)
        call.assert_equals(want)
    return want


@pytest.mark.parametrize("mode", ["none", "b", "b smooth"])
@pytest.mark.parametrize(("p_x", "p_w"), PAIRS)
def test_down_projections(p_x, p_w, mode):
    rng = np.random.default_rng(0)
    large = at(rng, 120, 50)
    weights = make_weights(
        DIMS,
        mode,
        w_dq=at(rng, p_w, 130, 50),
        w_dkv_kr=at(rng, p_w, 130, 102),
        gamma_cq=large,
        gamma_ckv=at(rng, 120, 68),
    )
    inputs = make_inputs(DIMS, T, 48)._replace(x=at(rng, p_x, T, 130), cos=at(rng, 0, T, 34), sin=at(rng, 0, T, 34))
    assert_call(weights, inputs)


@pytest.mark.parametrize("mode", ["none", "b"])
@pytest.mark.parametrize(("p_x", "p_w"), PAIRS)
def test_one_tiny_token_among_others(p_x, p_w, mode):
    """Its products are as small as above, and no other's are."""
    rng = np.random.default_rng(1)
    weights = make_weights(DIMS, mode, w_dq=at(rng, p_w, 130, 50), w_dkv_kr=at(rng, p_w, 130, 102))
    x = at(rng, max(-40 - p_w, -120), T, 130)
    for token in (0, 5, T - 1):
        x[token] = at(rng, p_x, 130)
    assert_call(weights, make_inputs(DIMS, T, 48)._replace(x=x))


@pytest.mark.parametrize(("p_x", "p_w"), PAIRS)
@pytest.mark.parametrize("every", [2, 3, 64, 65])
def test_large_values_that_meet_zero_weights(every, p_x, p_w):
    """A row's largest value says nothing about its sums: here it is multiplied by zero."""
    rng = np.random.default_rng(2)
    w_dq, w_dkv_kr, x = at(rng, p_w, 130, 50), at(rng, p_w, 130, 102), at(rng, p_x, T, 130)
    x[:, ::every] = at(rng, 3, T, len(range(0, 130, every)))
    w_dq[::every] = w_dkv_kr[::every] = 0
    assert_call(make_weights(DIMS, "none", w_dq=w_dq, w_dkv_kr=w_dkv_kr), make_inputs(DIMS, T, 48)._replace(x=x))


@pytest.mark.parametrize(("p_x", "p_w"), PAIRS)
def test_large_weights_that_meet_zeros(p_x, p_w):
    rng = np.random.default_rng(3)
    w_dq, w_dkv_kr, x = at(rng, p_w, 130, 50), at(rng, p_w, 130, 102), at(rng, p_x, T, 130)
    w_dq[1::4], w_dkv_kr[1::4] = at(rng, 3, 33, 50)[: len(w_dq[1::4])], at(rng, 3, 33, 102)[: len(w_dq[1::4])]
    x[:, 1::4] = 0
    assert_call(make_weights(DIMS, "none", w_dq=w_dq, w_dkv_kr=w_dkv_kr), make_inputs(DIMS, T, 48)._replace(x=x))


@pytest.mark.parametrize("exponent", [-100, -60, 0])
def test_sums_that_cancel_to_less_than_the_least_normal(exponent):
    """Pairs of k cancel but for their last bit, in each order, at each place of a vector."""
    rng = np.random.default_rng(4)
    x = at(rng, exponent, T, 130, binades=1)
    x[:, 1::2] = x[:, ::2]
    least = -126 - exponent
    w_dq, w_dkv_kr = at(rng, max(least, -118), 130, 50, binades=1), at(rng, max(least, -118), 130, 102, binades=1)
    for w in (w_dq, w_dkv_kr):
        w[1::2] = -w[::2]
        bits = w.view(np.uint16)
        bits[1::2] ^= rng.integers(0, 2, bits[1::2].shape, np.uint16)
    assert_call(make_weights(DIMS, "none", w_dq=w_dq, w_dkv_kr=w_dkv_kr), make_inputs(DIMS, T, 48)._replace(x=x))


@pytest.mark.parametrize("exponent", [-118, -112, -106, -100, -90])
@pytest.mark.parametrize("mode", ["none", "b"])
def test_per_head_products(mode, exponent):
    """w_uk so small that a head's sums are, in the quantised mode and in the other."""
    rng = np.random.default_rng(5)
    weights = make_weights(DIMS, mode, w_uk=at(rng, exponent, 3, 33, 68))
    if mode == "none":
        weights.w_uq_qr[...] = at(rng, 0, 50, 201)
    assert_call(weights, make_inputs(DIMS, T, 48)._replace(x=at(rng, 0, T, 130)))


def test_subnormal_weights_of_the_heads():
    """Queries are large enough for exact products, and the weights are whole multiples of 2**-133."""
    rng = np.random.default_rng(8)
    inputs = make_inputs(DIMS, T, 48)._replace(x=at(rng, 0, T, 130))
    scale = np.full(201, 2.0**20, np.float32)
    weights = make_weights(DIMS, "b", w_uk=at(rng, SUBNORMAL, 3, 33, 68), dequant_scale_w_uq_qr=scale)
    assert_call(weights, inputs)
    gamma, w_uk = at(rng, 30, 50), at(rng, 100, 3, 33, 68)
    assert_call(make_weights(DIMS, "none", gamma_cq=gamma, w_uq_qr=at(rng, SUBNORMAL, 50, 201), w_uk=w_uk), inputs)


@pytest.mark.parametrize("exponent", [-104, -100, -90])
def test_queries_of_tiny_channel_scales(exponent):
    """The other way round: the query is tiny or subnormal, and w_uk is not."""
    rng = np.random.default_rng(6)
    scale = np.full(201, 2.0**exponent, np.float32)
    for power in (0, -20, -29):
        weights = make_weights(
            DIMS, "b", w_uk=at(rng, 0, 3, 33, 68), dequant_scale_w_uq_qr=scale * np.float32(2.0**power)
        )
        assert_call(weights, make_inputs(DIMS, T, 48))


@pytest.mark.parametrize("exponent", [-116, -110, -104, -100, -90])
def test_unquantised_up_projection(exponent):
    rng = np.random.default_rng(7)
    weights = make_weights(DIMS, "none", w_uq_qr=at(rng, exponent, 50, 201), w_uk=at(rng, 100, 3, 33, 68))
    assert_call(weights, make_inputs(DIMS, T, 48)._replace(x=at(rng, 0, T, 130)))


@settings(max_examples=60)
@given(st.integers(-126, 60), st.integers(-134, 20), st.integers(0, 999), st.sampled_from(["none", "b"]))
def test_any_exponents(p_x, p_sum, seed, mode):
    p_w = min(max(p_sum - p_x, -126), 100)
    if p_x + p_w < -134:
        p_x = -134 - p_w
    rng = np.random.default_rng(seed)
    x = at(rng, p_x, T, 130, binades=2)
    x[rng.random(x.shape) < 0.3] = 0
    weights = make_weights(DIMS, mode, w_dq=at(rng, p_w, 130, 50), w_dkv_kr=at(rng, p_w, 130, 102))
    call = make_call(DIMS, "b" in mode, T, 3, 16)
    inputs = make_inputs(DIMS, T, 48)._replace(x=x)
    want = reference_run(weights, *inputs, call.cache)
    MlaProlog(weights)(*inputs, call.cache, call.out)
    if mode == "b":
        assert_none(check_output(call.out, call.cache, want))
        return
    # Unquantised, the next product may meet norms too small for exact products: down to the norm all is compared.
    assert_none([m for m in check_output(call.out, call.cache, want) if not m.name.startswith("query")])


@pytest.mark.parametrize("place", [0, 1, 31, 32])
def test_queries_with_one_tiny_element(place):
    """All others are zero: each place counts, the last of an odd number, too."""
    rng = np.random.default_rng(9)
    scale = np.zeros((3, 67), np.float32)
    scale[:, place] = 2.0**-133
    weights = make_weights(DIMS, "b", w_uk=at(rng, 0, 3, 33, 68), dequant_scale_w_uq_qr=scale.reshape(201))
    want = assert_call(weights, make_inputs(DIMS, T, 48))
    assert np.asarray(want.query_nope).astype(np.float32).any()
