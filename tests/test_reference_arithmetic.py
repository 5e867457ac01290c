"""Products, sums and roundings of the reference against numbers worked out by hand."""

import ml_dtypes
import numpy as np
import pytest

from mla_numba import reference

BF16 = ml_dtypes.bfloat16
ONE = np.ones((1, 1), np.float32)


def fp32(*values):
    return np.array([values], np.float32)


# bf16 keeps 8 significant bits: between 256 and 512 it has the even integers only.
@pytest.mark.parametrize(
    ("integer", "rounded"),
    [
        (256, 256.0),
        (257, 256.0),  # a tie, to the even significand 128
        (258, 258.0),
        (259, 260.0),  # a tie, to the even significand 130
        (-257, -256.0),
        (-259, -260.0),
        (511, 512.0),  # a tie that carries into the next binade
        (514, 512.0),
        (515, 516.0),
        (65_792, 65_536.0),  # half of the spacing, 512
        (65_793, 66_048.0),
    ],
)
def test_bf16_rounds_to_nearest_even(integer, rounded):
    result = reference.dequant(BF16, np.array([[integer]], np.int32), ONE, ONE)
    assert result.dtype == BF16
    assert float(result[0, 0]) == rounded


def test_bf16_decides_just_beside_a_tie():
    above, below = np.nextafter(np.float32(257), np.float32([[300, 200]]))[0]
    result = reference.sum_of_products(fp32(1.0), np.array([[above, below]], np.float32)).astype(BF16)
    assert result.astype(np.float32).tolist() == [[258.0, 256.0]]


def test_bf16_keeps_nan_and_overflows_to_infinity():
    scale = np.array([[np.nan], [np.inf], [-np.inf]], np.float32)
    result = reference.dequant(BF16, np.ones((3, 1), np.int32), scale, ONE).astype(np.float32)
    assert np.isnan(result[0, 0])
    assert result[1:, 0].tolist() == [np.inf, -np.inf]
    # Half a unit above the largest finite bf16 (0x7F7F): 0x7F7F8000 ties up to infinity, 0x7F7F7FFF does not.
    near = np.array([[0x7F7F8000], [0x7F7F7FFF]], np.uint32).view(np.float32)
    result = reference.dequant(BF16, np.ones((2, 1), np.int32), near, ONE)
    assert result.view(np.uint16).tolist() == [[0x7F80], [0x7F7F]]


@pytest.mark.parametrize("pattern", [0x7F81, 0x7FC0, 0x7FFF, 0xFF81, 0xFFFF])
def test_every_nan_pattern_stays_nan(pattern):
    x = np.array([[pattern]], np.uint16).view(BF16)
    result = reference.sum_of_products(x, np.ones((1, 1), BF16)).astype(BF16)
    assert np.isnan(result.astype(np.float32)).all()


# 2**24 + 1 is a tie and falls back to 2**24, so each order of the same four terms has its own sum.
@pytest.mark.parametrize(
    ("terms", "total"),
    [
        ((2.0**24, 1.0, 1.0, -(2.0**24)), 0.0),  # backwards 2, in pairs 1
        ((1.0, 1.0, 2.0**24, -(2.0**24)), 2.0),
        ((-(2.0**24), 1.0, 1.0, 2.0**24), 2.0),  # -2**24 + 1 is exact: below 2**24 the spacing is 1
        ((2.0**24, 3.0, -(2.0**24), 1.0), 5.0),  # 2**24 + 3 ties to 2**24 + 4
        ((1.0, 2.0**24, 1.0, -(2.0**24)), 0.0),
    ],
)
def test_products_are_summed_in_ascending_k(terms, total):
    ones = np.ones((4, 1), BF16)
    assert reference.sum_of_products(fp32(*terms).astype(BF16), ones).tolist() == [[total]]
    assert reference.sum_of_products(np.ones((1, 4), BF16), fp32(*terms).T).tolist() == [[total]]


def test_sum_of_products_rounds_the_product_and_then_the_sum():
    # 4097 * 4097 = 16,785,409 rounds down, and adding it to 1 ties down again. One rounding would give 16,785,410.
    assert reference.sum_of_products(fp32(1.0, 4097.0), fp32(1.0, 4097.0).T).tolist() == [[16_785_408.0]]


def test_sum_of_products_starts_from_plus_zero():
    result = reference.sum_of_products(fp32(-0.0), fp32(1.0))
    assert result.view(np.uint32).tolist() == [[0]]


@pytest.mark.parametrize("n_columns", [1, 511, 512, 513, 1025])
def test_column_blocks_cover_every_column_once(n_columns):
    columns = np.arange(n_columns, dtype=np.float32)
    b = np.stack([columns, np.ones(n_columns, np.float32)])
    result = reference.sum_of_products(np.array([[2.0, 1.0], [3.0, -1.0]], np.float32), b)
    assert result.tolist() == [[2 * c + 1 for c in range(n_columns)], [3 * c - 1 for c in range(n_columns)]]
    integers = reference.matmul_int8(np.array([[2, 1]], np.int8), (b % 100).astype(np.int8))
    assert integers.tolist() == [[2 * (c % 100) + 1 for c in range(n_columns)]]


def test_sum_of_products_takes_any_leading_shape_and_strides():
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    b = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    expected = [[[2.0, 4.0], [10.0, 12.0], [18.0, 20.0]], [[26.0, 28.0], [34.0, 36.0], [42.0, 44.0]]]
    assert reference.sum_of_products(a, b).tolist() == expected
    assert reference.sum_of_products(np.asfortranarray(a), np.asfortranarray(b)).tolist() == expected
    assert reference.sum_of_products(a[:, :, ::2], b[::2]).tolist() == [
        [[2.0, 0.0], [10.0, 0.0], [18.0, 0.0]],
        [[26.0, 0.0], [34.0, 0.0], [42.0, 0.0]],
    ]


@pytest.mark.parametrize(("t", "k", "n"), [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_empty_products(t, k, n):
    result = reference.sum_of_products(np.ones((t, k), BF16), np.ones((k, n), BF16))
    assert result.dtype == np.float32
    assert result.tolist() == [[float(k)] * n for _ in range(t)]
    integers = reference.matmul_int8(np.ones((t, k), np.int8), np.ones((k, n), np.int8))
    assert integers.dtype == np.int32
    assert integers.tolist() == [[k] * n for _ in range(t)]


def test_operands_that_do_not_fit():
    with pytest.raises(ValueError, match=r"b: expected \(3, n\), got \(4, 2\)"):
        reference.sum_of_products(np.ones((1, 3), BF16), np.ones((4, 2), BF16))
    with pytest.raises(ValueError, match=r"b: expected \(3, n\), got \(2, 2\)"):
        reference.matmul_int8(np.ones((1, 3), np.int8), np.ones((2, 2), np.int8))
    with pytest.raises(TypeError, match="integer weights need their dequant scale"):
        reference.sum_of_products(np.ones((1, 2), BF16), np.ones((2, 2), np.int8))
    with pytest.raises(TypeError, match="expected int8, got int16"):
        reference.matmul_int8(np.ones((1, 2), np.int16), np.ones((2, 2), np.int8))


def test_int8_sums_beyond_what_fp32_can_hold():
    # 1536 * 127 * 127 = 24,774,144 lies above 2**24 = 16,777,216, where fp32 has no odd integers.
    a = np.full((2, 1537), 127, np.int8)
    b = np.full((1537, 1), 127, np.int8)
    a[:, -1], b[-1] = 1, 1
    a[1, :-1] = -127
    assert reference.matmul_int8(a, b).tolist() == [[24_774_145], [-24_774_143]]


def test_int8_product_of_the_extreme_weight():
    assert reference.matmul_int8(
        np.array([[-127, 127, 1]], np.int8), np.array([[-128], [-128], [-128]], np.int8)
    ).tolist() == [[-128]]


def test_int8_product_needs_a_k_that_int32_can_hold():
    # 132,104 * 127 * 128 = 2,147,482,624 is the last below 2**31 = 2,147,483,648.
    longest = reference.matmul_int8(np.full((1, 132_104), -127, np.int8), np.full((132_104, 1), -128, np.int8))
    assert longest.tolist() == [[2_147_482_624]]
    with pytest.raises(ValueError, match=r"K\*127\*128 < 2\*\*31 for an int32 sum, got K = 132105"):
        reference.matmul_int8(np.zeros((1, 132_105), np.int8), np.zeros((132_105, 1), np.int8))


def test_dequant_rounds_the_sum_to_fp32_first():
    # Between 2**24 and 2**25 fp32 has the even integers: ties go to multiples of 4.
    codes = np.array([[16_777_217, 16_777_219, -16_777_217, 16_777_218]], np.int32)
    result = reference.dequant(np.float32, codes, ONE, ONE)
    assert result.tolist() == [[16_777_216.0, 16_777_220.0, -16_777_216.0, 16_777_218.0]]


def test_dequant_takes_the_token_scale_before_the_channel_scale():
    token_scale, channel_scale = fp32(float.fromhex("0x1.99999ap-4")), fp32(float.fromhex("0x1.555556p-2"))  # 0.1, 1/3
    result = reference.dequant(np.float32, np.array([[7]], np.int32), token_scale, channel_scale)
    # (7 * 0.1) / 3; both 7 * (0.1 / 3) and (7 / 3) * 0.1 end in 0x1.ddddep-3.
    assert result[0, 0] == float.fromhex("0x1.dddddep-3")


def test_dequant_broadcasts_tokens_down_and_channels_across():
    codes = np.array([[1, 2], [3, 4]], np.int32)
    result = reference.dequant(np.float16, codes, fp32(2.0, 0.5).T, fp32(1.0, 10.0))
    assert result.dtype == np.float16
    assert result.tolist() == [[2.0, 40.0], [1.5, 20.0]]


def test_scalar_div():
    tensor = np.array([1.0, 3.0, -4.0], np.float32)
    assert reference.scalar_div(tensor, 3.0).tolist() == [
        float.fromhex("0x1.555556p-2"),
        1.0,
        float.fromhex("-0x1.555556p+0"),
    ]
    assert reference.scalar_div(tensor, 3.0, True).tolist() == [3.0, 1.0, -0.75]
    half = reference.scalar_div(np.array([1.0, 5.0], BF16), 3.0)
    # 512/3 = 170.67 and 128*5/3 = 213.33, to the nearest.
    assert half.dtype == BF16
    assert half.astype(np.float32).tolist() == [171 / 512, 213 / 128]
    assert reference.scalar_div(np.array([0.0], np.float32), 1.0, is_reserve=True).tolist() == [np.inf]
