"""The references of exp and of sparse attention against exact arithmetic and numbers worked out by hand."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from helpers import BF16, assert_same_bits
from helpers.exact import assert_equal, bf16, dot, fp32, fractions, lanes

import mla_numba as mla
from mla_numba.layouts import pa_bsnd_to_pa_nz, to_records
from mla_numba.reference import exp_reference, lane_sum, listed_positions, sparse_attention_reference

N, C, R, BLOCK = 2, 8, 4, 4
SCALE = 0.35


def exact_exp(x):
    """exp by the contract: each operation exact, then rounded to fp32."""
    if x < -87:
        return Fraction(0)
    n = round(fp32(x * fp32(Fraction("1.44269504"))))
    high, low = fp32(Fraction("0.693359375")), fp32(Fraction("-2.12194440e-4"))
    r = fp32(fp32(x - fp32(n * high)) - fp32(n * low))
    p = 0
    for c in ("1.9875691500e-4", "1.3981999507e-3", "8.3334519073e-3", "4.1665795894e-2", "1.6666665459e-1",
              "5.0000001201e-1"):  # fmt: skip
        p = fp32(fp32(p * r) + fp32(Fraction(c)))
    return fp32(fp32(fp32(p * fp32(r * r)) + r) + 1) * Fraction(2) ** n


class TestExp:
    def test_equal_exact_arithmetic(self):
        rng = np.random.default_rng(1)
        x = np.concatenate([-rng.uniform(0, 87, 300), -(2.0 ** -rng.uniform(0, 40, 100)), [0, -87, -87.5]])
        x = x.astype(np.float32)
        assert_equal(exp_reference(x), [exact_exp(value) for value in fractions(x)])

    def test_where_a_contracted_step_would_show(self):
        """In the last bit: the second step of r, steps of the polynomial, the last product, and (p * r) * r."""
        x = [
            "-0x1.4567bcp+6", "-0x1.43540ap+6", "-0x1.01b4cp+5", "-0x1.86b158p+5", "-0x1.1c9dep+4", "-0x1.13c9d6p+3",
            "-0x1.196b02p+4", "-0x1.54746ap+5", "-0x1.134edp+5", "-0x1.f90c54p+4", "-0x1.08a63ap+6", "-0x1.fcabc2p+3",
        ]  # fmt: skip
        x = np.array([float.fromhex(text) for text in x], np.float32)
        assert_equal(exp_reference(x), [exact_exp(value) for value in fractions(x)])

    def test_within_one_ulp(self):
        rng = np.random.default_rng(2)
        x = np.concatenate([np.linspace(-87, 0, 1 << 20), -(2.0 ** rng.uniform(-30, 6.4, 1 << 18))]).astype(np.float32)
        x = x[x >= -87]
        got, want = exp_reference(x).astype(np.float64), np.exp(x.astype(np.float64))
        ulp = np.spacing(want.astype(np.float32)).astype(np.float64)
        assert (np.abs(got - want) / ulp).max() < 1

    def test_ends(self):
        below = np.nextafter(np.float32(-87), np.float32(-np.inf))
        got = exp_reference(np.array([0, -0.0, below, -1e30, -np.inf, np.nan], np.float32))
        assert got[:5].tolist() == [1, 1, 0, 0, 0]
        assert np.isnan(got[5])
        least = exp_reference(np.array([-87], np.float32))[0]
        assert least > np.finfo(np.float32).tiny  # no result is subnormal

    def test_refused(self):
        with pytest.raises(ValueError, match=r"^x: expected values of at most 0, got 1.0"):
            exp_reference(np.array([-1, 1], np.float32))
        with pytest.raises(TypeError, match=r"^x: expected float32, got float64"):
            exp_reference(np.zeros(2))


def values(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32).astype(BF16)


def make_out(rng, t, n=N, c=C, r=R):
    return mla.PrologOutput(values(rng, t, n, c), values(rng, t, n, r), np.zeros((t, 1), np.int8), None)


def make_cache(rng, n_blocks, quantized=True, c=C, r=R):
    kr = values(rng, n_blocks, BLOCK, 1, r)
    if not quantized:
        return mla.PagedCache(values(rng, n_blocks, BLOCK, 1, c), kr)
    codes = rng.integers(-128, 128, (n_blocks, BLOCK, 1, c), np.int8)
    return mla.PagedCache(codes, kr, rng.uniform(0.005, 0.03, (n_blocks, BLOCK, 1, 4)).astype(np.float32))


def run(out, cache, index, table, act_seq, **settings):
    index = None if index is None else np.array(index, np.int32)
    settings = {"softmax_scale": SCALE} | settings
    got = sparse_attention_reference(out, cache, index, np.array(table, np.int32), np.array(act_seq), **settings)
    assert got.dtype == BF16
    assert got.shape == out.query_nope.shape
    return got


def exact_keys(cache, slots):
    """Latent and rope of slots."""
    kv, kr = (fractions(array.reshape(-1, array.shape[-1])[slots]) for array in (cache.kv, cache.kr))
    if cache.k_scale is not None:
        scales = fractions(cache.k_scale.reshape(-1, 4)[slots])
        group = len(kv[0]) // 4
        kv = [
            [bf16(fp32(code * s[c // group])) for c, code in enumerate(row)] for row, s in zip(kv, scales, strict=True)
        ]
    return kv, kr


def exact_scores(out, token, keys, scale=SCALE):
    """Of each head the scores of all keys."""
    queries = fractions(np.concatenate([out.query_nope[token], out.query_rope[token]], axis=1))
    factor = fp32(Fraction(scale))
    return [[fp32(dot(q, latent + rope) * factor) for latent, rope in zip(*keys, strict=True)] for q in queries]


def exact_attention(out, token, keys):
    found = []
    for scores in exact_scores(out, token, keys):
        e = [exact_exp(fp32(s - max(scores))) for s in scores]
        total = lanes(e)
        p = [bf16(fp32(value / total)) for value in e]
        found.append([bf16(dot(p, column)) for column in zip(*keys[0], strict=True)])
    return found


def exact_flash(out, token, keys, tile):
    found = []
    for scores in exact_scores(out, token, keys):
        m, total, o = None, Fraction(0), [Fraction(0)] * len(keys[0][0])
        for start in range(0, len(scores), tile):
            part, latents = scores[start : start + tile], keys[0][start : start + tile]
            highest = max([*part] + ([] if m is None else [m]))
            a = Fraction(0) if m is None else exact_exp(fp32(m - highest))
            e = [exact_exp(fp32(s - highest)) for s in part]
            total = fp32(fp32(total * a) + lanes(e))
            sums = [dot([bf16(value) for value in e], column) for column in zip(*latents, strict=True)]
            o = [fp32(fp32(old * a) + new) for old, new in zip(o, sums, strict=True)]
            m = highest
        found.append([bf16(fp32(value / total)) for value in o])
    return found


@pytest.fixture
def rng():
    return np.random.default_rng(7)


class TestAllSteps:
    """19 keys in a list that is not sorted, more than the 16 lanes hold."""

    POSITIONS = (3, 18, 0, 7, 12, 5, 19, 1, 16, 10, 2, 17, 9, 4, 14, 6, 13, 11, 8)
    TABLE = (4, 2, 0, 1, 5)

    def slots(self):
        return [self.TABLE[p // BLOCK] * BLOCK + p % BLOCK for p in self.POSITIONS]

    @pytest.mark.parametrize("quantized", [True, False])
    def test_equal_exact_arithmetic(self, rng, quantized):
        out, cache = make_out(rng, 1), make_cache(rng, 6, quantized)
        got = run(out, cache, [[*self.POSITIONS, -1, 15]], [self.TABLE], [20])
        assert_equal(got[0], exact_attention(out, 0, exact_keys(cache, self.slots())))

    @pytest.mark.parametrize("tile", [1, 4, 17, 19, 64])
    def test_flash_equals_exact_arithmetic(self, rng, tile):
        out, cache = make_out(rng, 1), make_cache(rng, 6)
        got = run(out, cache, [self.POSITIONS], [self.TABLE], [20], flash_tile=tile)
        assert_equal(got[0], exact_flash(out, 0, exact_keys(cache, self.slots()), tile))

    @pytest.mark.parametrize(("seed", "head", "tile"), [(37, 3, None), (39, 53, None), (185, 6, 19), (223, 46, 19)])
    def test_where_a_sum_without_lanes_would_show(self, seed, head, tile):
        """In a rounded weight, or in the quotient of the flash form."""
        rng = np.random.default_rng((seed, 1))
        queries, latents, rope = values(rng, 64, C + R), values(rng, 19, C), values(rng, 19, R)
        out = mla.PrologOutput(
            queries[None, head : head + 1, :C], queries[None, head : head + 1, C:], np.zeros((1, 1), np.int8), None
        )
        cache = mla.PagedCache(np.zeros((5, BLOCK, 1, C), BF16), np.zeros((5, BLOCK, 1, R), BF16))
        cache.kv.reshape(-1, C)[:19], cache.kr.reshape(-1, R)[:19] = latents, rope
        got = run(out, cache, None, [range(5)], [19], flash_tile=tile)
        keys = exact_keys(cache, range(19))
        assert_equal(got[0], exact_attention(out, 0, keys) if tile is None else exact_flash(out, 0, keys, tile))

    def test_without_an_index_all_positions_in_order(self, rng):
        out, cache = make_out(rng, 3), make_cache(rng, 6)
        got = run(out, cache, None, [self.TABLE], [18])
        index = np.full((3, 20), -1)
        for token in range(3):
            index[token, : 16 + token] = np.arange(16 + token)
        assert_same_bits("attention", got, run(out, cache, index, [self.TABLE], [18]))


class TestByHand:
    def test_equal_scores_give_the_mean(self, rng):
        """Queries of zeros: four keys, P = 1/4 each."""
        out = mla.PrologOutput(np.zeros((1, N, C), BF16), np.zeros((1, N, R), BF16), np.zeros((1, 1), np.int8), None)
        cache = make_cache(rng, 1, quantized=False)
        cache.kv[0, :, 0] = np.array([[1], [2], [4], [9]], BF16)
        assert run(out, cache, None, [[0]], [4]).tolist() == [[[4.0] * C] * N]

    def test_one_key_is_its_latent(self, rng):
        """code * scale: 100 * 0.5 and -128 * 2, one scale for each two of eight codes; 50.5 needs no rounding."""
        out, cache = make_out(rng, 1), make_cache(rng, 1)
        cache.kv[0, 2, 0] = [100, 101, -128, 1, 3, 5, 0, 127]
        cache.k_scale[0, 2, 0] = [0.5, 2, 1, 4]
        for tile in (None, 1, 512):
            got = run(out, cache, [[2]], [[0]], [3], flash_tile=tile)
            assert got.tolist() == [[[50, 50.5, -256, 2, 3, 5, 0, 508]] * N]

    def test_weights_are_divided_before_they_are_rounded(self, rng):
        """Three equal keys: P = bf16(1/3) = 171/512, and 3 * 171/512 rounds to 1.0 in bf16 (513/512)."""
        out = mla.PrologOutput(np.zeros((1, N, C), BF16), np.zeros((1, N, R), BF16), np.zeros((1, 1), np.int8), None)
        cache = make_cache(rng, 1, quantized=False)
        cache.kv[0, :, 0] = np.array([[256], [0], [0], [0]], BF16)
        assert run(out, cache, None, [[0]], [3]).tolist() == [[[85.5] * C] * N]  # 256 * 171/512
        flash = float(np.float32(256 / 3).astype(BF16))
        assert run(out, cache, None, [[0]], [3], flash_tile=4).tolist() == [[[flash] * C] * N]

    def test_softmax_scale(self, rng):
        """Scores 0 and 8 times the scale 1/8: P = 1 / (1 + e) and e / (1 + e)."""
        out = mla.PrologOutput(np.zeros((1, 1, C), BF16), np.full((1, 1, R), 2, BF16), np.zeros((1, 1), np.int8), None)
        cache = make_cache(rng, 1, quantized=False)
        cache.kv[0, :, 0] = np.array([[0], [1], [0], [0]], BF16)
        cache.kr[0, :, 0] = np.array([[0], [1], [0], [0]], BF16)
        want = float(np.float32(np.e / (1 + np.e)).astype(BF16))
        assert run(out, cache, None, [[0]], [2], softmax_scale=0.125).tolist() == [[[want] * C]]

    def test_values_are_added_in_the_order_of_the_list(self, rng):
        """Quarters of 2^26, 4, -2^26 and 0: in this order the 1 is lost, and not where 4 comes third."""
        out = mla.PrologOutput(np.zeros((1, 1, C), BF16), np.zeros((1, 1, R), BF16), np.zeros((1, 1), np.int8), None)
        cache = make_cache(rng, 1, quantized=False)
        cache.kv[0, :, 0] = np.array([[2.0**26], [4], [-(2.0**26)], [0]], BF16)
        assert run(out, cache, [[0, 1, 2, 3]], [[0]], [4]).tolist() == [[[0.0] * C]]
        assert run(out, cache, [[0, 2, 1, 3]], [[0]], [4]).tolist() == [[[1.0] * C]]

    def test_lanes(self):
        """2^24 keeps a 2 that two lanes gave, and no 1 that came to it alone."""
        row = np.zeros((2, 17), np.float32)
        row[:, 0] = 2.0**24
        row[0, [1, 9]] = 1
        row[1, [8, 16]] = 1
        assert lane_sum(row).tolist() == [[2.0**24 + 2], [2.0**24]]

    def test_a_position_twice_counts_twice(self, rng):
        out = mla.PrologOutput(np.zeros((1, 1, C), BF16), np.zeros((1, 1, R), BF16), np.zeros((1, 1), np.int8), None)
        cache = make_cache(rng, 1, quantized=False)
        cache.kv[0, :, 0] = np.array([[8], [0], [0], [0]], BF16)
        assert run(out, cache, [[0, 1, 0, 2]], [[0]], [4]).tolist() == [[[4.0] * C]]


class TestEdges:
    def test_which_entries_are_read(self):
        """Of the first n = min(limit, K) entries those before the first negative one."""
        row = np.array([2, 0, -1, 99])
        assert listed_positions(row, 3) == [2, 0]
        assert listed_positions(np.array([1, 0, 99]), 2) == [1, 0]  # the third is never read
        assert listed_positions(row, 0) == []
        assert listed_positions(row, -4) == []
        assert listed_positions(np.array([-1, 0]), 5) == []
        with pytest.raises(ValueError, match=r"^index: expected positions below 3, the keys .* got 3"):
            listed_positions(np.array([0, 3, 1]), 3)

    def test_no_position_gives_zeros(self, rng):
        out, cache = make_out(rng, 3), make_cache(rng, 1)
        got = run(out, cache, [[0, 1], [-1, 0], [0, 1]], [[0]], [2])
        assert not got[0].any()  # sees nothing
        assert not got[1].any()  # lists nothing
        assert got[2].any()
        assert not run(out, cache, None, [[-1]], [0]).any()

    def test_tokens_of_sequences(self, rng):
        """Each token as if it were alone with the keys that it sees."""
        out, cache = make_out(rng, 4), make_cache(rng, 4)
        table, lengths = [[2, 0], [3, 1]], [3, 7]
        index = [[0, 1, -1, -1], [2, 0, 1, -1], [5, 3, 0, -1], [6, 1, 2, 0]]
        got = run(out, cache, index, table, lengths)
        ragged = run(out, cache, index[1:2] + index[:3], table, lengths, query_start_loc=np.array([0, 1, 4]))
        for token, (sequence, limit) in enumerate([(0, 2), (0, 3), (1, 6), (1, 7)]):
            one = mla.PrologOutput(*(a[token : token + 1] for a in out[:3]), None)
            want = run(one, cache, index[token : token + 1], table[sequence : sequence + 1], [limit])
            assert_same_bits("attention", got[token : token + 1], want)
        for token, (sequence, limit) in enumerate([(0, 3), (1, 5), (1, 6), (1, 7)]):
            one = mla.PrologOutput(*(a[token : token + 1] for a in out[:3]), None)
            row = (index[1:2] + index[:3])[token]
            want = run(one, cache, [row], table[sequence : sequence + 1], [limit])
            assert_same_bits("attention", ragged[token : token + 1], want)

    def test_nan_stays_in_its_token_and_head(self, rng):
        out, cache = make_out(rng, 2), make_cache(rng, 2)
        want = run(out, cache, None, [[0, 1]], [6])
        out.query_nope[0, 1, 3] = np.nan
        got = run(out, cache, None, [[0, 1]], [6])
        assert_same_bits("attention", got[1], want[1])
        assert_same_bits("attention", got[0, 0], want[0, 0])
        assert np.isnan(got[0, 1]).all()

    def test_keys_that_no_list_names_are_not_read(self, rng):
        out, cache = make_out(rng, 1), make_cache(rng, 2)
        want = run(out, cache, [[0, 5, 2]], [[0, 1]], [6])
        for slot in (1, 3, 4, 6, 7):
            cache.k_scale.reshape(8, 4)[slot] = np.nan
            cache.kr.reshape(8, R)[slot] = np.nan
        assert_same_bits("attention", run(out, cache, [[0, 5, 2]], [[0, 1]], [6]), want)

    def test_no_tokens(self, rng):
        assert run(make_out(rng, 0), make_cache(rng, 1), np.zeros((0, 3)), [[0]], [2]).shape == (0, N, C)

    def test_positions_without_a_block(self, rng):
        out, cache = make_out(rng, 1), make_cache(rng, 2)
        run(out, cache, [[0, 3]], [[1, -1]], [6])  # whose second block no position needs
        for table in ([[1, -1]], [[1, 2]], [[1]]):
            with pytest.raises(ValueError, match=r"^block_table: expected a block from 0 to below 2 of position 4"):
                run(out, cache, [[0, 4]], table, [6])

    def test_fp16_scales(self, rng):
        out, cache = make_out(rng, 1), make_cache(rng, 2)
        fp16 = replace(cache, k_scale=cache.k_scale.astype(np.float16))
        widened = replace(cache, k_scale=fp16.k_scale.astype(np.float32))
        assert_same_bits("attention", run(out, fp16, None, [[0, 1]], [8]), run(out, widened, None, [[0, 1]], [8]))


class TestLayouts:
    @pytest.mark.parametrize("quantized", [True, False])
    def test_pa_nz(self, rng, quantized):
        cache = make_cache(rng, 3, quantized, c=64, r=32)
        runs = mla.PagedCache(pa_bsnd_to_pa_nz(cache.kv), pa_bsnd_to_pa_nz(cache.kr), cache.k_scale, "PA_NZ")
        out = make_out(rng, 2, c=64, r=32)
        arguments = [[7, 0, 3], [2, 8, 5]], [[2, 0, 1]], [10]
        assert_same_bits("attention", run(out, runs, *arguments), run(out, cache, *arguments))

    @pytest.mark.parametrize("order", ["cann", "flashmla"])
    def test_records(self, rng, order):
        cache, out = make_cache(rng, 2, c=512, r=64), make_out(rng, 1, c=512, r=64)
        records = to_records(cache.kv, cache.k_scale, cache.kr, order=order)
        arguments = [[5, 0, 3]], [[1, 0]], [6]
        want = run(out, cache, *arguments)
        assert_same_bits("attention", run(out, records, *arguments, record_order=order), want)
        assert_same_bits("attention", run(out, records.view(np.int8), *arguments, record_order=order), want)
        with pytest.raises(ValueError, match=r"^record_order: expected one of cann, flashmla, got None"):
            run(out, records, *arguments)
