"""Norm, quantisation and rotary embedding of the reference against numbers worked out by hand."""

from fractions import Fraction
from math import isqrt

import ml_dtypes
import numpy as np
import pytest

from mla_numba import reference

BF16 = ml_dtypes.bfloat16


def fp32(*values):
    return np.array([values], np.float32)


def bf16(*values):
    return np.array([values], np.float32).astype(BF16)


def from_hex(*values):
    return [float.fromhex(v) for v in values]


def round_fp32(value):
    """Nearest fp32 of an exact positive rational in the normal range, half to even."""
    exponent = 0
    while value >= 2 ** (exponent + 1):
        exponent += 1
    while value < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    return round(value / unit) * unit


def sqrt_fraction(value):
    """Root of a rational to 80 binary places: near enough to round, the exact root being no tie."""
    return Fraction(isqrt(int(value * 2**160)), 2**80)


# -- rms_norm


def test_rms_norm_of_a_row_in_bf16():
    # (9 + 16) / 2 = 12.5; 3 / sqrt(12.5) = 0.84853 is 217.2 / 256, 2 * 4 / sqrt(12.5) = 2.26274 is 144.8 / 64.
    result = reference.rms_norm(bf16(3.0, 4.0), bf16(1.0, 2.0)[0], 0.0)
    assert result.dtype == BF16
    assert result.astype(np.float32).tolist() == [[217 / 256, 145 / 64]]


@pytest.mark.parametrize(
    ("row", "gamma", "epsilon", "expected"),
    [
        ((1.0,), (3.0,), 3.0, [1.5]),  # 3 * (1 / sqrt(1 + 3))
        ((2.0, -2.0, 2.0, 2.0), (1.0, 1.0, -1.0, 0.0), 12.0, [0.5, -0.5, -0.5, 0.0]),  # the mean, 4, not the sum, 16
        ((3.0,), (1.0,), 0.0, [1.0]),  # 3 * fp32(1/3) ties to 1
        ((0.0, 0.0), (5.0, 7.0), 1e-5, [0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32])
def test_rms_norm_keeps_the_dtype(row, gamma, epsilon, expected, dtype):
    result = reference.rms_norm(np.array(row, dtype), np.array(gamma, dtype), epsilon)
    assert result.dtype == dtype
    assert result.astype(np.float32).tolist() == expected


def test_rms_norm_multiplies_by_the_reciprocal_and_by_gamma_last():
    # The mean is 7.5, r = fp32(1 / fp32(sqrt(7.5))) = 0x1.75e974p-2.
    result = reference.rms_norm(fp32(1.0, 2.0, 3.0, 4.0), fp32(1.0, 1.0, 1.0, 1.0)[0], 0.0)
    # Division by the root would end 3 * r in 6 instead of 8.
    assert result[0].tolist() == from_hex("0x1.75e974p-2", "0x1.75e974p-1", "0x1.186f18p+0", "0x1.75e974p+0")
    result = reference.rms_norm(fp32(1.0, 2.0, 3.0, 4.0), fp32(3.0, 3.0, 3.0, 3.0)[0], 0.0)
    # (3 * 3) * r would end in 2.
    assert result[0, 2] == float.fromhex("0x1.a4a6a4p+1")


def test_rms_norm_adds_sixteen_lanes_as_a_tree():
    # Scaled squares: 2**24 and fifteen ones. One by one, each 1 is lost to a tie and the sum is 2**24. In the tree lane
    # 0 first meets a lone 1 (lost), then 2, 4 and 8: 2**24 + 14. Its root is 4096 * (1 + 3.49 * 2**-23), or 3.
    row = np.array([2.0**14] + [4.0] * 15, np.float32)
    result = reference.rms_norm(row, np.ones(16, np.float32), 0.0)
    assert result[0] == 4.0 - 6.0 * 2.0**-22
    assert result[1:].tolist() == [2.0**-10 - 6.0 * 2.0**-34] * 15


@pytest.mark.parametrize("position", range(16))
def test_rms_norm_every_lane_takes_part(position):
    row = np.full(16, 4.0, np.float32)
    row[position] = 2.0**14
    assert reference.rms_norm(row, np.ones(16, np.float32), 0.0)[position] == 4.0 - 6.0 * 2.0**-22


def test_rms_norm_tree_adds_lane_i_and_lane_i_plus_half():
    # Scaled squares: 2**24, and 1 in lanes 1, 9, 3, 11. They pair up to 2 and 2, then 4: 2**24 + 4, whose root is one
    # place above 4096. Neighbours added first would lose the one in lane 1 and end in 2**24 + 2, whose root is 4096.
    row = np.zeros(16, np.float32)
    row[0] = 2.0**14
    row[[1, 9, 3, 11]] = 4.0
    assert reference.rms_norm(row, np.ones(16, np.float32), 0.0)[0] == 4.0 - 2.0 * 2.0**-22


def test_rms_norm_scales_each_square_by_the_rounded_reciprocal_of_n():
    # 25 * fp32(1/3) = 0x1.0aaaacp+3, where fp32(25/3) ends in a; 5 over its root ends in ae, not b0.
    result = reference.rms_norm(fp32(5.0, 0.0, 0.0), np.ones(3, np.float32), 0.0)
    assert result[0].tolist() == from_hex("0x1.bb67aep+0", "0x0p+0", "0x0p+0")
    # 16/3 + 25/3, scaled apart; 41/3 in one, or as 41 * fp32(1/3), would end in 30.
    result = reference.rms_norm(fp32(4.0, 5.0, 0.0), np.ones(3, np.float32), 0.0)
    assert result[0, 0] == float.fromhex("0x1.14fe2ep+0")


def test_rms_norm_lanes_are_index_modulo_sixteen():
    # n = 32, scaled squares: 2**23 at 0 (spacing 1), a half at 1 and at 17. In one lane they make 1, which 2**23 takes;
    # each alone is lost to a tie.
    row = np.zeros(32, np.float32)
    row[0], row[1], row[17] = 2.0**14, 4.0, 4.0
    kept, lost = (round_fp32(1 / round_fp32(sqrt_fraction(Fraction(2**23 + one)))) for one in (1, 0))
    assert kept < lost
    assert reference.rms_norm(row, np.ones(32, np.float32), 0.0)[0] == float(2**14 * kept)


def test_rms_norm_lanes_ascend():
    # n = 64, scaled squares: lane 0 has 2**24, 1, 0, 1 and loses both ones to ties (their own sum, 2, it would take);
    # lane 1 makes 2. The root of 2**24 + 2 lies just under the tie over 4096, that of 2**24 + 4 rounds to the next.
    row = np.zeros(64, np.float32)
    row[0] = 2.0**15
    row[[16, 48, 1, 17]] = 8.0
    assert reference.rms_norm(row, np.ones(64, np.float32), 0.0)[0] == 8.0


def test_rms_norm_pads_the_last_step_with_zeros():
    # 17 equal elements of 1: fp32(1/17) summed in lanes; lane 0 holds two of them.
    x = round_fp32(Fraction(1, 17))
    lanes = [round_fp32(2 * x)] + [x] * 15
    for half in (8, 4, 2, 1):
        lanes = [round_fp32(lanes[i] + lanes[i + half]) for i in range(half)]
    r = round_fp32(1 / round_fp32(sqrt_fraction(lanes[0])))
    assert (
        reference.rms_norm(np.ones((2, 3, 17), np.float32), np.ones(17, np.float32), 0.0).tolist()
        == [[[float(r)] * 17] * 3] * 2
    )


def test_rms_norm_rejects_a_gamma_of_another_length():
    with pytest.raises(ValueError, match=r"gamma: expected shape \(2,\), got \(1,\)"):
        reference.rms_norm(bf16(1.0, 2.0), bf16(1.0)[0], 1e-5)


# -- quant


def test_quant_rounds_half_to_even():
    codes, scale = reference.quant(bf16(0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5, 126.5, 127.0))
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32
    assert codes.tolist() == [[0, 2, 2, 4, 0, -2, -2, -4, 126, 127]]
    assert scale.tolist() == [[1.0]]


def test_quant_reaches_minus_127_and_never_minus_128():
    codes, scale = reference.quant(bf16(-254.0, 254.0, 2.0, -1.0))
    assert codes.tolist() == [[-127, 127, 1, 0]]  # -1 * 0.5 ties to 0
    assert scale.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("amax", "expected", "amax_over_127"),
    [(11.0, "0x1.62c58ap-4", "0x1.62c58cp-4"), (13.0, "0x1.a3468cp-4", "0x1.a3468ep-4")],
)
def test_quant_scale_is_the_reciprocal_of_127_over_amax(amax, expected, amax_over_127):
    codes, scale = reference.quant(bf16(amax, 0.0))
    assert codes.tolist() == [[127, 0]]
    assert scale[0, 0] == float.fromhex(expected)
    assert round_fp32(Fraction(int(amax), 127)) == Fraction(float.fromhex(amax_over_127))


def test_quant_multiplies_the_smooth_factor_in_before_amax():
    # [1, 2] * [4, 1] = [4, 2]; s = 31.75; 2 * 31.75 = 63.5 ties to 64; 1 / 31.75 = 0x1.020408p-5.
    for shape in ((2,), (1, 2), (2, 1)):
        smooth = np.array([4.0, 1.0], np.float32).reshape(shape)
        codes, scale = reference.quant(bf16(1.0, 2.0), True, True, smooth)
        assert codes.tolist() == [[127, 64]]
        assert scale[0].tolist() == from_hex("0x1.020408p-5")


def test_quant_reads_the_smooth_factor_only_when_asked():
    assert reference.quant(bf16(127.0, 1.0), True, False, fp32(0.0, 9.0))[0].tolist() == [[127, 1]]
    with pytest.raises(TypeError, match="smooth_factor: expected an array"):
        reference.quant(bf16(1.0, 2.0), True, True)
    with pytest.raises(ValueError, match=r"smooth_factor: expected shape \(2,\), \(1, 2\) or \(2, 1\), got \(1, 1\)"):
        reference.quant(bf16(1.0, 2.0), True, True, fp32(1.0))


def test_quant_of_zeros_and_of_the_nearly_zero_is_zero():
    # 127 / 1e-37 = 1.27e39 overflows fp32; 127 / 1e-36 does not.
    rows = np.array([[0.0, -0.0], [1e-37, -1e-37], [2.0**-149, 0.0], [1e-36, 0.0]], np.float32)
    codes, scale = reference.quant(rows)
    assert codes.tolist() == [[0, 0], [0, 0], [0, 0], [127, 0]]
    assert scale[:3].tolist() == [[0.0], [0.0], [0.0]]
    assert not np.signbit(scale).any()
    assert scale[3, 0] == pytest.approx(1e-36 / 127, rel=1e-6)


def test_quant_of_nan_and_inf_stays_in_its_row_and_is_silent():
    rows = np.array([[np.nan, 1.0], [2.0, 4.0], [np.inf, 1.0], [-np.inf, np.inf], [127.0, 3.0]], np.float32)
    for symmetric in (True, False):
        codes = reference.quant(rows, symmetric)[0]
        alone = [reference.quant(rows[[i]], symmetric)[0][0].tolist() for i in range(5)]
        assert codes.tolist() == alone
    codes, scale = reference.quant(rows)
    assert codes.tolist() == [[0, 0], [64, 127], [0, 0], [0, 0], [127, 3]]  # 2 * 31.75 = 63.5 ties to 64
    assert np.isnan(scale[0, 0])
    assert scale[4, 0] == 1.0


@pytest.mark.parametrize(("amax", "scale"), [(11.0, "0x1.62c58cp-4"), (13.0, "0x1.a3468ep-4"), (127.0, "0x1p0")])
def test_quant_cann_has_the_scale_amax_over_127(amax, scale):
    codes, got = reference.quant_cann(fp32(amax, 0.0, -amax))
    assert (codes.dtype, got.dtype) == (np.int8, np.float32)
    assert codes.tolist() == [[127, 0, -127]]
    assert got.tolist() == [[float.fromhex(scale)]]


def test_quant_cann_multiplies_by_the_rounded_quotient():
    # 127 / 254 = 0.5, so 3 and 5 tie to 2 (1.5) and 2 (2.5); smooth 2 makes 6 and 10 of them, and 3 and 5.
    assert reference.quant_cann(fp32(254.0, 3.0, 5.0))[0].tolist() == [[127, 2, 2]]
    codes, scale = reference.quant_cann(fp32(254.0, 3.0, 5.0), fp32(1.0, 2.0, 2.0)[0])
    assert codes.tolist() == [[127, 3, 5]]
    assert scale.tolist() == [[2.0]]
    with pytest.raises(ValueError, match=r"smooth_factor: expected shape \(2,\)"):
        reference.quant_cann(fp32(1.0, 2.0), fp32(1.0))


def test_quant_cann_of_zeros_nan_and_inf():
    # 127 / 1e-37 overflows fp32, though 1e-37 / 127 is no zero: code and scale are 0 all the same.
    rows = np.array([[0.0, -0.0], [1e-37, -1e-37], [1e-36, 0.0], [np.nan, 1.0], [-np.inf, 1.0]], np.float32)
    codes, scale = reference.quant_cann(rows)
    assert codes.tolist() == [[0, 0], [0, 0], [127, 0], [0, 0], [0, 0]]
    assert scale[:2].tolist() == [[0.0], [0.0]]
    assert not np.signbit(scale[:2]).any()
    assert scale[2, 0] == np.float32(1e-36) / np.float32(127)
    assert np.isnan(scale[3, 0])
    assert scale[4, 0] == np.inf


def test_k_nope_quant_has_one_scale_a_group():
    x = bf16(1.0, 127.0, -254.0, 3.0, 0.0, 0.0, 63.5, -31.75).reshape(1, 4, 2)
    codes, scale = reference.k_nope_quant(x)
    # Group 1: 3 * 0.5 = 1.5 ties to 2. Group 3: s = 2 on 63.5 and -31.75 = -31.75, exact in bf16: -63.5 ties to -64.
    assert codes.tolist() == [[[1, 127], [-127, 2], [0, 0], [127, -64]]]
    assert scale.tolist() == [[[1.0], [2.0], [0.0], [0.5]]]


def test_quant_of_no_rows():
    codes, scale = reference.quant(np.empty((0, 4), BF16))
    assert codes.shape == (0, 4)
    assert scale.shape == (0, 1)


@pytest.mark.parametrize(
    ("row", "codes", "scale", "zero_point"),
    [
        ((-1.0, 0.0, 254.0), [-128, -127, 127], 1.0, -127.0),
        ((0.0, 1.0), [-128, 127], 1 / 255, -128.0),
        ((1000.0, 1255.0), [-128, 127], 1.0, -1128.0),
        ((-510.0, 0.0), [-128, 127], 2.0, 127.0),
        ((1.0, 2.5, 256.0), [-128, -127, 127], 1.0, -129.0),  # 2.5 ties to 2 before the odd zero point is added
        ((-0.5, 254.5), [-128, 126], 1.0, -128.0),  # -127.5 ties to -128, 254.5 to 254
        ((0.5, 255.5), [-128, 127], 1.0, -128.0),  # 255.5 ties to 256 and saturates, half a step away
    ],
)
def test_asymmetric_quant(row, codes, scale, zero_point):
    result = reference.quant(fp32(*row), False)
    assert result[0].tolist() == [codes]
    assert result[1].tolist() == [[np.float32(scale)]]
    assert result[2].tolist() == [[zero_point]]
    assert [r.dtype for r in result] == [np.int8, np.float32, np.float32]
    back = reference.dequant_asymmetric(*result)
    assert np.abs(back - fp32(*row)).max() <= np.float32(scale) / 2


def test_asymmetric_quant_of_a_constant_row_has_the_least_scale():
    codes, scale, zero_point = reference.quant(fp32(5.0, 5.0), False)
    assert scale.tolist() == [[np.float32(1e-12)]]
    back = reference.dequant_asymmetric(codes, scale, zero_point)
    assert back[0].tolist() == pytest.approx([5.0, 5.0], rel=2**-22)
    codes, scale, zero_point = reference.quant(fp32(0.0, 0.0), False)
    assert (codes.tolist(), zero_point.tolist()) == ([[-128, -128]], [[-128.0]])
    assert reference.dequant_asymmetric(codes, scale, zero_point).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("offset", [0.0, 1.0, -300.0, 1e4])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e5])
def test_asymmetric_quant_inverts_within_half_a_step(offset, spread):
    x = (np.random.default_rng(1).standard_normal((50, 40)) * spread + offset).astype(np.float32)
    codes, scale, zero_point = reference.quant(x, False, True, np.full(40, 2.0, np.float32))
    back = reference.dequant_asymmetric(codes, scale, zero_point)
    # Beside the half step: one rounding in y/scale, one in -128 - min/scale, one in the product.
    slack = 4 * 2.0**-24 * (2 * np.abs(x)).max()
    assert (np.abs(back.astype(np.float64) - 2.0 * x) <= scale.astype(np.float64) / 2 + slack).all()


# -- rotary embedding


def test_rotate_half():
    assert reference.rotate_half(np.array([1.0, 2.0, 3.0, 4.0], np.float32)).tolist() == [-3.0, -4.0, 1.0, 2.0]
    assert reference.rotate_half(bf16(1.0, -2.0)).astype(np.float32).tolist() == [[2.0, 1.0]]
    with pytest.raises(ValueError, match="even last axis"):
        reference.rotate_half(fp32(1.0, 2.0, 3.0))


def test_rotate_half_adds_zero_to_the_first_half():
    result = reference.rotate_half(fp32(-0.0, 0.0))
    assert result.view(np.uint32).tolist() == [[0x80000000, 0]]  # 0 * -1 is -0, and -0 + 0 is +0


def test_rope_takes_pairs_apart_and_leaves_halves():
    # [1, 2, 3, 4] -> [1, 3, 2, 4]; rotated halves [-2, -4, 1, 3]; each half of cos and sin is read as it is.
    x, cos, sin = bf16(1.0, 2.0, 3.0, 4.0), bf16(1.0, 2.0, 3.0, 4.0), bf16(5.0, 6.0, 7.0, 8.0)
    expected = [1 * 1 - 2 * 5, 3 * 2 - 4 * 6, 2 * 3 + 1 * 7, 4 * 4 + 3 * 8]
    result = reference.rope_v2(x, cos, sin)
    assert result.dtype == BF16
    assert result.astype(np.float32).tolist() == [expected]
    assert reference.rope_v2(x, cos, sin, object()).astype(np.float32).tolist() == [expected]


def test_rope_of_heads_uses_each_tokens_angles():
    x = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]], np.float32).astype(BF16)
    cos, sin = np.array([[1.0, 2.0], [3.0, 0.0]], BF16), np.array([[0.5, 1.0], [0.0, 1.0]], BF16)
    # Token 0: [x0 - 0.5*x1, 2*x1 + x0]; token 1: [3*x0, x0].
    expected = [[[0.0, 5.0], [1.0, 11.0]], [[15.0, 5.0], [21.0, 7.0]]]
    assert reference.rope_3d_v2(x, cos, sin).astype(np.float32).tolist() == expected


def test_rope_rounds_the_sum_once_in_fp32_and_once_to_bf16():
    # 255 * 255 = 65,025 exactly, + 1 * 1 = 65,026: bf16 spacing is 256 there, 254.007 of them.
    assert reference.rope_v2(bf16(255.0, -1.0), bf16(255.0, 0.0), bf16(1.0, 0.0)).astype(np.float32)[0, 0] == 65_024.0
    # 1792 * 37 = 66,304 is a tie of bf16 (spacing 512) that goes up to 66,560. With -2**-9 beside it, fp32 (spacing
    # 2**-7) comes back to the tie; one rounding of the exact value would give 66,048.
    x = bf16(1792.0, 2.0**-9)
    assert reference.rope_v2(x, bf16(37.0, 0.0), bf16(1.0, 0.0)).astype(np.float32)[0, 0] == 66_560.0


def test_rope_signs_of_zero():
    # y = [-0, 0]: the first output is -0*1 + (0*-1)*1 = -0, the second 0*1 + (-0 + 0)*1 = +0.
    result = reference.rope_v2(bf16(-0.0, 0.0), bf16(1.0, 1.0), bf16(1.0, 1.0))
    assert result.view(np.uint16).tolist() == [[0x8000, 0x0000]]
    # y = [-0, -0]: the second is -0*1 + (-0 + 0)*1 = +0, where -0*1 + -0*1 would be -0.
    result = reference.rope_v2(bf16(-0.0, -0.0), bf16(1.0, 1.0), bf16(1.0, 1.0))
    assert result.view(np.uint16).tolist() == [[0x0000, 0x0000]]


def test_rope_rejects_tables_of_another_shape():
    with pytest.raises(ValueError, match=r"sin: expected \(1, 4\), got \(1, 2\)"):
        reference.rope_v2(bf16(1.0, 2.0, 3.0, 4.0), bf16(1.0, 2.0, 3.0, 4.0), bf16(1.0, 2.0))
    with pytest.raises(ValueError, match=r"cos: expected \(2, 2\), got \(1, 2\)"):
        reference.rope_3d_v2(np.ones((2, 3, 2), BF16), bf16(1.0, 2.0), bf16(1.0, 2.0))
