"""Rope tables: frequencies and angles worked by hand, and every other layout converted or named."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import BF16, assert_same_bits
from helpers.rope_configs import CONFIG, PLAIN_CONFIG, YARN

from mla_numba.base.dims import MlaDims
from mla_numba.oracle.inputs import random_inputs
from mla_numba.rope_table import (
    CosSin,
    RopeTable,
    check_cos_sin,
    from_cos_sin_cache,
    from_half,
    from_interleaved,
    softmax_scale,
)


def scaled(**changes):
    return CONFIG | {"rope_scaling": YARN | changes}


class TestFrequencies:
    def test_plain_by_hand(self):
        table = RopeTable.from_hf({"qk_rope_head_dim": 4, "rope_theta": 100})
        assert table.frequencies.tolist() == [1, np.float32(0.1)]
        assert table.frequencies.dtype == np.float32
        assert table.attention_factor == 1

    def test_no_scaling_in_every_form(self):
        want = RopeTable.from_hf(PLAIN_CONFIG).frequencies
        for none in ({"rope_scaling": None}, {"rope_scaling": {"type": "default"}}, {"rope_scaling": {}}):
            assert_same_bits("frequencies", RopeTable.from_hf(PLAIN_CONFIG | none).frequencies, want)

    def test_yarn_by_hand(self):
        # 4096 positions turn pair i by 4096 / 10000^(i/32) / (2 pi) times: 32 times at 10.47, once at 22.51.
        plain, yarn = RopeTable.from_hf(PLAIN_CONFIG).frequencies, RopeTable.from_hf(CONFIG).frequencies
        assert yarn[:11].tolist() == plain[:11].tolist()
        assert (yarn[11:] < plain[11:]).all()
        assert np.allclose(yarn[23:], plain[23:] / 40, rtol=2e-7)
        ramp = 6 / 13  # pair 16 of the ramp from 10 to 23
        assert yarn[16] == pytest.approx(0.01 * (1 - ramp) + 0.01 / 40 * ramp, rel=2e-7)

    def test_without_truncation_the_ramp_begins_within_a_pair(self):
        plain, yarn = (RopeTable.from_hf(c).frequencies for c in (PLAIN_CONFIG, scaled(truncate=False)))
        low, high = (32 * math.log(4096 / (n * 2 * math.pi)) / math.log(10000) for n in (32, 1))
        ramp = (16 - low) / (high - low)
        assert 10 < low < 11 < 22 < high < 23
        assert yarn[16] == pytest.approx(plain[16] * (1 - ramp + ramp / 40), rel=1e-6)

    def test_a_ramp_of_no_width(self):
        config = scaled(beta_fast=1, beta_slow=1, original_max_position_embeddings=1000000)
        config["qk_rope_head_dim"] = 8  # both ends beyond the last pair
        assert np.isfinite(RopeTable.from_hf(config).frequencies).all()

    @pytest.mark.parametrize(
        ("changes", "want"),
        [
            ({}, 1.0),
            ({"mscale": 2.0}, (0.2 * math.log(40) + 1) / (0.1 * math.log(40) + 1)),
            ({"mscale_all_dim": 0}, 0.1 * math.log(40) + 1),
            ({"mscale": None}, 0.1 * math.log(40) + 1),
            ({"factor": 1.0}, 1.0),
            ({"attention_factor": 1.25}, 1.25),
        ],
    )
    def test_attention_factor(self, changes, want):
        assert RopeTable.from_hf(scaled(**changes)).attention_factor == pytest.approx(want, rel=1e-12)

    def test_softmax_scale(self):
        assert softmax_scale(PLAIN_CONFIG) == 192**-0.5
        assert softmax_scale(CONFIG) == pytest.approx(192**-0.5 * 1.3688879454113936**2, rel=1e-15)
        assert softmax_scale(scaled(mscale_all_dim=0)) == 192**-0.5

    def test_an_object_and_the_newer_form(self):
        want = RopeTable.from_hf(CONFIG).frequencies
        newer = {k: v for k, v in YARN.items() if k != "type"} | {"rope_type": "yarn", "rope_theta": 10000.0}
        newer = {k: v for k, v in CONFIG.items() if k not in ("rope_theta", "rope_scaling")} | {
            "rope_parameters": newer
        }
        for config in (SimpleNamespace(**CONFIG), newer, SimpleNamespace(**newer)):
            assert_same_bits("frequencies", RopeTable.from_hf(config).frequencies, want)

    def test_what_a_scaling_may_leave_out(self):
        least = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
        got = RopeTable.from_hf(CONFIG | {"rope_scaling": least})
        assert_same_bits("frequencies", got.frequencies, RopeTable.from_hf(CONFIG).frequencies)
        least.pop("factor")  # 163840 / 4096 as well
        got = RopeTable.from_hf(CONFIG | {"rope_scaling": least})
        assert_same_bits("frequencies", got.frequencies, RopeTable.from_hf(CONFIG).frequencies)

    @pytest.mark.parametrize(
        ("config", "error", "text"),
        [
            ({"rope_theta": 1e4}, ValueError, "config.qk_rope_head_dim: expected a number, got none"),
            (CONFIG | {"qk_rope_head_dim": 63}, ValueError, "config.qk_rope_head_dim: expected an even number"),
            (CONFIG | {"qk_rope_head_dim": 64.5}, ValueError, "config.qk_rope_head_dim: expected an int, got 64.5"),
            (CONFIG | {"rope_theta": None}, ValueError, "config.rope_theta: expected a number, got none"),
            (CONFIG | {"rope_theta": "1e4"}, TypeError, "config.rope_theta: expected a number, got str"),
            (CONFIG | {"rope_theta": 1}, ValueError, "config.rope_theta: expected a number above 1, got 1.0"),
            (CONFIG | {"rope_scaling": "yarn"}, TypeError, "config.rope_scaling: expected a mapping or none, got str"),
            (scaled(type="linear"), ValueError, "config.rope_scaling.type: expected yarn, .*got 'linear'"),
            (scaled(beta_fast="32"), TypeError, "config.beta_fast: expected a number, got str"),
        ],
    )
    def test_errors(self, config, error, text):
        with pytest.raises(error, match=f"^{text}"):
            RopeTable.from_hf(config)

    @pytest.mark.parametrize("read", [RopeTable.from_hf, softmax_scale])
    @pytest.mark.parametrize(
        ("config", "error", "text"),
        [
            (scaled(type=None), ValueError, r"config\.rope_scaling\.factor: .* yarn, got 40 without a rope_type"),
            (
                scaled(rope_type="default"),
                ValueError,
                r"config\.rope_scaling\.factor: expected it beside rope_type yarn, got 40 beside rope_type default",
            ),
            (
                PLAIN_CONFIG | {"rope_scaling": None, "rope_parameters": {"mscale": 0.7}},
                ValueError,
                r"config\.rope_parameters\.mscale: expected it beside rope_type yarn, got 0\.7 without a rope_type",
            ),
            (scaled(rope_type="longrope"), ValueError, "config.rope_scaling.type: expected yarn, .*got 'longrope'"),
            (scaled(rope_type=["yarn"]), ValueError, "config.rope_scaling.type: expected yarn, .*got list of 1"),
            (
                scaled(high_freq_factor=4),
                ValueError,
                r"config\.rope_scaling\.high_freq_factor: expected no settings but apply_.*, type, got 4",
            ),
            (
                PLAIN_CONFIG | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
                ValueError,
                r"config\.rope_parameters\.full_attention: expected no settings but .*, got dict of 1",
            ),
            (scaled(factor=0), ValueError, "config.factor: expected a number above 0, got 0"),
            (scaled(factor=-2.0), ValueError, r"config\.factor: expected a number above 0, got -2\.0"),
            (scaled(factor=math.inf), ValueError, "config.factor: expected a number of at most 3.40282e.38, got inf"),
            (scaled(factor=True), TypeError, "config.factor: expected a number, got bool"),
            (scaled(beta_fast=-1), ValueError, "config.beta_fast: expected a number of at least 0, got -1"),
            (scaled(beta_slow=math.nan), ValueError, "config.beta_slow: expected a number .*, got nan"),
            (scaled(mscale=-1), ValueError, "config.mscale: expected a number of at least 0, got -1"),
            (scaled(attention_factor=0), ValueError, "config.attention_factor: expected a number above 0, got 0"),
            (scaled(truncate=1), TypeError, "config.truncate: expected bool, got int"),
            (scaled(apply_yarn_scaling="no"), TypeError, "config.apply_yarn_scaling: expected bool, got str"),
            (
                scaled(original_max_position_embeddings=0),
                ValueError,
                "config.original_max_position_embeddings: expected a number above 0, got 0",
            ),
            (
                CONFIG | {"original_max_position_embeddings": -5},
                ValueError,
                "config.original_max_position_embeddings: expected a number above 0, got -5",
            ),
            (
                scaled(original_max_position_embeddings=None) | {"max_position_embeddings": 0},
                ValueError,
                "config.max_position_embeddings: expected a number above 0, got 0",
            ),
            (
                scaled(factor=None) | {"max_position_embeddings": None},
                ValueError,
                "config.max_position_embeddings: expected a number, got none",
            ),
            (CONFIG | {"qk_rope_head_dim": 2**21}, ValueError, "config.qk_rope_head_dim: expected a number of at most"),
        ],
    )
    def test_scalings_that_are_refused(self, read, config, error, text):
        with pytest.raises(error, match=f"^{text}"):
            read(config)

    @pytest.mark.parametrize(
        ("config", "text"),
        [
            (scaled(beta_fast=1e308), "config.beta_fast: expected a number of"),
            (scaled(beta_slow=1e-307), "config.beta_slow: expected a number of turns in 4096 positions, got 1e-307"),
            (scaled(factor=1e-44), "config.factor: expected one that leaves finite frequencies, got 1e-44"),
            (CONFIG | {"rope_theta": 10**39}, "config.rope_theta: expected a number of at most"),
            (
                PLAIN_CONFIG | {"rope_theta": None, "rope_scaling": YARN, "rope_parameters": {"rope_theta": 5e4}},
                r"config\.rope_theta: expected a number in rope_scaling, got 50000\.0 in rope_parameters beside it",
            ),
        ],
    )
    def test_frequencies_that_are_refused(self, config, text):
        with pytest.raises(ValueError, match=f"^{text}"):
            RopeTable.from_hf(config)

    def test_apply_yarn_scaling_is_of_the_scores_alone(self):
        config = scaled(apply_yarn_scaling=False)
        assert softmax_scale(config) == 192**-0.5
        assert_same_bits("frequencies", RopeTable.from_hf(config).frequencies, RopeTable.from_hf(CONFIG).frequencies)
        assert softmax_scale(scaled(apply_yarn_scaling=True)) == softmax_scale(CONFIG)

    def test_a_large_factor_slows_to_nothing(self):
        table = RopeTable.from_hf(scaled(factor=10**30))
        assert table.frequencies[-1] < 1e-30
        assert np.isfinite(table.frequencies).all()

    def test_fields(self):
        with pytest.raises(TypeError, match=r"^frequencies: expected dtype float32, got float64"):
            RopeTable(np.ones(4))
        with pytest.raises(ValueError, match=r"^frequencies: expected at least 1, got 0"):
            RopeTable(np.ones(0, np.float32))
        with pytest.raises(TypeError, match=r"^attention_factor: expected a number, got str"):
            RopeTable(np.ones(4, np.float32), "1")


class TestAt:
    def test_by_hand(self):
        cos, sin = RopeTable(np.array([1, 0.5], np.float32)).at(np.array([0, 2]))
        assert cos.dtype == sin.dtype == BF16
        assert cos.tolist()[0] == [1, 1, 1, 1]
        assert sin.tolist()[0] == [0, 0, 0, 0]
        # bf16 has 8 bits: cos 2 = -0.41615, cos 1 = 0.5403, sin 2 = 0.9093, sin 1 = 0.84147
        assert cos.tolist()[1] == [-0.416015625, 0.5390625, -0.416015625, 0.5390625]
        assert sin.tolist()[1] == [0.91015625, 0.83984375, 0.91015625, 0.83984375]

    def test_attention_factor_multiplies_both(self):
        one = RopeTable(np.array([0.3], np.float32)).at(np.arange(5))
        two = RopeTable(np.array([0.3], np.float32), 2.0).at(np.arange(5))
        for name, a, b in zip(CosSin._fields, one, two, strict=True):
            assert_same_bits(name, b, (a.astype(np.float32) * 2).astype(BF16))

    def test_far_positions_keep_their_angles(self):
        table = RopeTable.from_hf(CONFIG)
        position = 2**24
        cos, _ = table.at(np.array([position]))
        assert cos[0, 0] == BF16.type(math.cos(position))

    def test_a_call_takes_them(self):
        dims = MlaDims(32, 2, 16, 16, 8, 4)
        given = random_inputs(dims, 3, 0, 4)
        for ours, theirs in zip(RopeTable(np.ones(2, np.float32)).at(np.arange(3)), given[1:3], strict=True):
            assert ours.shape == theirs.shape
            assert ours.dtype == theirs.dtype
            assert ours.flags.c_contiguous

    def test_no_positions(self):
        cos, sin = RopeTable.from_hf(CONFIG).at(np.zeros(0, np.int64))
        assert cos.shape == sin.shape == (0, 64)
        check_cos_sin(cos, sin, 64)

    @pytest.mark.parametrize(
        ("positions", "error", "text"),
        [
            ([1], TypeError, "positions: expected an array of integers, got list"),
            (np.ones(2), TypeError, "positions: expected an array of integers, got dtype float64"),
            (np.ones((1, 2), int), ValueError, r"positions: expected shape \(any\), got \(1, 2\)"),
            (np.array([3, -1]), ValueError, r"positions\[1\]: expected 0 to 16777216, got -1"),
            (np.array([2**24 + 1]), ValueError, r"positions\[0\]: expected 0 to 16777216, got 16777217"),
        ],
    )
    def test_errors(self, positions, error, text):
        with pytest.raises(error, match=f"^{text}"):
            RopeTable.from_hf(CONFIG).at(positions)


RIGHT = RopeTable.from_hf(CONFIG).at(np.array([0, 5, 7, 1000, 99999]))
HALF = CosSin(*(np.ascontiguousarray(table[:, :32]) for table in RIGHT))
PAIRS = CosSin(*(np.repeat(half, 2, axis=1) for half in HALF))
CACHE = np.concatenate(HALF, axis=1)


class TestLayouts:
    def same(self, got, want=RIGHT):
        for name, a, b in zip(CosSin._fields, got, want, strict=True):
            assert_same_bits(name, a, b)
            assert a.flags.c_contiguous

    def test_half(self):
        self.same(from_half(*HALF))

    def test_interleaved(self):
        self.same(from_interleaved(*PAIRS))

    def test_cos_sin_cache(self):
        self.same(from_cos_sin_cache(CACHE, np.arange(5)))
        rows = np.array([4, 4, 0], np.int32)
        self.same(from_cos_sin_cache(CACHE, rows), CosSin(*(table[rows] for table in RIGHT)))

    def test_float32_is_rounded_once(self):
        half = np.array([[1 + 2.0**-9, 0.25]], np.float32)  # halfway between two of bf16: to even
        assert from_half(half, half).cos.tolist() == [[1, 0.25, 1, 0.25]]

    def test_a_table_that_is_not_what_it_is_said_to_be(self):
        with pytest.raises(ValueError, match=r"^cos: expected interleaved pairs, got halves that are alike$"):
            from_interleaved(*RIGHT)
        with pytest.raises(ValueError, match=r"^cos_sin_cache: expected columns of cos and then of sin, got rows"):
            from_cos_sin_cache(RIGHT.cos, np.arange(5))
        with pytest.raises(ValueError, match=r"^positions\[1\]: expected 0 to 4, got 5"):
            from_cos_sin_cache(CACHE, np.array([0, 5]))
        with pytest.raises(ValueError, match=r"^cos_sin_cache: expected an even number of columns, got 3"):
            from_cos_sin_cache(np.ones((2, 3), BF16), np.array([0]))
        with pytest.raises(TypeError, match=r"^positions: expected dtype int64 or int32, got float64"):
            from_cos_sin_cache(CACHE, np.ones(1))
        with pytest.raises(ValueError, match=r"^sin: expected shape \(5, 32\), got \(4, 32\)"):
            from_half(HALF.cos, HALF.sin[:4])

    def test_check_takes_the_right_one(self):
        check_cos_sin(*RIGHT, 64)
        check_cos_sin(*RopeTable.from_hf(scaled(mscale=3.0)).at(np.arange(5000)), 64)
        check_cos_sin(*RopeTable.from_hf(CONFIG).at(np.array([0])), 64)  # which is a right one of every layout

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (
                PAIRS,
                "cos: expected 64 columns whose halves are alike, got interleaved pairs.*from_interleaved converts",
            ),
            (CosSin(RIGHT.cos, PAIRS.sin), "sin: expected 64 columns .*got a layout that is none"),
            (HALF, "cos: expected 64 columns .*got half as many, a column a pair; from_half converts"),
            (CosSin(CACHE, CACHE), "cos: expected 64 columns .*got cos in the first half.*from_cos_sin_cache converts"),
            (CosSin(RIGHT.cos, CACHE), "sin: expected 64 columns .*got cos in the first half"),
            (CosSin(RIGHT.cos[::-1].copy(), RIGHT.sin), r"cos, sin: expected tables of the same angles, got .*varies"),
            (CosSin(RIGHT.cos[:, :62].copy(), RIGHT.sin), r"cos: expected shape \(5, 64\), got \(5, 62\)"),
            (CosSin(RIGHT.cos, RIGHT.sin[:4]), r"sin: expected shape \(5, 64\), got \(4, 64\)"),
        ],
    )
    def test_check_names_the_wrong_one(self, given, text):
        with pytest.raises(ValueError, match=f"^{text}"):
            check_cos_sin(*given, 64)

    def test_check_names_types(self):
        with pytest.raises(TypeError, match=r"^sin: expected a NumPy array, got list"):
            check_cos_sin(RIGHT.cos, RIGHT.sin.tolist(), 64)
        with pytest.raises(TypeError, match=r"^cos: expected dtype bfloat16, got float32"):
            check_cos_sin(RIGHT.cos.astype(np.float32), RIGHT.sin, 64)
