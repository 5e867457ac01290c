"""Floating point in fractions: each operation is done exactly and then rounded, with no float in between."""

from fractions import Fraction
from math import isqrt, prod


def _rounded(value, precision, least_exponent, largest):
    """The nearest number of so many significant bits, half to even; subnormal below 2^least_exponent."""
    value = Fraction(value)
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    quantum = Fraction(2) ** (max(exponent, least_exponent) - precision + 1)
    result = round(value / quantum) * quantum
    assert abs(result) <= largest, "no infinity here"
    return result


def fp32(value):
    return _rounded(value, 24, -126, 2**128)


def bf16(value):
    return _rounded(value, 8, -126, 2**128)


def fp16(value):
    return _rounded(value, 11, -14, 65504)


def fp32_sqrt(value):
    """The square root of a fraction, rounded once."""
    value, shift = Fraction(value), 1 << 400
    scaled = value * shift
    root = isqrt(scaled.numerator // scaled.denominator)
    exact = Fraction(root * root) == scaled
    return fp32((Fraction(root) + (0 if exact else Fraction(1, 2))) / (1 << 200))


def dot(a, b):
    """One fp32 accumulator over ascending k."""
    acc = Fraction(0)
    for x, y in zip(a, b, strict=True):
        acc = fp32(acc + fp32(x * y))
    return acc


def lanes(values):
    """The sum in 16 lanes and a tree."""
    sums = [Fraction(0)] * 16
    for i, value in enumerate(values):
        sums[i % 16] = fp32(sums[i % 16] + value)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [fp32(sums[i] + sums[i + half]) for i in range(half)]
    return sums[0]


def fractions(array):
    """An array's elements as nested lists of fractions."""
    if array.ndim == 0:
        return Fraction(float(array))
    return [fractions(part) for part in array]


def flat(nested):
    return [value for part in nested for value in flat(part)] if isinstance(nested, list) else [nested]


def assert_equal(got, want):
    """An array's values equal nested lists of fractions, all of them."""
    values = flat(want)
    assert got.size == len(values) == prod(got.shape)
    wrong = [(i, g, float(w)) for i, (g, w) in enumerate(zip(flat(fractions(got)), values, strict=True)) if g != w]
    assert not wrong, wrong[:3]
