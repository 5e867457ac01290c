"""The reference of the lightning index against numbers worked out by hand and exact arithmetic, and its edges."""

import numpy as np
import pytest
from helpers.exact import assert_equal, fp16, fp32, fractions

import mla_numba as mla
from mla_numba.layouts import pa_bsnd_to_pa_nz
from mla_numba.reference import best_positions, index_scores, lightning_index_reference

NAN, INF = float("nan"), float("inf")


def half(*values):
    return np.array(values, np.float16)


def make_out(scores_of_token, head_dim=32):
    """Queries of one head whose dot with the key that holds 2^11 in products is 2^11 times such a number."""
    query = np.zeros((len(scores_of_token), 1, head_dim), np.int8)
    query[:, :, 0] = 32
    return mla.IndexerOutput(query, np.ones((len(query), 1, 1), np.float16), half(*scores_of_token).reshape(-1, 1))


def make_cache(scales, block_size=2, head_dim=32):
    """Keys that all give r = 1 with `make_out`, and whose scales are these, by slot."""
    n_blocks = len(scales) // block_size
    cache = mla.IndexerCache.allocate(mla.IndexerDims(8, 8, 1, head_dim, 8), n_blocks, block_size)
    cache.k[..., 0] = 64
    cache.k_scale[...] = half(*scales).reshape(n_blocks, block_size, 1, 1)
    return cache


def run(out, cache, table, act_seq, k, starts=None):
    starts = None if starts is None else np.array(starts, np.int32)
    table, act_seq = np.array(table, np.int32), np.array(act_seq, np.int32)
    index = lightning_index_reference(out, cache, table, act_seq, k, query_start_loc=starts)
    assert index.dtype == np.int32
    assert index.shape == (len(out.query), k)
    return index.tolist()


class TestScores:
    def test_equal_exact_arithmetic(self):
        rng = np.random.default_rng(3)
        query, keys = rng.integers(-128, 128, (5, 24), np.int8), rng.integers(-128, 128, (40, 24), np.int8)
        query_scale, key_scale = (rng.uniform(0.01, 2, n).astype(np.float16) for n in (5, 40))
        weights = rng.standard_normal(5).astype(np.float16)
        factors = [fp16(s * w) for s, w in zip(fractions(query_scale), fractions(weights), strict=True)]
        want = []
        for key, scale in zip(keys.astype(int).tolist(), fractions(key_scale), strict=True):
            score = 0
            for head, factor in zip(query.astype(int).tolist(), factors, strict=True):
                dot = sum(a * b for a, b in zip(head, key, strict=True))
                score = fp32(score + factor * fp16(fp32(max(dot, 0)) / 2048))
            want.append(fp32(score * scale))
        assert_equal(index_scores(query, query_scale, weights, keys, key_scale), want)
        assert len(set(want)) > 20

    def test_a_dot_is_rounded_to_eleven_bits(self):
        """2049 / 2048 lies halfway and goes to the even 2048, 2051 to 2052; 4098 to 4096, 4099 and 4101 to 4100."""
        dots = {2048: 2048, 2049: 2048, 2051: 2052, 4098: 4096, 4099: 4100, 4101: 4100, 4102: 4104, -5000: 0, 0: 0}
        keys = np.zeros((len(dots), 64), np.int8)
        for key, dot in zip(keys, dots, strict=True):
            of_64, key[63] = divmod(abs(dot), 64)
            key[:63] = of_64 // 63
            key[: of_64 % 63] += 1
            key *= np.sign(dot)
        query = np.array([[64] * 63 + [1]], np.int8)
        assert (keys.astype(int) @ query[0].astype(int)).tolist() == list(dots)
        one = np.ones(len(dots), np.float16)
        got = index_scores(query, one[:1], one[:1], keys, one)
        assert (got * 2048).tolist() == list(dots.values())

    def test_the_largest_dot(self):
        """128 * 128 * 1024 / 2^11 = 2^13: fp16 holds every r."""
        codes = np.full((1, 1024), -128, np.int8)
        assert index_scores(codes, half(1), half(1), codes, half(1)).tolist() == [8192.0]

    def test_relu_comes_before_the_weight(self):
        query, keys = np.array([[32]], np.int8), np.array([[64], [-64]], np.int8)
        assert index_scores(query, half(1), half(-3), keys, half(2, 2)).tolist() == [-6.0, 0.0]

    def test_scale_times_weight_is_rounded_to_fp16(self):
        """(1 + 2^-10)² = 1 + 2^-9 + 2^-20, whose last bit is lost."""
        query, keys = np.array([[32]], np.int8), np.array([[64]], np.int8)
        assert index_scores(query, half(1 + 2**-10), half(1 + 2**-10), keys, half(1)).tolist() == [1 + 2**-9]

    def test_heads_are_added_in_ascending_order(self):
        """2^24, 1 and 1: the ones are lost after it, and not before it."""
        query = np.zeros((3, 64), np.int8)
        query[0], query[1:, :16] = -128, -1
        keys, weights = np.full((1, 64), -128, np.int8), half(32768, 1, 1)
        one = np.ones(3, np.float16)
        assert index_scores(query, one, weights, keys, one[:1]).tolist() == [2.0**24]
        assert index_scores(query[::-1], one, weights[::-1], keys, one[:1]).tolist() == [2.0**24 + 2]


class TestOrder:
    def test_highest_first_and_ties_by_position(self):
        scores = np.array([1, 3, -0.0, 3, 0, -2, -0.0], np.float32)
        assert best_positions(scores, 7) == [1, 3, 0, 2, 4, 6, 5]
        assert best_positions(scores, 3) == [1, 3, 0]
        assert best_positions(scores, 0) == []

    def test_nan_first_then_inf(self):
        scores = np.array([INF, NAN, -INF, 5, -NAN, NAN], np.float32)
        assert best_positions(scores, 6) == [1, 4, 5, 0, 3, 2]

    def test_scores_that_differ_in_their_last_bit(self):
        one = np.float32(1)
        assert best_positions(np.array([one, np.nextafter(one, np.float32(2)), one], np.float32), 3) == [1, 0, 2]


class TestIndex:
    def test_positions_not_slots(self):
        """Blocks 2, 0 hold positions 0 to 3: slots 4, 5, 0, 1 with scales 7, 5, 9, 8."""
        cache = make_cache([9, 8, 99, 99, 7, 5])
        assert run(make_out([1]), cache, [[2, 0]], [4], 4) == [[2, 3, 0, 1]]
        assert run(make_out([-1]), cache, [[2, 0]], [4], 4) == [[1, 0, 3, 2]]

    def test_each_token_sees_the_keys_up_to_its_own(self):
        cache = make_cache([1, 2, 3, 4])
        assert run(make_out([1, 1, 1]), cache, [[0, 1]], [4], 3) == [[1, 0, -1], [2, 1, 0], [3, 2, 1]]

    def test_fewer_keys_than_tokens(self):
        """The first tokens see nothing."""
        cache = make_cache([1, 2])
        assert run(make_out([1, 1, 1]), cache, [[0]], [1], 2) == [[-1, -1], [-1, -1], [0, -1]]
        assert run(make_out([1]), cache, [[-1]], [0], 2) == [[-1, -1]]

    def test_sequences(self):
        cache = make_cache([1, 2, 4, 3, 5, 6, 8, 7])
        out = make_out([1, 1, 1, 1])
        assert run(out, cache, [[0, 3], [2, 1]], [3, 4], 3) == [[1, 0, -1], [2, 1, 0], [1, 0, 2], [1, 0, 2]]
        assert run(out, cache, [[0, 3], [2, 1]], [3, 4], 3, [0, 1, 4]) == [[2, 1, 0], [1, 0, -1], [1, 0, 2], [1, 0, 2]]
        assert run(out, cache, [[0, 3], [2, 1]], [4, 0], 2, [0, 4, 4]) == [[0, -1], [1, 0], [2, 1], [2, 3]]

    def test_ties_and_zeros(self):
        """Scores 0 are real members: negative zeros count as zeros, and a negative score comes last."""
        cache = make_cache([0, -1, 0, 2])
        cache.k[0, 1] = 0  # r = 0 times the scale -1: -0
        assert run(make_out([1]), cache, [[0, 1]], [4], 4) == [[3, 0, 1, 2]]
        assert run(make_out([0]), cache, [[0, 1]], [4], 3) == [[0, 1, 2]]
        assert run(make_out([-1]), cache, [[0, 1]], [4], 4) == [[0, 1, 2, 3]]

    def test_nan_keys_come_first(self):
        cache = make_cache([3, NAN, 4, NAN])
        assert run(make_out([1]), cache, [[0, 1]], [4], 4) == [[1, 3, 2, 0]]
        assert run(make_out([1]), cache, [[0, 1]], [4], 1) == [[1]]

    def test_a_nan_weight_stays_in_its_token(self):
        cache = make_cache([1, 2, 3, 4])
        assert run(make_out([1, NAN, 1]), cache, [[0, 1]], [4], 2) == [[1, 0], [0, 1], [3, 2]]

    def test_inf_scales(self):
        """Inf times a score of 0 is NaN: such a key comes first."""
        cache = make_cache([1, INF, INF, 2])
        cache.k[1, 0] = 0
        assert run(make_out([1]), cache, [[0, 1]], [4], 4) == [[2, 1, 3, 0]]

    def test_no_tokens(self):
        cache = make_cache([1, 2])
        assert run(make_out([]), cache, [[0]], [2], 3) == []
        assert run(make_out([]), cache, np.zeros((0, 1)), [], 3) == []

    def test_pa_nz(self):
        rng = np.random.default_rng(0)
        rows, scale = (
            rng.integers(-128, 128, (3, 4, 1, 64), np.int8),
            half(*rng.uniform(0.5, 2, 12)).reshape(3, 4, 1, 1),
        )
        out = mla.IndexerOutput(rng.integers(-128, 128, (2, 3, 64), np.int8), half(*[1] * 6).reshape(2, 3, 1),
                                half(*rng.standard_normal(6)).reshape(2, 3))  # fmt: skip
        table, lengths = [[2, 0, 1]], [11]
        got = run(out, mla.IndexerCache(pa_bsnd_to_pa_nz(rows), scale, "PA_NZ"), table, lengths, 9)
        assert got == run(out, mla.IndexerCache(rows, scale), table, lengths, 9)
        assert len({*got[0]}) == 9

    def test_blocks_that_are_not_there(self):
        cache = make_cache([1, 2, 3, 4])
        assert run(make_out([1]), cache, [[1, -1]], [2], 2) == [[1, 0]]  # which no token needs
        for table in ([[1, -1]], [[1, 2]], [[1]]):
            with pytest.raises(ValueError, match=r"^block_table: expected a block from 0 to below 2 of position 2"):
                run(make_out([1]), cache, table, [3], 2)

    def test_tokens_that_cannot_be_shared(self):
        cache = make_cache([1, 2, 3, 4])
        with pytest.raises(ValueError, match=r"^act_seq: expected a number of sequences that divides 3 tokens, got 2"):
            run(make_out([1, 1, 1]), cache, [[0], [1]], [2, 2], 2)
        for starts in ([0, 3], [1, 2, 3], [0, 2, 2], [0, 4, 3]):
            with pytest.raises(ValueError, match=r"^query_start_loc: expected 3 rising starts from 0 to 3, got "):
                run(make_out([1, 1, 1]), cache, [[0], [1]], [2, 2], 2, starts)
