"""`pre_compute_2d` against the reference, with FRACTAL_NZ weights, and what it refuses."""

import inspect

import numpy as np
import pytest
from helpers import BF16, MODES, assert_same_bits, make_weights, spread
from helpers.entry_points import T, words

import mla_numba as mla
from mla_numba import MlaDims, MlaQuantInputs, MlaTileConfig, reference
from mla_numba.layouts import to_fractal_nz


class TestPreCompute2d:
    def arguments(self, mode, t=T, hidden=130, columns=201):
        weights = make_weights(MlaDims(hidden, 1, 50, 68, columns - 34, 34), mode)
        x = spread(np.random.default_rng(5), t, hidden)
        scales = ("dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr", "smooth_scales_cq")
        given = {name: getattr(weights, name) for name in scales}
        return [x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq, 1e-3], given

    def test_order_of_arguments(self):
        names = words("token_x w_dq w_uq_qr w_dkv_kr gamma_cq epsilon_cq quant_inputs tile_config")
        *positional, numerics = inspect.signature(mla.pre_compute_2d).parameters.values()
        assert [p.name for p in positional] == names
        assert (numerics.name, numerics.kind) == ("numerics", inspect.Parameter.KEYWORD_ONLY)

    @pytest.mark.parametrize("t", [0, 1, 13, 37])
    @pytest.mark.parametrize("mode", MODES)
    def test_equals_the_reference(self, mode, t):
        arguments, scales = self.arguments(mode, t)
        want = reference.pre_compute_2d(*arguments, **scales)
        for config in (None, MlaTileConfig(), MlaTileConfig(unroll_list=[5])):
            got = mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales), config)
            assert len(got) == (4 if "b" in mode else 3)
            for name, g, w in zip(("q_b_proj", "compressed_kv", "q_norm", "q_norm_scale"), got, want, strict=False):
                assert_same_bits(name, g, w)

    @pytest.mark.parametrize("mode", MODES)
    def test_fractal_weights(self, mode):
        """Scales tell the columns; where a weight has none its padding gives columns of zeros."""
        arguments, scales = self.arguments(mode)
        want = mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales))
        x, *weights, gamma, epsilon = arguments
        got = mla.pre_compute_2d(x, *map(to_fractal_nz, weights), gamma, epsilon, MlaQuantInputs(**scales))
        assert len(got) == len(want)
        widths = [201 if "b" in mode else 208, 102 if "a" in mode else 112, 50, 1]
        for name, g, w, width in zip(("q_b_proj", "compressed_kv", "q_norm", "scale"), got, want, widths, strict=False):
            assert g.shape == (T, width)
            n = w.shape[1]
            assert_same_bits(name, g[:, :n].copy(), w)
            assert not g[:, n:].astype(np.float32).any()

    def test_wrong_fractals(self):
        arguments, scales = self.arguments("ab")
        for i, name in ((1, "w_dq"), (2, "w_uq_qr"), (3, "w_dkv_kr")):
            fractals = to_fractal_nz(arguments[i])
            k, n = arguments[i].shape
            given = [*arguments[:i], fractals[1:], *arguments[i + 1 :], MlaQuantInputs(**scales)]
            with pytest.raises(ValueError, match=rf"^{name}: expected shape .* of a \({k}, {n}\) weight, got"):
                mla.pre_compute_2d(*given)
            given[i] = fractals.astype(np.float32)
            with pytest.raises(TypeError, match=f"^{name}: expected dtype"):
                mla.pre_compute_2d(*given)

    def test_a_lone_scale_of_the_down_projections_switches_nothing(self):
        arguments, _ = self.arguments("none")
        want = mla.pre_compute_2d(*arguments, MlaQuantInputs(), None)
        for name, n in (("dequant_scale_w_dq", 50), ("dequant_scale_w_dkv_kr", 102)):
            got = mla.pre_compute_2d(*arguments, MlaQuantInputs(**{name: np.ones(n, np.float32)}), MlaTileConfig())
            for g, w in zip(got, want, strict=True):
                assert_same_bits(name, g, w)

    def test_work_that_is_shared_among_threads(self):
        arguments, scales = self.arguments("b", 64, 514, 901)
        want = reference.pre_compute_2d(*arguments, **scales)
        for g, w in zip(mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales)), want, strict=True):
            assert_same_bits("array", g, w)

    def test_errors_name_the_argument(self):
        arguments, scales = self.arguments("b")
        names = ("token_x", "w_dq", "w_uq_qr", "w_dkv_kr", "gamma_cq")
        for i, name in enumerate(names):
            for wrong in (None, np.zeros(arguments[i].shape, np.float32)):
                with pytest.raises(TypeError, match=f"^{name}: expected "):
                    mla.pre_compute_2d(*arguments[:i], wrong, *arguments[i + 1 :], MlaQuantInputs(**scales))
            with pytest.raises(ValueError, match=f"^{name}: expected shape"):
                mla.pre_compute_2d(*arguments[:i], arguments[i][None], *arguments[i + 1 :], MlaQuantInputs(**scales))
        with pytest.raises(TypeError, match=r"^quant_inputs: expected MlaQuantInputs, got dict"):
            mla.pre_compute_2d(*arguments, {})
        with pytest.raises(TypeError, match=r"^tile_config: expected MlaTileConfig"):
            mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales), {})

    def test_scales_of_another_length(self):
        arguments, scales = self.arguments("ab smooth")
        for name in scales:
            for wrong, error in (
                (scales[name].reshape(-1)[1:], ValueError),
                (scales[name].astype(np.float64), TypeError),
            ):
                with pytest.raises(error, match=f"^quant_inputs.{name}: expected "):
                    mla.pre_compute_2d(*arguments, MlaQuantInputs(**(scales | {name: wrong})))

    def test_scales_that_no_mode_reads(self):
        arguments, scales = self.arguments("b")
        for name in ("dequant_scale_x", "quant_scale_ckv", "quant_scale_ckr"):
            with pytest.raises(ValueError, match=f"^quant_inputs.{name}: expected None"):
                mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales, **{name: np.ones(1, np.float32)}))

    def test_odd_hidden_size(self):
        arguments, scales = self.arguments("a", hidden=131)
        want = reference.pre_compute_2d(*arguments, **scales)
        for g, w in zip(mla.pre_compute_2d(*arguments, MlaQuantInputs(**scales)), want[:3], strict=True):
            assert_same_bits("array", g, w)
        x, _, *others = arguments
        w_dq, w_dkv_kr = np.zeros((131, 50), BF16), np.zeros((131, 102), BF16)
        with pytest.raises(ValueError, match=r"even hidden_size.*131"):
            mla.pre_compute_2d(x, w_dq, others[0], w_dkv_kr, *others[2:], MlaQuantInputs())

    def test_a_k_too_long_for_int32(self):
        """132104 products of 127 and 128 are below 2**31, and 132105 are not."""
        k = 132105
        up, gamma = np.zeros((3, 3), BF16), np.ones(3, BF16)
        ones = np.ones(3, np.float32)
        scales = MlaQuantInputs(dequant_scale_w_dq=ones, dequant_scale_w_dkv_kr=ones)
        down = np.full((k, 3), 127, np.int8)
        mla.pre_compute_2d(np.ones((1, k - 1), BF16), down[1:], up, down[1:], gamma, 1e-5, scales)
        with pytest.raises(ValueError, match=r"^w_dq: expected .*132104.*got 132105"):
            mla.pre_compute_2d(np.ones((1, k), BF16), down, up, down, gamma, 1e-5, scales)
        w_dq, up = np.ones((2, k), BF16), np.full((k, 3), 127, np.int8)
        w_dkv_kr = np.ones((2, 3), BF16)
        with pytest.raises(ValueError, match=r"^w_uq_qr: expected .*132104.*got 132105"):
            mla.pre_compute_2d(
                np.ones((1, 2), BF16), w_dq, up, w_dkv_kr, np.ones(k, BF16), 1e-5, MlaQuantInputs(None, None, ones)
            )
