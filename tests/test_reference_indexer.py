"""The reference of the indexer's prolog against exact arithmetic in fractions, step by step, and its edges."""

from dataclasses import replace
from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
from helpers import BF16, assert_same_bits, random_bytes
from helpers.exact import assert_equal, bf16, dot, fp16, fp32, fp32_sqrt, fractions, lanes

import mla_numba as mla
from mla_numba.layouts import pa_nz_to_pa_bsnd
from mla_numba.reference import indexer_prolog_reference, layer_norm, rope_first_columns

N_HEADS, HEAD_DIM, ROPE = 3, 20, 6  # a head is longer than 16 lanes


def values(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32).astype(BF16)


def make_weights(rng, hidden=7, q_rank=5, n_heads=N_HEADS, head_dim=HEAD_DIM, **settings):
    return mla.IndexerWeights(
        w_qb=rng.integers(-128, 128, (q_rank, n_heads * head_dim), np.int8),
        w_qb_scale=rng.uniform(1e-3, 1e-2, n_heads * head_dim).astype(np.float32),
        wk=values(rng, hidden, head_dim),
        w_proj=values(rng, hidden, n_heads),
        ln_gamma_k=values(rng, head_dim),
        ln_beta_k=values(rng, head_dim),
        hadamard_q=rng.uniform(-1, 1, (head_dim, head_dim)).astype(BF16),
        hadamard_k=rng.uniform(-1, 1, (head_dim, head_dim)).astype(BF16),
        **({"qk_rope_head_dim": ROPE} | settings),
    )


def make_inputs(rng, weights, t):
    """x, q_norm, q_norm_scale, cos and sin whose halves differ."""
    d = weights.dims
    codes = rng.integers(-127, 128, (t, d.q_lora_rank), np.int8)
    scale = rng.uniform(1e-3, 1e-2, (t, 1)).astype(np.float32)
    return values(rng, t, d.hidden_size), codes, scale, values(rng, t, ROPE), values(rng, t, ROPE)


def run(weights, inputs, slots, cache):
    return indexer_prolog_reference(weights, *inputs, np.array(slots, np.int64), cache)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def rotated(head, cos, sin, style):
    """Q3 of one head."""
    half = len(cos) // 2
    y = head[:ROPE]
    if style == "interleaved":
        y = y[0::2] + y[1::2]
    out = [bf16(fp32(fp32(y[i] * cos[i]) + fp32(-y[i + half] * sin[i]))) for i in range(half)]
    out += [bf16(fp32(fp32(y[i + half] * cos[i + half]) + fp32(y[i] * sin[i + half]))) for i in range(half)]
    return out + head[ROPE:]


def product(row, matrix):
    return [dot(row, column) for column in zip(*matrix, strict=True)]


def quantised(row):
    """Codes and fp16 scale of one row."""
    s = fp32(Fraction(127) / max(map(abs, row)))
    return [Fraction(round(fp32(y * s))) for y in row], fp16(fp32(1 / s))


def normed(row, gamma, beta, epsilon):
    inverse = fp32(Fraction(1, len(row)))
    mean = lanes([fp32(x * inverse) for x in row])
    d = [fp32(x - mean) for x in row]
    std = fp32_sqrt(fp32(lanes([fp32(fp32(e * e) * inverse) for e in d]) + fp32(Fraction(epsilon))))
    return [fp32(fp32(fp32(e / std) * g) + b) for e, g, b in zip(d, gamma, beta, strict=True)]


def exact(weights, inputs, rounds_key_first=False):
    """Query codes and scales, key codes and scales, and weights of each token, all in fractions."""
    w = {name: fractions(getattr(weights, name)) for name in ("w_qb", "w_qb_scale", "wk", "w_proj", "ln_gamma_k",
         "ln_beta_k", "hadamard_q", "hadamard_k")}  # fmt: skip
    x, q_norm, q_norm_scale, cos, sin = map(fractions, inputs)
    factor = fp32(Fraction(1.0 / (sqrt(weights.dims.n_heads) * sqrt(weights.dims.head_dim))))
    found = []
    for t in range(len(x)):
        sums = [sum(a * b for a, b in zip(q_norm[t], c, strict=True)) for c in zip(*w["w_qb"], strict=True)]
        q = [bf16(fp32(fp32(fp32(s) * q_norm_scale[t][0]) * c)) for s, c in zip(sums, w["w_qb_scale"], strict=True)]
        heads = [q[i : i + HEAD_DIM] for i in range(0, len(q), HEAD_DIM)]
        heads = [rotated(head, cos[t], sin[t], weights.rope) for head in heads]
        query = [quantised([bf16(y) for y in product(head, w["hadamard_q"])]) for head in heads]
        key = product(x[t], w["wk"])
        key = [bf16(y) for y in key] if rounds_key_first else key
        key = [bf16(y) for y in normed(key, w["ln_gamma_k"], w["ln_beta_k"], np.float32(weights.epsilon).item())]
        key = quantised([bf16(y) for y in product(rotated(key, cos[t], sin[t], weights.rope), w["hadamard_k"])])
        head_weights = [fp16(fp32(bf16(y) * factor)) for y in product(x[t], w["w_proj"])]
        found.append((query, key, head_weights))
    return found


class TestAllSteps:
    @pytest.mark.parametrize("style", ["half", "interleaved"])
    def test_equal_exact_arithmetic(self, rng, style):
        weights = make_weights(rng, rope=style)
        inputs = make_inputs(rng, weights, 3)
        got = run(weights, inputs, [4, 0, 2], mla.IndexerCache.allocate(weights.dims, 2, 3))
        want = exact(weights, inputs)
        assert_equal(got.query, [[codes for codes, _ in query] for query, _, _ in want])
        assert_equal(got.query_scale, [[[scale] for _, scale in query] for query, _, _ in want])
        assert_equal(got.weights, [head_weights for _, _, head_weights in want])
        slots = [4, 0, 2]
        assert_equal(got.k_cache.reshape(6, HEAD_DIM)[slots], [codes for _, (codes, _), _ in want])
        assert_equal(got.k_scale_cache.reshape(6)[slots], [scale for _, (_, scale), _ in want])
        assert [a.dtype for a in got] == [np.int8, np.float16, np.float16, np.int8, np.float16]

    def test_the_key_is_not_rounded_before_its_norm(self, rng):
        """Were it rounded to bf16, codes would differ: the test above would see it."""
        weights = make_weights(rng)
        inputs = make_inputs(rng, weights, 3)
        assert [key for _, key, _ in exact(weights, inputs)] != [key for _, key, _ in exact(weights, inputs, True)]

    def test_the_styles_differ(self, rng):
        weights = make_weights(rng)
        inputs = make_inputs(rng, weights, 1)
        assert exact(weights, inputs) != exact(replace(weights, rope="interleaved"), inputs)


class TestSteps:
    def test_layer_norm_of_four(self):
        """1, 2, 3, 6: mean 3, deviations -2, -1, 0, 3, variance 14 / 4; with epsilon 12.5 the root is 4."""
        x, gamma = np.array([[1, 2, 3, 6]], np.float32), np.array([2, 4, 1, 8], BF16)
        beta = np.array([0.5, 0, -1, 1], BF16)
        assert layer_norm(x, gamma, beta, 12.5).tolist() == [[-0.5, -1, -1, 7]]

    def test_layer_norm_to_the_last_bit(self, rng):
        """In float32, before it is rounded to bf16: the division, and what is multiplied before it is summed."""
        x = (rng.standard_normal((40, 20)) + 3).astype(np.float32)
        gamma, beta = values(rng, 20), values(rng, 20)
        want = [normed(row, fractions(gamma), fractions(beta), np.float32(1e-6).item()) for row in fractions(x)]
        assert_equal(layer_norm(x, gamma, beta, 1e-6), want)

    def test_a_quarter_turn(self):
        x = np.array([[[1, 2, 3, 4, 5]]], BF16)
        cos, sin = np.zeros((1, 4), BF16), np.array([[1, 2, 3, 4]], BF16)
        assert rope_first_columns(x, cos, sin).tolist() == [[[-3, -8, 3, 8, 5]]]
        assert rope_first_columns(x, cos, sin, "interleaved").tolist() == [[[-2, -8, 3, 12, 5]]]

    def test_one_factor_of_the_weights(self, rng):
        """With 32 heads of 128 it is 2^-6, exactly. 32^-0.5 and 128^-0.5 one after the other come a little beside it,
        which shows where 2^-6 of a number lies halfway between two subnormals of fp16.
        """
        apart = [fp32(Fraction(n**-0.5)) for n in (32, 128)]
        halfway = [Fraction(2 * i + 1, 2**19) for i in range(128)]
        once = [fp16(v / 64) for v in halfway]
        assert once != [fp16(fp32(fp32(v * apart[0]) * apart[1])) for v in halfway]
        weights = make_weights(rng, hidden=1, q_rank=1, n_heads=32, head_dim=128)
        weights = replace(weights, w_proj=np.ones((1, 32), BF16))
        x = np.array([[float(v)] for v in halfway], BF16)
        inputs = (x, np.ones((128, 1), np.int8), np.ones((128, 1), np.float32), *[np.ones((128, ROPE), BF16)] * 2)
        got = run(weights, inputs, [-1] * 128, mla.IndexerCache.allocate(weights.dims, 1, 1))
        assert_equal(got.weights, [[w] * 32 for w in once])

    def test_weights_may_be_negative_and_overflow(self, rng):
        weights = replace(make_weights(rng, hidden=2), w_proj=np.array([[-1, 1, 0]] * 2, np.float32).astype(BF16))
        x = np.full((1, 2), 1e6, np.float32).astype(BF16)
        inputs = (x, *make_inputs(rng, weights, 1)[1:])
        got = run(weights, inputs, [-1], mla.IndexerCache.allocate(weights.dims, 1, 1))
        assert got.weights.tolist() == [[-np.inf, np.inf, 0]]


class TestEdges:
    def test_a_row_of_zeros_has_codes_and_scale_zero(self, rng):
        weights = make_weights(rng)
        x, codes, *rest = make_inputs(rng, weights, 2)
        codes[0] = 0
        flat_norm = replace(weights, ln_gamma_k=np.zeros(HEAD_DIM, BF16), ln_beta_k=np.zeros(HEAD_DIM, BF16))
        cache = mla.IndexerCache.allocate(weights.dims, 1, 2)
        cache.k[...], cache.k_scale[...] = 9, 9
        got = run(flat_norm, (x, codes, *rest), [0, 1], cache)
        assert not got.query[0].any()
        assert not got.query_scale[0].any()
        assert got.query[1].any()
        assert got.query_scale[1].all()
        assert not got.k_cache.any()
        assert not got.k_scale_cache.any()

    @pytest.mark.parametrize(("size", "scale"), [(2.0**40, np.inf), (2.0**-60, 0.0)])
    def test_scales_that_fp16_does_not_hold(self, rng, size, scale):
        """The codes are those of any other size: only the scale is lost."""
        weights = make_weights(rng)
        inputs = make_inputs(rng, weights, 2)
        cache = mla.IndexerCache.allocate(weights.dims, 1, 2)
        usual = run(weights, inputs, [0, 1], cache)
        sized = {"hadamard_k": (weights.hadamard_k.astype(np.float32) * np.float32(size)).astype(BF16)}
        sized["w_qb_scale"] = weights.w_qb_scale * np.float32(size)
        got = run(replace(weights, **sized), inputs, [0, 1], cache)
        assert (got.query == usual.query).all()
        assert (got.k_cache == usual.k_cache).all()
        assert (got.query_scale == scale).all()
        assert (got.k_scale_cache == scale).all()

    @pytest.mark.parametrize(("amax", "scale"), [(127 * 65504.0, 65504.0), (127 * 2.0**-24, 2.0**-24)])
    def test_the_last_scales_that_fp16_holds(self, amax, scale):
        """A head whose largest value is 127 times the scale: 127 and 2^n are exact all the way, 65504 is 2047 * 2^5."""
        s = fp32(127 / Fraction(bf16(Fraction(amax))))
        weights = make_weights(np.random.default_rng(0), n_heads=1, head_dim=2, q_rank=1, qk_rope_head_dim=2)
        weights = replace(weights, w_qb=np.array([[1, 0]], np.int8), w_qb_scale=np.array([amax, 1], np.float32),
                          hadamard_q=np.eye(2, dtype=np.float32).astype(BF16))  # fmt: skip
        inputs = (np.zeros((1, 7), BF16), np.ones((1, 1), np.int8), np.ones((1, 1), np.float32))
        tables = (np.ones((1, 2), BF16), np.zeros((1, 2), BF16))
        got = run(weights, (*inputs, *tables), [-1], mla.IndexerCache.allocate(weights.dims, 1, 1))
        want = fp32(1 / s)
        assert got.query[0, 0].tolist() == [127, 0]
        assert float(got.query_scale[0, 0, 0]) == (fp16(want) if want < 65520 else np.inf)
        assert abs(want / Fraction(scale) - 1) < Fraction(1, 128)

    def test_slots(self, rng):
        """-1 writes nothing, the later of two tokens stays, and rows that no token names are as they were."""
        weights = make_weights(rng)
        inputs = make_inputs(rng, weights, 4)
        cache = mla.IndexerCache.allocate(weights.dims, 2, 3)
        random_bytes(rng, cache.k), random_bytes(rng, cache.k_scale)
        before = cache.copy()
        got = run(weights, inputs, [3, -1, 5, 3], cache)
        want = exact(weights, inputs)
        rows, scales = got.k_cache.reshape(6, HEAD_DIM), got.k_scale_cache.reshape(6)
        for slot, token in ((3, 3), (5, 2)):
            codes, scale = want[token][1]
            assert_equal(rows[slot], codes)
            assert scales[slot] == float(scale)
        others = [0, 1, 2, 4]
        assert (rows[others] == before.k.reshape(6, HEAD_DIM)[others]).all()
        assert scales[others].tobytes() == before.k_scale.reshape(6)[others].tobytes()
        assert cache.k.tobytes() == before.k.tobytes()
        for wrong in (-2, 6):
            with pytest.raises(ValueError, match=rf"^cache_index: expected -1 or a slot below capacity 6, got {wrong}"):
                run(weights, inputs, [0, 1, 2, wrong], cache)

    def test_no_tokens(self, rng):
        weights = make_weights(rng)
        got = run(weights, make_inputs(rng, weights, 0), [], mla.IndexerCache.allocate(weights.dims, 1, 2))
        assert [a.shape for a in got[:3]] == [(0, N_HEADS, HEAD_DIM), (0, N_HEADS, 1), (0, N_HEADS)]
        assert not got.k_cache.any()

    def test_nan_stays_in_its_token(self, rng):
        weights = make_weights(rng)
        clean = make_inputs(rng, weights, 3)
        cache = mla.IndexerCache.allocate(weights.dims, 1, 3)
        want = run(weights, clean, [0, 1, 2], cache)
        x, codes, scale, *tables = (array.copy() for array in clean)
        x[1, 2], scale[1] = np.nan, np.inf
        got = run(weights, (x, codes, scale, *tables), [0, 1, 2], cache)
        for token in (0, 2):
            for name in ("query", "query_scale", "weights"):
                assert_same_bits(name, getattr(got, name)[token], getattr(want, name)[token])
            for name in ("k_cache", "k_scale_cache"):
                assert_same_bits(name, getattr(got, name)[0, token], getattr(want, name)[0, token])
        assert np.isnan(got.weights[1]).all()
        assert np.isnan(got.k_scale_cache[0, 1, 0, 0])

    def test_pa_nz_holds_the_same_keys(self, rng):
        weights = make_weights(rng, head_dim=64)
        inputs = make_inputs(rng, weights, 5)
        slots = [4, 0, -1, 7, 2]
        rows = run(weights, inputs, slots, mla.IndexerCache.allocate(weights.dims, 2, 4))
        runs = run(weights, inputs, slots, mla.IndexerCache.allocate(weights.dims, 2, 4, "PA_NZ"))
        assert_same_bits("k_cache", pa_nz_to_pa_bsnd(runs.k_cache), rows.k_cache)
        assert_same_bits("k_scale_cache", runs.k_scale_cache, rows.k_scale_cache)
        assert runs.k_cache.tobytes() != rows.k_cache.tobytes()

    def test_wrong_arguments(self, rng):
        weights = make_weights(rng)
        names = ("x", "q_norm", "q_norm_scale", "cos", "sin")
        inputs = dict(zip(names, make_inputs(rng, weights, 2), strict=True))
        cache = mla.IndexerCache.allocate(weights.dims, 1, 2)
        for name, array in inputs.items():
            with pytest.raises(TypeError, match=f"^{name}: expected {array.dtype}, got float64"):
                run(weights, (inputs | {name: array.astype(np.float64)}).values(), [0, 1], cache)
            with pytest.raises(ValueError, match=f"^{name}: expected shape "):
                run(weights, (inputs | {name: array[:, :-1]}).values(), [0, 1], cache)
