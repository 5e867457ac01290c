"""Weights and dimensions: what fits, what is refused by name, and how weights are made, quantised and packed."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import BF16, MODES, QUANTS, assert_same_bits, fullsize, make_weights, vars_of

from mla_numba import MlaDims, MlaWeights, PackedWeights, QuantizationReport
from mla_numba.kernels import ISA

DIMS = MlaDims(130, 3, 50, 68, 33, 34)
SHAPES = {
    "w_dq": (130, 50),
    "w_uq_qr": (50, 201),
    "w_uk": (3, 33, 68),
    "w_dkv_kr": (130, 102),
    "gamma_cq": (50,),
    "gamma_ckv": (68,),
}
SCALES = {
    "dequant_scale_w_uq_qr": 201,
    "dequant_scale_w_dq": 50,
    "dequant_scale_w_dkv_kr": 102,
    "smooth_scales_cq": 50,
}
FIELDS = {  # the model's own names
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
}


def refuses(error, match, weights, **changes):
    with pytest.raises(error) as caught:
        replace(weights, **changes)
    assert type(caught.value) is error
    assert re.search(match, str(caught.value)), str(caught.value)
    return str(caught.value)


class TestFields:
    @pytest.mark.parametrize("mode", MODES)
    def test_shapes_tell_the_dims_and_scales_the_mode(self, mode):
        weights = make_weights(DIMS, mode)
        assert weights.dims == DIMS
        assert weights.quant == mode.split()[0]
        assert {name: getattr(weights, name).shape for name in SHAPES} == SHAPES

    @pytest.mark.parametrize("name", SHAPES)
    def test_type(self, name):
        weights = make_weights(DIMS, "none")
        for wrong in (None, getattr(weights, name).tolist(), 1.0):
            text = refuses(TypeError, f"^{name}: expected .*array", weights, **{name: wrong})
            assert f"got {type(wrong).__name__}" in text

    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("mode", ["none", "ab"])
    def test_dtype(self, name, mode):
        weights = make_weights(DIMS, mode)
        array = getattr(weights, name)
        for dtype in {np.float32, np.float16, np.uint16, np.uint8, np.int32}:
            wrong = np.zeros(array.shape, dtype)
            text = refuses(TypeError, f"^{name}: expected .*{array.dtype}", weights, **{name: wrong})
            assert f"got {wrong.dtype}" in text

    def test_codes_need_their_scale_and_scales_their_codes(self):
        b, a, none = (make_weights(DIMS, mode) for mode in ("b", "a", "none"))
        refuses(TypeError, "^w_uq_qr: expected .*bfloat16, got int8", b, dequant_scale_w_uq_qr=None)
        refuses(TypeError, "^w_uq_qr: expected .*int8, got bfloat16", b, w_uq_qr=none.w_uq_qr)
        refuses(TypeError, "^w_dq: expected .*int8, got bfloat16", a, w_dq=none.w_dq)
        refuses(TypeError, "^w_dkv_kr: expected .*int8, got bfloat16", a, w_dkv_kr=none.w_dkv_kr)
        refuses(ValueError, "dequant_scale_w_dq.*dequant_scale_w_dkv_kr.*both or neither", a, dequant_scale_w_dq=None)
        refuses(
            ValueError, "dequant_scale_w_dq.*dequant_scale_w_dkv_kr.*both or neither", a, dequant_scale_w_dkv_kr=None
        )
        refuses(ValueError, "^smooth_scales_cq: expected None", none, smooth_scales_cq=np.ones((1, 50), np.float32))

    @pytest.mark.parametrize("name", SHAPES)
    def test_rank_and_layout(self, name):
        weights = make_weights(DIMS, "none")
        array = getattr(weights, name)
        refuses(ValueError, f"^{name}: expected shape .*got ", weights, **{name: array[None]})
        refuses(ValueError, f"^{name}: expected shape .*got ", weights, **{name: array.reshape(-1)[:1].reshape(())})
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), BF16)[..., ::2]
        refuses(ValueError, f"^{name}: expected .*contiguous.*strides", weights, **{name: wide})
        if array.ndim > 1:
            refuses(ValueError, f"^{name}: expected .*contiguous", weights, **{name: np.asfortranarray(array)})

    @pytest.mark.parametrize(
        ("name", "shape", "blamed"),
        [
            ("w_dq", (128, 50), "w_dkv_kr"),
            ("w_dq", (130, 51), "w_uq_qr"),
            ("w_uq_qr", (49, 201), "w_uq_qr"),
            ("w_uq_qr", (50, 200), "w_uq_qr"),
            ("w_uk", (4, 33, 68), "w_uq_qr"),
            ("w_uk", (3, 34, 68), "w_uq_qr"),
            ("w_uk", (3, 33, 101), "w_dkv_kr"),  # an odd rope dim is left
            ("w_uk", (3, 33, 102), "w_dkv_kr"),  # none is left
            ("w_dkv_kr", (128, 102), "w_dkv_kr"),
            ("w_dkv_kr", (130, 101), "w_dkv_kr"),
            ("w_dkv_kr", (130, 68), "w_dkv_kr"),
            ("w_dkv_kr", (130, 20), "w_dkv_kr"),
            ("gamma_cq", (49,), "gamma_cq"),
            ("gamma_ckv", (102,), "gamma_ckv"),
        ],
    )
    def test_shapes_that_do_not_fit_each_other(self, name, shape, blamed):
        text = refuses(
            ValueError, f"^{blamed}: expected .*, got ", make_weights(DIMS, "none"), **{name: np.zeros(shape, BF16)}
        )
        assert str(shape[-1]) in text or blamed != name

    @pytest.mark.parametrize("name", SCALES)
    def test_scales(self, name):
        weights = make_weights(DIMS, "ab smooth")
        n = SCALES[name]
        values = np.arange(n, dtype=np.float32)
        for given in (values, values[None], values[:, None], np.repeat(values, 2)[::2][None]):
            assert getattr(replace(weights, **{name: given}), name).tolist() == values.tolist()
        for shape in ((n + 1,), (n, 2), (1, 1, n), (), (1,)):
            refuses(ValueError, f"^{name}: expected shape .*got ", weights, **{name: np.zeros(shape, np.float32)})
        for dtype in ("f8", "f2", ">f4", "i4"):
            refuses(TypeError, f"^{name}: expected .*float32, got ", weights, **{name: np.zeros(n, dtype)})
        refuses(TypeError, f"^{name}: expected .*array, got list", weights, **{name: values.tolist()})

    def test_odd_hidden_size(self):
        for mode in ("none", "b"):
            with pytest.raises(ValueError, match=r"even hidden_size.*131"):
                make_weights(MlaDims(131, 3, 50, 68, 33, 34), mode)

    def test_latent_of_four_groups(self):
        for mode in ("b", "ab"):
            with pytest.raises(ValueError, match=r"^w_uk: expected .*4.*got 66"):
                make_weights(MlaDims(130, 3, 50, 66, 33, 34), mode)

    def test_a_k_too_long_for_int32(self):
        k = (2**31 - 1) // (127 * 128)
        for name, dims, mode in (("w_dq", (k, 1, 1), "a"), ("w_uq_qr", (2, 1, k), "b")):
            make_weights(MlaDims(*dims, 4, 1, 2), mode)
            dims = tuple(k + 1 if n == k else n for n in dims)
            with pytest.raises(ValueError, match=rf"^{name}: expected .*{k}.*got {k + 1}"):
                make_weights(MlaDims(*dims, 4, 1, 2), mode)
        make_weights(MlaDims(k + 2, 1, 1, 4, 1, 2), "none")

    @pytest.mark.parametrize("name", ["epsilon_cq", "epsilon_ckv"])
    def test_epsilon_is_a_number(self, name):
        for wrong in (None, "1e-5", np.ones(3)):
            refuses(TypeError, f"^{name}: expected ", make_weights(DIMS, "none"), **{name: wrong})

    def test_nbytes(self):
        weights = make_weights(DIMS, "b")
        assert weights.nbytes == 2 * 130 * 50 + 50 * 201 + 2 * 3 * 33 * 68 + 2 * 130 * 102 + 2 * (50 + 68) + 4 * 201


class TestRandom:
    def test_is_reproducible(self):
        a, b, c = (MlaWeights.random(DIMS, seed) for seed in (1, 1, 2))
        assert a.dims == DIMS
        assert a.quant == "b"
        for name in SHAPES:
            assert_same_bits(name, getattr(a, name), getattr(b, name))
            assert (getattr(a, name) != getattr(c, name)).any()

    @pytest.mark.parametrize("smooth", [False, True])
    @pytest.mark.parametrize("quant", QUANTS)
    def test_modes_quantise_the_same_weights(self, quant, smooth):
        if smooth and "b" not in quant:
            pytest.skip("smooth scales belong to int8 w_uq_qr")
        base = MlaWeights.random(DIMS, 5, "none")
        weights = MlaWeights.random(DIMS, 5, quant, smooth)
        assert weights.quant == quant
        assert (weights.smooth_scales_cq is not None) == smooth
        for name in SHAPES:
            array, wide = getattr(weights, name), getattr(base, name).astype(np.float32)
            if array.dtype != np.int8:
                assert_same_bits(name, array, getattr(base, name))
                continue
            if name == "w_uq_qr" and smooth:
                wide = wide / weights.smooth_scales_cq.reshape(-1, 1)
            scale = getattr(weights, f"dequant_scale_{name}")
            assert np.abs(array * scale - wide).max() <= scale.max() * 0.501
            assert (np.abs(array).max(axis=0) == 127).all()

    def test_products_keep_the_size_of_their_input(self):
        weights = MlaWeights.random(MlaDims(256, 4, 128, 64, 32, 16), 0, "none")
        for array in (weights.w_dq, weights.w_uq_qr, weights.w_uk, weights.w_dkv_kr):
            deviation = array.astype(np.float32).std() * array.shape[-2] ** 0.5
            assert 0.9 < deviation < 1.1

    def test_quant(self):
        with pytest.raises(ValueError, match=r"^quant: expected one of none, a, b, ab, got 'c'"):
            MlaWeights.random(DIMS, 0, "c")

    def test_smooth_without_int8_is_an_error(self):
        with pytest.raises(ValueError, match=r"^smooth"):
            MlaWeights.random(DIMS, 0, "none", smooth=True)


class TestQuantize:
    def weights(self):
        """H 2, one head, Rq 2, C 4, D 1, R 2."""
        return MlaWeights(
            w_dq=np.array([[127, 0], [-63.5, 0]], np.float32).astype(BF16),
            w_uq_qr=np.array([[2, -1, 0.5], [4, 1, 0.25]], np.float32).astype(BF16),
            w_uk=np.ones((1, 1, 4), BF16),
            w_dkv_kr=np.array([[1, 2, 3, 4, 5, 6], [-1, 1, 1, 1, 1, -12]], np.float32).astype(BF16),
            gamma_cq=np.ones(2, BF16),
            gamma_ckv=np.ones(4, BF16),
        )

    def test_columns_by_hand(self):
        weights = self.weights().quantize("ab")
        assert weights.quant == "ab"
        assert weights.w_dq.tolist() == [[127, 0], [-64, 0]]  # -63.5 rounds to even; a column of zeros has scale 1
        assert weights.dequant_scale_w_dq.tolist() == [1, 1]
        assert weights.w_uq_qr.tolist() == [[64, -127, 127], [127, 127, 64]]
        assert weights.dequant_scale_w_uq_qr.tolist() == [np.float32(v) / np.float32(127) for v in (4, 1, 0.5)]
        assert weights.w_dkv_kr.tolist() == [[127, 127, 127, 127, 127, 64], [-127, 64, 42, 32, 25, -127]]
        assert weights.w_dq.dtype == weights.w_uq_qr.dtype == weights.w_dkv_kr.dtype == np.int8

    def test_smooth_scales_divide_the_rows(self):
        smooth = np.array([[0.5, 4]], np.float32)
        weights = self.weights().quantize("b", smooth)
        assert weights.w_uq_qr.tolist() == [[127, -127, 127], [32, 16, 8]]  # of [[4, -2, 1], [1, 1/4, 1/16]]
        assert weights.dequant_scale_w_uq_qr.tolist() == [np.float32(v) / np.float32(127) for v in (4, 2, 1)]
        assert weights.smooth_scales_cq.reshape(-1).tolist() == [0.5, 4]

    def test_leaves_the_original_alone(self):
        base, twin = self.weights(), self.weights()
        base.quantize("ab", np.full((1, 2), 3, np.float32))
        assert base.quant == "none"
        for name in SHAPES:
            assert_same_bits(name, getattr(base, name), getattr(twin, name))

    def test_none_is_the_same_weights(self):
        base = self.weights()
        assert base.quantize("none").w_dq is base.w_dq

    @pytest.mark.parametrize("first", ["a", "b"])
    def test_what_is_int8_already_stays_as_it_is(self, first):
        smooth = np.array([[0.5, 4]], np.float32) if first == "b" else None
        half = self.weights().quantize(first, smooth)
        whole, want = half.quantize("ab"), self.weights().quantize("ab", smooth)
        for name in SHAPES:
            assert_same_bits(name, getattr(whole, name), getattr(want, name))
        assert whole.quant == "ab"
        assert (whole.smooth_scales_cq is None) == (smooth is None)
        assert whole.quantization == want.quantization

    def test_errors(self):
        base = self.weights()
        for before, after in (("b", "b"), ("b", "a"), ("a", "none"), ("ab", "ab"), ("ab", "b"), ("a", "b")):
            with pytest.raises(ValueError, match=rf"^quantize: expected bf16 weights, got mode '{before}'"):
                base.quantize(before).quantize(after)
        with pytest.raises(ValueError, match=r"^smooth_scales_cq: expected None where w_uq_qr is int8 already, got an"):
            base.quantize("b").quantize("ab", np.ones((1, 2), np.float32))
        with pytest.raises(ValueError, match=r"^quant: expected one of"):
            base.quantize("x")
        with pytest.raises(TypeError, match=r"^quant: expected str"):
            base.quantize(None)
        for bad in (0, np.nan, np.inf):
            with pytest.raises(ValueError, match=r"^smooth_scales_cq: expected finite values other than 0"):
                base.quantize("b", np.array([[1, bad]], np.float32))
        with pytest.raises(ValueError, match=r"^smooth_scales_cq: expected shape"):
            base.quantize("b", np.ones((1, 3), np.float32))
        with pytest.raises(ValueError, match=r"^smooth_scales_cq: expected None"):
            base.quantize("a", np.ones((1, 2), np.float32))


class TestQuantizationReport:
    def weights(self, **changes):
        """H 2, one head, Rq 2, C 4, D 1, R 2; scales of 1 or of powers of two, so that errors are exact."""
        w_uq_qr = np.array([[127, 254, 0], [0.25, -5, 0]], np.float32).astype(BF16)
        down = np.array([[127] * 6, [1] * 6], np.float32).astype(BF16)
        arrays = {
            "w_dq": np.array([[127, -127], [2.5, 0.5]], np.float32).astype(BF16),
            "w_uq_qr": w_uq_qr,
            "w_uk": np.ones((1, 1, 4), BF16),
            "w_dkv_kr": down,
            "gamma_cq": np.ones(2, BF16),
            "gamma_ckv": np.ones(4, BF16),
        }
        return MlaWeights(**(arrays | changes))

    def test_by_hand(self):
        report = self.weights().quantize("ab").quantization
        assert isinstance(report, QuantizationReport)
        assert list(report.errors) == ["w_dq", "w_dkv_kr", "w_uq_qr"]
        down, kv, up = report.errors.values()
        # Codes 2 of 2.5 and 0 of 0.5: errors of 1/2 each.
        assert down.max_abs == 0.5
        assert down.relative_rms == pytest.approx((0.5 / (2 * 127**2 + 2.5**2 + 0.5**2)) ** 0.5, rel=1e-12)
        assert down.saturated == 0.5
        assert (kv.max_abs, kv.relative_rms, kv.saturated) == (0, 0, 0.5)
        # Scales 1, 2, 1: code 0 of 0.25, and -2 (half to even) of -5 / 2; of six codes two are 127.
        assert up.max_abs == 1
        assert up.relative_rms == pytest.approx(((0.25**2 + 1) / (127**2 + 254**2 + 0.25**2 + 25)) ** 0.5, rel=1e-12)
        assert up.saturated == pytest.approx(2 / 6)

    def test_the_error_with_smooth_scales_is_in_units_of_the_weight(self):
        """Rows are divided by 2 and 1/4 for the codes, and multiplied again for the error."""
        smooth = np.array([[2, 0.25]], np.float32)
        w_uq_qr = np.array([[254, 508, 0], [0.25, -5, 0]], np.float32).astype(BF16)
        quantised = self.weights(w_uq_qr=w_uq_qr).quantize("b", smooth)
        assert quantised.w_uq_qr.tolist() == [[127, 127, 0], [1, -10, 0]]
        error = quantised.quantization.errors["w_uq_qr"]
        assert (error.max_abs, error.relative_rms, error.saturated) == (0, 0, pytest.approx(2 / 6))
        w_uq_qr[1, :2] = 0.375, -4.875
        quantised = self.weights(w_uq_qr=w_uq_qr).quantize("b", smooth)
        assert quantised.w_uq_qr.tolist() == [[127, 127, 0], [2, -10, 0]]  # of 1.5 and of -19.5 / 2
        error = quantised.quantization.errors["w_uq_qr"]
        assert error.max_abs == 0.125  # of 2 * 0.25 and of -10 * 2 * 0.25
        assert error.relative_rms == pytest.approx((2 * 0.125**2 / (254**2 + 508**2 + 0.375**2 + 4.875**2)) ** 0.5)

    @pytest.mark.parametrize("smooth", [False, True])
    @pytest.mark.parametrize("quant", ["a", "b", "ab"])
    def test_is_what_the_codes_and_scales_give(self, quant, smooth):
        """More columns than a block of them."""
        dims = MlaDims(64, 3, 300, 260, 120, 62)
        base = MlaWeights.random(dims, 3, "none")
        scales = np.random.default_rng(0).uniform(0.5, 2, (1, 300)).astype(np.float32) if smooth else None
        if smooth and "b" not in quant:
            pytest.skip("smooth scales belong to int8 w_uq_qr")
        weights = base.quantize(quant, scales)
        names = {name for name in SHAPES if getattr(weights, name).dtype == np.int8}
        assert set(weights.quantization.errors) == names
        for name, error in weights.quantization.errors.items():
            codes, original = getattr(weights, name), getattr(base, name).astype(np.float32)
            restored = codes * getattr(weights, f"dequant_scale_{name}")
            if smooth and name == "w_uq_qr":
                restored *= scales.reshape(-1, 1)
            difference = (restored - original).astype(np.float64)
            assert error.max_abs == np.abs(difference).max()
            rms = (np.square(difference).sum() / np.square(original.astype(np.float64)).sum()) ** 0.5
            assert error.relative_rms == pytest.approx(rms, rel=1e-12)
            assert 0.001 < error.relative_rms < 0.02
            assert error.saturated == (np.abs(codes) == 127).mean()

    def test_of_weights_that_were_not_quantised(self):
        base = self.weights()
        assert base.quantization is None
        assert make_weights(DIMS, "ab").quantization is None
        report = base.quantize("none").quantization
        assert report.errors == {}
        assert str(report) == "no weight is quantised"

    def test_changed_weights_have_no_report(self):
        weights = self.weights().quantize("b")
        assert replace(weights, epsilon_cq=1e-6).quantization is None
        assert MlaWeights.random(DIMS, 0, "b").quantization.errors["w_uq_qr"].relative_rms < 0.02

    def test_weights_of_zeros(self):
        zeros = self.weights(w_uq_qr=np.zeros((2, 3), BF16)).quantize("b")
        error = zeros.quantization.errors["w_uq_qr"]
        assert (error.max_abs, error.relative_rms, error.saturated) == (0, 0, 0)
        assert zeros.dequant_scale_w_uq_qr.tolist() == [1, 1, 1]

    def test_prints_a_row_a_weight(self):
        lines = str(self.weights().quantize("ab").quantization).splitlines()
        assert [line.split()[0] for line in lines] == ["weight", "w_dq", "w_dkv_kr", "w_uq_qr"]
        assert lines[1].split() == ["w_dq", "5.000e-01", "3.937e-03", "50.00%"]
        assert len({len(line) for line in lines}) == 1

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_not_finite(self, bad):
        for name, quant in (("w_dq", "a"), ("w_dkv_kr", "ab"), ("w_uq_qr", "b")):
            weights = self.weights()
            getattr(weights, name)[1, 1] = bad
            with pytest.raises(ValueError, match=f"^{name}: expected finite weights, got NaN or Inf in column 1"):
                weights.quantize(quant)

    def test_smooth_scales_so_small_that_a_quotient_overflows(self):
        with pytest.raises(ValueError, match=r"^w_uq_qr: expected finite weights, got NaN or Inf in column 0"):
            self.weights().quantize("b", np.array([[1e-38, 1]], np.float32))


class TestPack:
    @pytest.mark.parametrize("quant", QUANTS)
    def test_takes_about_the_bytes_of_the_arrays(self, quant):
        dims = MlaDims(512, 4, 256, 128, 128, 128)
        assert all(n % ISA.nr == 0 for n in vars_of(dims)[2:])
        weights = MlaWeights.random(dims, 0, quant)
        packed = weights.pack()
        assert isinstance(packed, PackedWeights)
        assert (packed.dims, packed.quant) == (dims, quant)
        assert abs(packed.nbytes / weights.nbytes - 1) < 0.03

    @pytest.mark.fullsize
    @pytest.mark.parametrize("quant", ["none", "b"])
    def test_takes_about_the_bytes_of_the_arrays_at_full_size(self, quant):
        weights = fullsize(quant).weights
        assert abs(weights.pack().nbytes / weights.nbytes - 1) < 0.03

    def test_is_a_copy(self):
        weights = make_weights(DIMS, "b")
        packed, twin = weights.pack(), make_weights(DIMS, "b").pack()
        for name in SHAPES:
            getattr(weights, name)[...] = 1
        assert_same_bits("up", packed.up.panels, twin.up.panels)
        assert_same_bits("gamma_cq", packed.gamma_cq, twin.gamma_cq)


class TestDims:
    def test_deepseek(self):
        dims = MlaDims.deepseek_v32()
        assert vars_of(dims) == tuple(FIELDS.values())
        assert dims.q_head_dim == 192
        assert dims.kv_a_dim == 576

    def test_from_a_mapping_or_an_object(self):
        config = FIELDS | {"vocab_size": 3, "rope_scaling": None}
        assert MlaDims.from_hf(config) == MlaDims.from_hf(SimpleNamespace(**config)) == MlaDims.deepseek_v32()

    @pytest.mark.parametrize("name", FIELDS)
    def test_missing_and_null(self, name):
        for config in ({k: v for k, v in FIELDS.items() if k != name}, FIELDS | {name: None}):
            for given in (config, SimpleNamespace(**config)):
                with pytest.raises(ValueError, match=rf"\b{name}\b"):
                    MlaDims.from_hf(given)

    @pytest.mark.parametrize("name", FIELDS)
    def test_fields(self, name):
        for wrong in (1.0, "8", True, np.ones(1)):
            with pytest.raises(TypeError, match=f"^{name}: expected int, got {type(wrong).__name__}"):
                MlaDims(**(FIELDS | {name: wrong}))
        for wrong in (0, -2):
            with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got {wrong}"):
                MlaDims(**(FIELDS | {name: wrong}))

    def test_odd_rope(self):
        with pytest.raises(ValueError, match=r"^qk_rope_head_dim: expected an even number, got 63"):
            MlaDims(**(FIELDS | {"qk_rope_head_dim": 63}))

    def test_is_a_value(self):
        assert MlaDims.deepseek_v32() == MlaDims(**FIELDS)
        assert len({MlaDims.deepseek_v32(), MlaDims(**FIELDS)}) == 1
        with pytest.raises(AttributeError):
            MlaDims(**FIELDS).hidden_size = 3
