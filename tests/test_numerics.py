"""The two numerics profiles: what tells them apart, by hand, and where each can be asked for.

That each gives its reference's bits is a parameter of test_prolog_small.py, test_prolog_edges.py and test_modes.py.
"""

import numpy as np
import pytest
from helpers import (
    BF16,
    MODES,
    assert_none,
    assert_same_bits,
    make_cache,
    make_call,
    make_inputs,
    make_output,
    make_weights,
)

import mla_numba as mla
from mla_numba import (
    MlaDims,
    MlaProlog,
    MlaQuantInputs,
    MlaWeights,
    PagedCache,
    PrologOutput,
    reference,
)
from mla_numba.kernels import ISA
from mla_numba.oracle.bits import check_output, compare_bits, reference_run

SMALL = MlaDims(130, 3, 50, 68, 33, 34)
SHARED = MlaDims(514, 5, 101, 132, 33, 34)
T = ISA.mr + 3
SCALES = ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "dequant_scale_w_uq_qr", "smooth_scales_cq")
WRONG = r"^numerics: expected one of pypto, cann, got 'torch'$"


def run(weights, inputs, numerics):
    """A call on poisoned outputs and a random cache of 48 slots, equal to the reference."""
    call = make_call(weights.dims, "b" in weights.quant, len(inputs.x), 3, 16)
    want = reference_run(weights, *inputs, call.cache, numerics=numerics)
    MlaProlog(weights, n_threads=1, numerics=numerics)(*inputs, call.cache, call.out)
    call.assert_equals(want)
    return call


def by_hand():
    """One token of x = [1, 0], whose norms are [8.125, 8] * 1/16 * gamma = [64.74609375, 127], for the key four times.

    mean(8.125**2, 8**2) + epsilon = 256. In bf16 64.74609375 is 64.5, which ties to code 64; in fp32 its code is 65.
    """
    bf16 = np.dtype(BF16).type
    row = np.array([8.125, 8.0], BF16)
    w_dq, w_dkv_kr = np.zeros((2, 2), BF16), np.zeros((2, 10), BF16)
    w_dq[0], w_dkv_kr[0, :8] = row, np.tile(row, 4)
    gamma = np.array([127.5, 254.0], BF16)
    epsilon = 256 - (8.125**2 + 8.0**2) / 2
    w_uq_qr = np.array([[1, 0, 0], [0, 1, 0]], np.int8)
    weights = MlaWeights(
        w_dq=w_dq, w_uq_qr=w_uq_qr, w_uk=np.ones((1, 1, 8), BF16), w_dkv_kr=w_dkv_kr, gamma_cq=gamma,
        gamma_ckv=np.tile(gamma, 4), dequant_scale_w_uq_qr=np.ones(3, np.float32), epsilon_cq=epsilon,
        epsilon_ckv=epsilon,
    )  # fmt: skip
    one = np.full((1, 2), bf16(1))
    return weights, (np.array([[1, 0]], BF16), one, one, np.array([0])), PagedCache.allocate(weights.dims, 1, 1)


@pytest.mark.parametrize(("numerics", "code"), [("pypto", 64), ("cann", 65)])
def test_by_hand(numerics, code):
    weights, inputs, cache = by_hand()
    want = reference_run(weights, *inputs, cache, numerics=numerics)
    assert want.q_norm.tolist() == [[code, 127]]
    assert want.q_norm_scale.tolist() == [[1.0]]
    assert want.query_nope.astype(float).tolist() == [[[code] * 8]]
    assert want.kv_cache.reshape(-1).tolist() == [code, 127] * 4
    assert want.k_scale_cache.reshape(-1).tolist() == [1.0] * 4
    out = MlaProlog(weights, numerics=numerics)(*inputs, cache)
    assert_none(check_output(out, cache, want))


@pytest.mark.parametrize(("numerics", "value"), [("pypto", 406), ("cann", 408)])
def test_hidden_states_by_hand(numerics, value):
    """x = [11, 0] has codes [127, 0], so with weights 37 a sum is 4699, and 407 in reals: a tie of two bf16 numbers.

    1 / (127 / 11) is below 11 / 127, the scale of "cann", which rounds up to 0x1.62c58cp-4.
    """
    one = np.ones(3, np.float32)
    weights = MlaWeights(
        w_dq=np.full((2, 1), 37, np.int8), w_uq_qr=np.ones((1, 3), BF16), w_uk=np.ones((1, 1, 1), BF16),
        w_dkv_kr=np.full((2, 3), 37, np.int8), gamma_cq=np.ones(1, BF16), gamma_ckv=np.ones(1, BF16),
        dequant_scale_w_dq=one[:1], dequant_scale_w_dkv_kr=one,
    )  # fmt: skip
    cache = PagedCache.allocate(weights.dims, 1, 1, quantized=False)
    inputs = np.array([[11, 0]], BF16), np.ones((1, 2), BF16), np.zeros((1, 2), BF16), np.array([0])
    want = reference_run(weights, *inputs, cache, numerics=numerics)
    assert want.kr_cache.astype(int).reshape(-1).tolist() == [value] * 2
    out = MlaProlog(weights, numerics=numerics)(*inputs, cache)
    assert_none(check_output(out, cache, want))


@pytest.mark.parametrize("mode", ["none", "b", "b smooth"])
def test_what_the_profiles_share_and_what_not(mode):
    """Without quantisation nothing differs; in quant_b all but the rope key does."""
    weights = make_weights(SHARED, mode)
    inputs = make_inputs(SHARED, 40, 48)._replace(cache_index=np.arange(40))
    pypto, cann = (run(weights, inputs, numerics) for numerics in reference.NUMERICS)
    arrays = [call.out._asdict() | call.cache.arrays() for call in (pypto, cann)]
    differ = {n for n, array in arrays[0].items() if array is not None and compare_bits(n, array, arrays[1][n])}
    of_b = {"query_nope", "query_rope", "q_norm", "q_norm_scale", "kv_cache", "k_scale_cache"}
    assert differ == (set() if mode == "none" else of_b)


def test_pypto_is_the_default():
    weights, inputs, cache = by_hand()
    prolog = MlaProlog(weights)
    assert prolog.numerics == "pypto"
    assert prolog(*inputs, cache).q_norm.tolist() == [[64, 127]]


def test_one_packed_weight_serves_both(tmp_path):
    weights, inputs, cache = by_hand()
    packed = weights.pack()
    packed.save(tmp_path / "layer.mla")
    for numerics, code in (("cann", 65), ("pypto", 64), ("cann", 65)):
        assert MlaProlog(packed, numerics=numerics)(*inputs, cache).q_norm[0, 0] == code
        loaded = MlaProlog.load(tmp_path / "layer.mla", numerics=numerics)
        assert loaded.numerics == numerics
        assert loaded(*inputs, cache).q_norm[0, 0] == code


def entry_arguments(weights, inputs, cache, out):
    x, cos, sin, cache_index = inputs
    caches = {"kv_cache": cache.kv, "kr_cache": cache.kr, "k_scale_cache": cache.k_scale}
    names = ("w_dq", "w_uq_qr", "w_uk", "w_dkv_kr", "gamma_cq", "gamma_ckv", "epsilon_cq", "epsilon_ckv")
    return {
        "token_x": x, "cos": cos, "sin": sin, "cache_index": cache_index,
        "dequant_scale": weights.dequant_scale_w_uq_qr,
        **{name: getattr(weights, name) for name in names}, **caches,
        **{f"{name}_out": array for name, array in (caches | out._asdict()).items()},
    }  # fmt: skip


@pytest.mark.parametrize("entry", [mla.mla_prolog_quant_compute, mla.mla_prolog_quant_p, mla.mla_prolog_quant_d])
@pytest.mark.parametrize("quant", ["b", "none"])
def test_entry_points(quant, entry):
    weights, inputs = make_weights(SMALL, quant), make_inputs(SMALL, T, 48)
    cache, out = make_cache(SMALL, quant == "b", 3, 16), make_output(SMALL, quant == "b", T)
    want = reference_run(weights, *inputs, cache, numerics="cann")
    assert entry(**entry_arguments(weights, inputs, cache, out), numerics="cann") is None
    assert_none(check_output(out, cache, want))


@pytest.mark.parametrize("mode", MODES)
def test_pre_compute_2d(mode):
    weights = make_weights(SMALL, mode)
    x = make_inputs(SMALL, T, 48).x
    arguments = (x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, 1e-3)
    scales = {name: getattr(weights, name) for name in SCALES}
    want = reference.pre_compute_2d(*arguments, **scales, numerics="cann")
    got = mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales), numerics="cann")
    assert len(got) == (4 if "b" in weights.quant else 3)
    for name, g, w in zip(("q_b_proj", "compressed_kv", "q_norm", "q_norm_scale"), got, want, strict=False):
        assert_same_bits(name, g, w)


def test_another_name_is_an_error(tmp_path):
    weights, inputs, cache = by_hand()
    weights.pack().save(tmp_path / "layer.mla")
    arguments = (inputs[0], weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, 1e-5)
    out = PrologOutput(*(np.zeros_like(array) for array in MlaProlog(weights)(*inputs, cache)))
    given = entry_arguments(weights, inputs, cache, out)
    calls = {
        "MlaProlog": lambda name: MlaProlog(weights, numerics=name),
        "load": lambda name: MlaProlog.load(tmp_path / "layer.mla", numerics=name),
        "pre_compute_2d": lambda name: mla.pre_compute_2d(*arguments, MlaQuantInputs(), numerics=name),
        **{
            f: lambda name, f=f: getattr(mla, f)(**given, numerics=name)
            for f in ("mla_prolog_quant_compute", "mla_prolog_quant_p", "mla_prolog_quant_d")
        },
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=WRONG):
            call("torch")
        with pytest.raises(TypeError, match=r"^numerics: expected str, got NoneType$"):
            call(None)
    with pytest.raises(ValueError, match=WRONG):
        reference_run(weights, *inputs, cache, numerics="torch")
    with pytest.raises(ValueError, match=WRONG):
        reference.pre_compute_2d(*arguments, numerics="torch")
    assert not any(array.any() for array in out)
