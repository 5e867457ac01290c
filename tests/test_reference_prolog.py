"""The whole prolog of the reference against a scalar model in plain Python floats, and its edges."""

import struct
from math import inf, sqrt

import ml_dtypes
import numpy as np
import pytest

from mla_numba import reference

BF16 = ml_dtypes.bfloat16
T, H, RQ, N, D, R, C, BLOCKS, BS = 5, 38, 21, 2, 3, 16, 32, 3, 2
MODES = ["b", "none", "a", "ab", "b smooth", "ab smooth"]


# The scalar model. A double holds any sum, product, quotient or root of fp32 values well enough that rounding it once
# more, to fp32, gives what fp32 arithmetic gives (53 >= 2 * 24 + 2).


def f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def b16(value):
    bits = struct.unpack("<I", struct.pack("<f", f32(value)))[0]
    bits += 0x7FFF + (bits >> 16 & 1)
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]


def dot(row, column):
    acc = 0.0
    for p, q in zip(row, column, strict=True):
        acc = f32(acc + f32(p * q))
    return acc


def model_norm(row, gamma, epsilon, rounded=b16):
    lanes = [0.0] * 16
    for i, x in enumerate(row):
        lanes[i % 16] = f32(lanes[i % 16] + f32(f32(x * x) * f32(1 / len(row))))
    for half in (8, 4, 2, 1):
        for i in range(half):
            lanes[i] = f32(lanes[i] + lanes[i + half])
    r = f32(1 / f32(sqrt(f32(lanes[0] + f32(epsilon)))))
    return [rounded(f32(g * f32(x * r))) for x, g in zip(row, gamma, strict=True)]


def model_quant(row, smooth=None, cann=False):
    if smooth is not None:
        row = [f32(x * s) for x, s in zip(row, smooth, strict=True)]
    amax = max(abs(x) for x in row)
    if amax == 0:
        return [0] * len(row), 0.0
    s = f32(127 / amax)
    return [max(-128, min(127, round(f32(x * s)))) for x in row], f32(amax / 127) if cann else f32(1 / s)


def model_int8(codes, column, token_scale, channel_scale):
    total = sum(p * q for p, q in zip(codes, column, strict=True))
    return b16(f32(f32(f32(total) * token_scale) * channel_scale))


def model_rope(row, cos, sin):
    half = len(row) // 2
    y = row[0::2] + row[1::2]
    rotated = [-v for v in y[half:]] + [v + 0.0 for v in y[:half]]
    return [b16(f32(f32(p * c) + f32(q * s))) for p, c, q, s in zip(y, cos, rotated, sin, strict=True)]


def columns(matrix):
    return list(map(list, zip(*matrix.tolist(), strict=True)))


def floats(array):
    return array.astype(np.float64).tolist() if array is not None else None


def model_token(t, arguments, weights, cann=False):
    """One token's outputs, as lists of Python numbers."""
    x, cos, sin = (floats(arguments[name])[t] for name in ("x", "cos", "sin"))
    gamma_cq, gamma_ckv = floats(weights["gamma_cq"]), floats(weights["gamma_ckv"])
    w_dq, w_dkv_kr, w_uq_qr = (columns(weights[name].astype(np.float64)) for name in ("w_dq", "w_dkv_kr", "w_uq_qr"))
    flat = {name: floats(np.ravel(weights[name])) for name in weights if "scale" in name and weights[name] is not None}
    if "dequant_scale_w_dq" in flat:
        codes, scale = model_quant(x, cann=cann)
        q_a = [model_int8(codes, c, scale, s) for c, s in zip(w_dq, flat["dequant_scale_w_dq"], strict=True)]
        kv_a = [model_int8(codes, c, scale, s) for c, s in zip(w_dkv_kr, flat["dequant_scale_w_dkv_kr"], strict=True)]
    else:
        half = H // 2
        q_a = [b16(f32(dot(x[:half], c[:half]) + dot(x[half:], c[half:]))) for c in w_dq]
        kv_a = [b16(dot(x, c)) for c in w_dkv_kr]
    norm = model_norm(q_a, gamma_cq, weights["epsilon_cq"])
    k_nope = model_norm(kv_a[:C], gamma_ckv, weights["epsilon_ckv"])
    out = {"q_norm": norm, "q_norm_scale": None, "kv": k_nope, "k_scale": None}
    if "dequant_scale_w_uq_qr" in flat:
        if cann:
            norm = model_norm(q_a, gamma_cq, weights["epsilon_cq"], rounded=f32)
            k_nope = model_norm(kv_a[:C], gamma_ckv, weights["epsilon_ckv"], rounded=f32)
        codes, scale = model_quant(norm, flat.get("smooth_scales_cq"), cann)
        q_b = [model_int8(codes, c, scale, s) for c, s in zip(w_uq_qr, flat["dequant_scale_w_uq_qr"], strict=True)]
        groups = [model_quant(k_nope[g * C // 4 : (g + 1) * C // 4], cann=cann) for g in range(4)]
        out |= {"q_norm": codes, "q_norm_scale": [scale], "kv": [code for g in groups for code in g[0]]}
        out["k_scale"] = [g[1] for g in groups]
    else:
        q_b = [b16(dot(norm, c)) for c in w_uq_qr]
    heads = [q_b[n * (D + R) : (n + 1) * (D + R)] for n in range(N)]
    w_uk = [columns(w) for w in weights["w_uk"].astype(np.float64)]
    out["query_nope"] = [[b16(dot(head[:D], c)) for c in w] for head, w in zip(heads, w_uk, strict=True)]
    out["query_rope"] = [model_rope(head[D:], cos, sin) for head in heads]
    out["kr"] = model_rope(kv_a[C:], cos, sin)
    return out


# Inputs


def make(mode, seed=0, t=T):
    """Arguments and weights of a mode; values spread over binades, so that another order of sums shows."""
    rng = np.random.default_rng(seed)

    def bf16(*shape):
        return (rng.standard_normal(shape) * 2.0 ** rng.integers(-5, 6, shape)).astype(np.float32).astype(BF16)

    def weight(quantised, *shape):
        return rng.integers(-128, 128, shape).astype(np.int8) if quantised else bf16(*shape)

    def scale(*shape):
        return (rng.random(shape) * 0.01 + 1e-4).astype(np.float32)

    quant_a, quant_b = "a" in mode.split()[0].replace("none", ""), "b" in mode.split()[0]
    arguments = {
        "x": bf16(t, H),
        "cos": bf16(t, R),
        "sin": bf16(t, R),
        "cache_index": np.resize(np.array([4, 1, -1, 4, 2], np.int64), t),
        "kv_cache": weight(quant_b, BLOCKS, BS, 1, C),
        "kr_cache": bf16(BLOCKS, BS, 1, R),
        "k_scale_cache": scale(BLOCKS, BS, 1, 4),
    }
    weights = {
        "w_dq": weight(quant_a, H, RQ),
        "w_uq_qr": weight(quant_b, RQ, N * (D + R)),
        "w_uk": bf16(N, D, C),
        "w_dkv_kr": weight(quant_a, H, C + R),
        "gamma_cq": bf16(RQ),
        "gamma_ckv": bf16(C),
        "dequant_scale_w_uq_qr": scale(N * (D + R), 1) if quant_b else None,
        "dequant_scale_w_dq": scale(1, RQ) if quant_a else None,
        "dequant_scale_w_dkv_kr": scale(C + R) if quant_a else None,
        "smooth_scales_cq": scale(1, RQ) * 100 if "smooth" in mode else None,
        "epsilon_cq": 0.5,
        "epsilon_ckv": 40.0,
    }
    for array in (*arguments.values(), *weights.values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return arguments, weights


def bits(array):
    return array.view(f"u{array.itemsize}").tolist()


def assert_same_bits(got, expected):
    for name, mine, theirs in zip(got._fields, got, expected, strict=True):
        if theirs is None:
            assert mine is None, name
        else:
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
            assert bits(mine) == bits(theirs), name


def expected_output(arguments, weights, cann=False):
    """The model's tokens put together and scattered, in token order, as BSND."""
    tokens = [model_token(t, arguments, weights, cann) for t in range(len(arguments["x"]))]
    caches = {name: arguments[f"{name}_cache"].copy() for name in ("kv", "kr", "k_scale")}
    for token, slot in zip(tokens, arguments["cache_index"].tolist(), strict=True):
        for name, cache in caches.items():
            if slot >= 0 and token[name] is not None:
                cache[slot // BS, slot % BS, 0] = token[name]

    def stack(name, dtype):
        return np.array([token[name] for token in tokens], np.float64).astype(np.float32).astype(dtype)

    quantised = weights["dequant_scale_w_uq_qr"] is not None
    return reference.ReferenceOutput(
        query_nope=stack("query_nope", BF16),
        query_rope=stack("query_rope", BF16),
        q_norm=stack("q_norm", np.int8 if quantised else BF16),
        q_norm_scale=stack("q_norm_scale", np.float32) if quantised else None,
        kv_cache=caches["kv"],
        kr_cache=caches["kr"],
        k_scale_cache=caches["k_scale"],
    )


# Tests


def test_the_model_itself():
    assert [b16(v) for v in (257.0, 259.0, -257.0, 1.0)] == [256.0, 260.0, -256.0, 1.0]
    assert dot([2.0**24, 1.0, 1.0, -(2.0**24)], [1.0] * 4) == 0.0
    assert model_quant([0.5, 1.5, 127.0]) == ([0, 2, 127], 1.0)
    assert model_rope([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]) == [-9.0, -18.0, 13.0, 40.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 1])
def test_prolog_agrees_with_the_scalar_model(mode, seed):
    arguments, weights = make(mode, seed)
    assert_same_bits(reference.mla_prolog(**arguments, **weights), expected_output(arguments, weights))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 1])
def test_cann_agrees_with_the_scalar_model(mode, seed):
    arguments, weights = make(mode, seed)
    got = reference.mla_prolog(**arguments, **weights, numerics="cann")
    assert_same_bits(got, expected_output(arguments, weights, cann=True))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 48, 100])
def test_rms_norm_agrees_with_the_scalar_model(n):
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((6, n)) * 2.0 ** rng.integers(-5, 6, (6, n))).astype(np.float32).astype(BF16)
    gamma = rng.standard_normal(n).astype(np.float32).astype(BF16)
    expected = [model_norm(row, floats(gamma), 1e-5) for row in floats(x)]
    assert reference.rms_norm(x, gamma, 1e-5).astype(np.float64).tolist() == expected


def test_query_down_projection_is_two_sums_and_the_latent_one():
    # x @ 1 = 2**24 + 1 | 1 - 2**24: the halves make 2**24 and -(2**24 - 1), together 1. One sum loses both ones: 0.
    x = np.array([[2.0**24, 1.0, 1.0, -(2.0**24)]], np.float32).astype(BF16)
    ones = np.ones((4, 1), BF16)
    q_b_proj, compressed_kv, q_norm, q_norm_scale = reference.pre_compute_2d(
        x, ones, np.full((1, 2), 3, BF16), ones, np.ones(1, BF16), 0.0
    )
    assert compressed_kv.astype(np.float32).tolist() == [[0.0]]
    assert q_norm.astype(np.float32).tolist() == [[1.0]]
    assert q_b_proj.astype(np.float32).tolist() == [[3.0, 3.0]]
    assert q_norm_scale is None


def test_pre_compute_2d_in_integers():
    # Codes of x: [127, 64] with scale 2 (127 / 254 = 0.5). q_a = 127*1 + 64*2 = 255, * 2 * 0.5 = 255.
    # kv_a = 127*1 - 64*1 = 63, * 2 * 1 = 126. The norm of one value is 1: code 127, scale 1/127; q_b = 127*2/127.
    q_b_proj, compressed_kv, q_norm, q_norm_scale = reference.pre_compute_2d(
        np.array([[254.0, 128.0]], np.float32).astype(BF16),
        np.array([[1], [2]], np.int8),
        np.array([[2]], np.int8),
        np.array([[1], [-1]], np.int8),
        np.ones(1, BF16),
        0.0,
        dequant_scale_w_dq=np.array([0.5], np.float32),
        dequant_scale_w_dkv_kr=np.array([1.0], np.float32),
        dequant_scale_w_uq_qr=np.array([1.0], np.float32),
    )
    assert compressed_kv.astype(np.float32).tolist() == [[126.0]]
    assert q_norm.tolist() == [[127]]
    assert q_norm_scale.tolist() == [[float.fromhex("0x1.020408p-7")]]  # 1/127
    assert q_b_proj.astype(np.float32).tolist() == [[2.0]]


@pytest.mark.parametrize("mode", MODES)
def test_a_tokens_bits_do_not_depend_on_the_batch(mode):
    arguments, weights = make(mode)
    whole = reference.mla_prolog(**arguments, **weights)
    for t in range(T):
        one = {name: arguments[name][t : t + 1] for name in ("x", "cos", "sin", "cache_index")}
        alone = reference.mla_prolog(**(arguments | one), **weights)
        for mine, theirs in zip(alone[:4], whole[:4], strict=True):
            assert (mine is None and theirs is None) or bits(mine) == bits(theirs[t : t + 1])


@pytest.mark.parametrize("value", [np.nan, inf, 3e38])
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_token_leaves_the_others_alone(mode, value):
    arguments, weights = make(mode)
    arguments["cache_index"] = np.array([4, 1, 0, 5, 2])
    clean = reference.mla_prolog(**arguments, **weights)
    x = arguments["x"].copy()
    x[2, 3] = value
    bad = reference.mla_prolog(**(arguments | {"x": x}), **weights)
    others = [0, 1, 3, 4]
    for mine, theirs in zip(bad[:4], clean[:4], strict=True):
        assert (mine is None and theirs is None) or bits(mine[others]) == bits(theirs[others])
    for mine, theirs in zip(bad[4:], clean[4:], strict=True):
        slots = mine.reshape(BLOCKS * BS, -1), theirs.reshape(BLOCKS * BS, -1)
        assert bits(slots[0][1:]) == bits(slots[1][1:])
    if value != 3e38 and "b" not in mode:
        assert np.isnan(bad.query_nope[2].astype(np.float32)).all()
        assert not np.isfinite(bad.kr_cache[0, 0].astype(np.float32)).any()


@pytest.mark.parametrize("mode", ["b", "none"])
def test_a_token_of_zeros(mode):
    arguments, weights = make(mode, t=1)
    result = reference.mla_prolog(**(arguments | {"x": np.zeros((1, H), BF16)}), **weights)
    for array in result[:4]:
        assert array is None or not array.astype(np.float32).any()
    for cache in (result.kv_cache, result.kr_cache) + ((result.k_scale_cache,) if mode == "b" else ()):
        assert not cache[2, 0].astype(np.float32).any()


@pytest.mark.parametrize("mode", MODES)
def test_no_tokens(mode):
    arguments, weights = make(mode, t=0)
    result = reference.mla_prolog(**arguments, **weights)
    assert [result.query_nope.shape, result.query_rope.shape, result.q_norm.shape] == [(0, N, C), (0, N, R), (0, RQ)]
    assert result.q_norm_scale is None or result.q_norm_scale.shape == (0, 1)
    for name in ("kv_cache", "kr_cache", "k_scale_cache"):
        assert bits(getattr(result, name)) == bits(arguments[name])


@pytest.mark.parametrize("mode", ["b", "none"])
def test_nz_caches_hold_the_same_rows(mode):
    arguments, weights = make(mode)
    arguments["cache_index"] = np.array([4, 1, 0, 5, 2])
    plain = reference.mla_prolog(**arguments, **weights)
    nz = reference.mla_prolog(**arguments, **weights, cache_mode="PA_NZ")
    for name, d in (("kv_cache", C), ("kr_cache", R)):
        rows, flat = getattr(plain, name).reshape(-1, d), getattr(nz, name).ravel()
        before = arguments[name].ravel()
        c0 = 32 // flat.itemsize
        written = {}
        for slot in arguments["cache_index"].tolist():
            for c in range(d):
                place = (slot // BS) * BS * d + (c // c0) * BS * c0 + (slot % BS) * c0 + c % c0
                written[place] = rows[slot, c]
        assert bits(flat) == bits(np.array([written.get(i, before[i]) for i in range(flat.size)], flat.dtype))
    assert_same_bits(nz._replace(kv_cache=plain.kv_cache, kr_cache=plain.kr_cache), plain)


def test_unquantised_needs_no_scale_cache_and_quantised_does():
    arguments, weights = make("none")
    arguments["k_scale_cache"] = None
    assert reference.mla_prolog(**arguments, **weights).k_scale_cache is None
    arguments, weights = make("b")
    arguments["k_scale_cache"] = None
    with pytest.raises(TypeError, match="k_scale_cache: expected an array"):
        reference.mla_prolog(**arguments, **weights)


def test_scale_cache_of_fp16_is_rounded_into():
    arguments, weights = make("b")
    wide = reference.mla_prolog(**arguments, **weights).k_scale_cache
    arguments["k_scale_cache"] = arguments["k_scale_cache"].astype(np.float16)
    narrow = reference.mla_prolog(**arguments, **weights).k_scale_cache
    assert narrow.dtype == np.float16
    assert bits(narrow) == bits(wide.astype(np.float16))


def test_one_scale_of_the_down_projections_alone_switches_nothing():
    arguments, weights = make("none")
    plain = reference.mla_prolog(**arguments, **weights)
    weights["dequant_scale_w_dq"] = np.ones(RQ, np.float32)
    weights["smooth_scales_cq"] = np.ones((1, RQ), np.float32)
    assert_same_bits(reference.mla_prolog(**arguments, **weights), plain)
    weights["w_dq"] = np.ones((H, RQ), np.int8)
    with pytest.raises(TypeError, match="integer weights need their dequant scale"):
        reference.mla_prolog(**arguments, **weights)


def test_an_odd_hidden_size_is_an_error_where_it_is_split():
    arguments, weights = make("b")
    odd = {"x": arguments["x"][:, 1:]}, {name: weights[name][1:] for name in ("w_dq", "w_dkv_kr")}
    with pytest.raises(ValueError, match="expected an even H"):
        reference.mla_prolog(**(arguments | odd[0]), **(weights | odd[1]))
    arguments, weights = make("ab")
    odd = {"x": arguments["x"][:, 1:]}, {name: weights[name][1:] for name in ("w_dq", "w_dkv_kr")}
    assert reference.mla_prolog(**(arguments | odd[0]), **(weights | odd[1])).q_norm.shape == (T, RQ)


def test_arguments_that_do_not_fit():
    arguments, weights = make("b")
    with pytest.raises(ValueError, match="kv_lora_rank to be a multiple of 4, got 30"):
        reference.mla_prolog(**arguments, **(weights | {"w_uk": weights["w_uk"][:, :, :30]}))
    with pytest.raises(TypeError, match="kv_cache: expected int8 in this mode, got bfloat16"):
        reference.mla_prolog(**(arguments | {"kv_cache": np.zeros((BLOCKS, BS, 1, C), BF16)}), **weights)
    with pytest.raises(TypeError, match="token_x: expected bfloat16, got float32"):
        reference.mla_prolog(**(arguments | {"x": arguments["x"].astype(np.float32)}), **weights)
    with pytest.raises(ValueError, match="got 6 at token 1"):
        reference.mla_prolog(**(arguments | {"cache_index": np.array([0, 6, 0, 0, 0])}), **weights)
    with pytest.raises(ValueError, match="dequant_scale_w_uq_qr: expected shape"):
        reference.mla_prolog(**arguments, **(weights | {"dequant_scale_w_uq_qr": np.ones(3, np.float32)}))
