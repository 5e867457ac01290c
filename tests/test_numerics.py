"""The two numerics profiles: "cann" against its own reference, bit for bit, and what tells it from "pypto"."""

import numpy as np
import pytest
from helpers import (
    BF16,
    MODES,
    THREADS,
    assert_exact,
    assert_none,
    assert_same_bits,
    make_cache,
    make_call,
    make_inputs,
    make_output,
    make_weights,
    run_python,
    spread,
)

import mla_numba as mla
from mla_numba import (
    MlaDims,
    MlaProlog,
    MlaQuantInputs,
    MlaWeights,
    PagedCache,
    PrologOutput,
)
from mla_numba.kernels import ISA
from mla_numba.oracle import reference
from mla_numba.oracle.bits import check_output, compare_bits, reference_run

SMALL = MlaDims(130, 3, 50, 68, 33, 34)
FRACTAL = MlaDims(130, 3, 50, 64, 33, 32)
SHARED = MlaDims(514, 5, 101, 132, 33, 34)
T = ISA.mr + 3
QUANTISED = [mode for mode in MODES if mode != "none"]
WITH_SCALES = [mode for mode in MODES if "b" in mode.split()[0]]
SCALES = ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "dequant_scale_w_uq_qr", "smooth_scales_cq")
WRONG = r"^numerics: expected one of pypto, cann, got 'torch'$"


def run(weights, inputs, threads=1, numerics="cann"):
    """A call on poisoned outputs and a random cache of 48 slots, with the reference on the same; both unchecked."""
    call = make_call(weights.dims, "b" in weights.quant, len(inputs.x), 3, 16)
    want = reference_run(weights, *inputs, call.cache, numerics=numerics)
    MlaProlog(weights, n_threads=threads, numerics=numerics)(*inputs, call.cache, call.out)
    return call, want


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


@pytest.mark.parametrize("t", [0, 1, 2, ISA.mr, T, 3 * ISA.mr + 1])
@pytest.mark.parametrize("mode", MODES)
def test_cann_is_exact(mode, t):
    for dims in (MlaDims(2, 1, 1, 4, 1, 2), SMALL):
        assert_exact(make_weights(dims, mode, seed=t), t, block_size=3, n_blocks=5, seed=t, numerics="cann")


@pytest.mark.parametrize("mode", MODES)
def test_work_that_is_shared_among_threads(mode):
    assert_exact(make_weights(SHARED, mode, seed=1), 40, n_blocks=3, numerics="cann")


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("mode", MODES)
def test_fractal_caches(mode, block_size):
    weights = make_weights(FRACTAL, mode)
    assert_exact(
        weights, T, n_blocks=48 // block_size, block_size=block_size, cache_mode="PA_NZ", numerics="cann"
    )  # fmt: skip


def plain_python():
    """The same bodies, not compiled; run in an interpreter of its own."""
    for mode in MODES:
        for dims in (MlaDims(16, 2, 5, 8, 3, 4), MlaDims(6, 1, 17, 4, 1, 2)):
            for t in (0, 1, 3):
                assert_exact(make_weights(dims, mode, seed=t), t, threads=(1,), block_size=3, seed=t, numerics="cann")
        zeros_among_others(mode, MlaDims(16, 2, 5, 8, 3, 4), 5)


def test_not_compiled():
    run_python("-W", "error", "-c", "import test_numerics; test_numerics.plain_python()", NUMBA_DISABLE_JIT="1")


def zeros_among_others(mode, dims, t):
    weights = make_weights(dims, mode)
    inputs = make_inputs(dims, t, 48)._replace(cache_index=np.arange(t))
    inputs.x[[0, 4]] = 0
    call, want = run(weights, inputs)
    call.assert_equals(want)
    arrays = [a for a in call.out if a is not None] + [a.reshape(-1, a.shape[3]) for a in call.cache.arrays().values()]
    for array in arrays:
        assert not array[4].astype(np.float32).any()


@pytest.mark.parametrize("mode", MODES)
def test_zero_tokens_among_others(mode):
    zeros_among_others(mode, SMALL, T)


@pytest.mark.parametrize("mode", WITH_SCALES)
def test_zero_groups_of_the_key(mode):
    gamma = spread(np.random.default_rng(0), 68)
    gamma[17:34] = 0
    inputs = make_inputs(SMALL, T, 48)._replace(cache_index=np.arange(T))
    call, want = run(make_weights(SMALL, mode, gamma_ckv=gamma), inputs)
    call.assert_equals(want)
    scales = call.cache.k_scale.reshape(48, 4)[:T]
    assert not scales[:, 1].any()
    assert (scales[:, [0, 2, 3]] > 0).all()


@pytest.mark.parametrize("mode", WITH_SCALES)
@pytest.mark.parametrize("exponent", [-133, -130, -126, -124, -123, -122, -121, -120, -110])
def test_a_norm_so_small_that_its_quotient_overflows(mode, exponent):
    """amax / 127 may be no zero where 127 / amax overflows: codes and scale are 0 then."""
    tiny = [np.full(n, 2.0**exponent, np.float32).astype(BF16) for n in (50, 68)]
    call, want = run(
        make_weights(SMALL, mode, gamma_cq=tiny[0], gamma_ckv=tiny[1]), make_inputs(SMALL, T, 48)
    )  # fmt: skip
    call.assert_equals(want)
    assert np.isfinite(call.out.q_norm_scale).all()
    codes = call.out.q_norm.any(axis=1)
    assert (codes == (call.out.q_norm_scale[:, 0] != 0)).all()
    if exponent in (-133, -110):
        assert codes.all() == (exponent == -110)


@pytest.mark.parametrize("exponent", [-133, -126, -122, -120, -110])
def test_hidden_states_so_small_that_their_quotient_overflows(exponent):
    inputs = make_inputs(SMALL, T, 48)
    inputs.x[2] = np.full(130, 2.0**exponent, np.float32).astype(BF16)
    call, want = run(make_weights(SMALL, "ab"), inputs)
    call.assert_equals(want)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80, 0xFFFF], ids=["nan", "inf", "-inf", "all ones"])
@pytest.mark.parametrize("mode", MODES)
def test_nan_and_inf_stay_in_their_token(mode, bits, threads):
    weights = make_weights(SMALL, mode)
    inputs = make_inputs(SMALL, T, 48)._replace(cache_index=np.random.default_rng(0).permutation(48)[:T])
    clean = reference_run(weights, *inputs, make_cache(SMALL, "b" in weights.quant, 3, 16), numerics="cann")
    bad = [1, 5, T - 1]
    inputs.x.view(np.uint16)[bad, 7] = bits
    call, _ = run(weights, inputs, threads)
    good = np.setdiff1d(np.arange(T), bad)
    found = [
        compare_bits(name, array[good], getattr(clean, name)[good])
        for name, array in call.out._asdict().items()
        if array is not None
    ]
    slots = np.setdiff1d(np.arange(48), inputs.cache_index[bad])
    for name, array in call.cache.arrays().items():
        found.append(compare_bits(name, *(a.reshape(48, -1)[slots] for a in (array, getattr(clean, name)))))
    assert_none([mismatch for mismatch in found if mismatch is not None])


@pytest.mark.parametrize("numerics", reference.NUMERICS)
@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("mode", MODES)
def test_a_token_that_is_not_finite_has_no_finite_query(mode, bits, numerics):
    """In quant_a too, where an Inf makes all codes 0: the scale is Inf, as in the reference, and hides nothing."""
    inputs = make_inputs(SMALL, T, 48)._replace(cache_index=np.arange(T))
    inputs.x.view(np.uint16)[3] = bits
    call, want = run(make_weights(SMALL, mode), inputs, numerics=numerics)
    for name in ("query_nope", "query_rope"):
        for array in (getattr(call.out, name), getattr(want, name)):
            assert np.isnan(array[3].astype(np.float32)).all()


@pytest.mark.parametrize("power", [0, -14, -26, 12, 18])
@pytest.mark.parametrize("mode", WITH_SCALES)
def test_fp16_scale_caches(mode, power):
    """Scales are rounded into it, once: to subnormals, to zero and to Inf as well."""
    weights = make_weights(SMALL, mode, gamma_ckv=spread(np.random.default_rng(1), 68) * BF16.type(2.0**power))
    inputs = make_inputs(SMALL, T, 48)
    call = make_call(SMALL, True, T, 3, 16)
    cache = PagedCache(call.cache.kv, call.cache.kr, np.zeros((3, 16, 1, 4), np.float16))
    want = reference_run(weights, *inputs, cache, numerics="cann")
    assert want.k_scale_cache.dtype == np.float16
    MlaProlog(weights, numerics="cann")(*inputs, cache, call.out)
    assert_none(check_output(call.out, cache, want))


@pytest.mark.parametrize("mode", ["none", "b", "b smooth"])
def test_what_the_profiles_share_and_what_not(mode):
    """Without quantisation nothing differs; in quant_b all but the rope key does."""
    weights = make_weights(SHARED, mode)
    inputs = make_inputs(SHARED, 40, 48)._replace(cache_index=np.arange(40))
    (pypto, _), (cann, _) = (run(weights, inputs, numerics=numerics) for numerics in reference.NUMERICS)
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
