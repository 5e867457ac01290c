"""The reference operator's single operations, on values worked out by hand."""

import inspect

import numpy as np
import pytest
from helpers import BF16, spread
from helpers.entry_points import ROPE_TILES

import mla_numba as mla


class TestOperations:
    """Each with the reference's positions, on values worked out by hand."""

    rng = np.random.default_rng(8)

    def test_scalar_div(self):
        x = np.array([1, 2, 4], np.float32)
        assert mla.scalar_div(x, 4.0).tolist() == [0.25, 0.5, 1]
        assert mla.scalar_div(x, 4.0, True).tolist() == [4, 2, 1]
        assert mla.scalar_div(x.astype(BF16), 3.0).dtype == BF16

    def test_rms_norm(self):
        x = np.full((2, 3, 64), 2, BF16)
        x[1] = 0
        got = mla.rms_norm(x, np.arange(64).astype(BF16), 0.0)
        assert got.dtype == BF16
        assert got[0, 2].astype(int).tolist() == list(range(64))
        assert mla.rms_norm(np.full((1, 4), 3, np.float32), np.ones(4, np.float32), 7.0)[0, 0] == 0.75

    def test_symmetric_quant(self):
        x = np.array([[127, -127, 0.5, 1.5, 2.5, -0.5], [0] * 6], np.float32).astype(BF16)
        codes, scale = mla.quant(x)
        assert codes.dtype == np.int8
        assert codes.tolist() == [[127, -127, 0, 2, 2, 0], [0] * 6]
        assert scale.dtype == np.float32
        assert scale.tolist() == [[1.0], [0.0]]

    def test_smooth_quant(self):
        codes, scale = mla.quant(np.ones((1, 4), BF16), True, True, np.array([[1, 2, 127, -64]], np.float32))
        assert codes.tolist() == [[1, 2, 127, -64]]
        assert scale.tolist() == [[1.0]]
        with pytest.raises(TypeError, match=r"^smooth_factor: expected an array"):
            mla.quant(np.ones((1, 4), BF16), True, True)

    def test_asymmetric_quant(self):
        codes, scale, zero_point = mla.quant(np.array([[0, 255, 100]], np.float32), False)
        assert (codes.tolist(), scale.tolist(), zero_point.tolist()) == ([[-128, 127, -28]], [[1.0]], [[-128.0]])
        x = self.rng.uniform(-3, 5, (20, 333)).astype(np.float32)
        codes, scale, zero_point = mla.quant(x, False)
        assert codes.dtype == np.int8
        back = mla.dequant_asymmetric(codes, scale, zero_point)
        assert (np.abs(back - x) <= scale * 0.5001 + 1e-6).all()
        codes, scale, _ = mla.quant(np.zeros((2, 8), np.float32), False)
        assert (scale == np.float32(1e-12)).all()
        assert (codes == -128).all()

    def test_dequant(self):
        sums = np.array([[3, 2**24 + 1]], np.int32)
        scale, w_scale = np.array([[0.5]], np.float32), np.array([[4, 2]], np.float32)
        got = mla.dequant(np.float32, sums, scale, w_scale)
        assert got.tolist() == [[6.0, 2.0**24]]
        assert mla.dequant(BF16, sums, scale, w_scale).dtype == BF16

    def test_k_nope_quant(self):
        x = spread(self.rng, 5, 4, 17)
        x[2, 1] = 0
        codes, scale = mla.k_nope_quant(x)
        assert (codes.shape, scale.shape) == ((5, 4, 17), (5, 4, 1))
        assert (np.abs(codes).max(axis=-1) == np.where(scale[..., 0] == 0, 0, 127)).all()
        assert scale[2, 1, 0] == 0

    def test_rotate_half(self):
        assert mla.rotate_half(np.array([[1, 2, 3, 4]], np.float32)).tolist() == [[-3, -4, 1, 2]]
        with pytest.raises(ValueError, match="even"):
            mla.rotate_half(np.zeros((2, 3), np.float32))

    def test_rope(self):
        x = np.arange(1, 9).astype(BF16).reshape(1, 8)  # interleaved pairs (1, 2), (3, 4), ...
        one, zero = np.ones((1, 8), BF16), np.zeros((1, 8), BF16)
        assert mla.rope_v2(x, one, zero, ROPE_TILES).astype(int).tolist() == [[1, 3, 5, 7, 2, 4, 6, 8]]
        assert mla.rope_v2(x, zero, one, ROPE_TILES).astype(int).tolist() == [[-2, -4, -6, -8, 1, 3, 5, 7]]
        heads = np.repeat(x[:, None], 3, axis=1)
        assert mla.rope_3d_v2(heads, zero, one).astype(int).tolist() == [[[-2, -4, -6, -8, 1, 3, 5, 7]] * 3]

    @pytest.mark.parametrize(
        ("name", "parameters"),
        {
            "scalar_div": "tensor other is_reserve",
            "k_nope_quant": "x",
            "rms_norm": "input_tensor gamma epsilon",
            "quant": "input_tensor is_symmetry has_smooth_factor smooth_factor",
            "dequant": "dtype input_tensor scale w_scale",
            "rotate_half": "input_tensor",
            "rope_v2": "x cos sin tile_config",
            "rope_3d_v2": "x cos sin",
        }.items(),
    )
    def test_order_of_arguments(self, name, parameters):
        assert list(inspect.signature(getattr(mla, name)).parameters) == parameters.split()
