import itertools

import pytest

from tiling import ceil_div, chunks, loop_unroll, round_up


def test_ceil_div_and_round_up():
    assert [ceil_div(a, 4) for a in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [round_up(a, 4) for a in (0, 1, 4, 5)] == [0, 4, 4, 8]


def test_chunks_by_hand():
    assert chunks(10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert chunks(2, 3) == [(0, 0), (0, 1), (1, 2)]
    assert chunks(0, 0) == []


@pytest.mark.parametrize("total", range(25))
@pytest.mark.parametrize("n", range(1, 9))
def test_chunks_cover_evenly(total, n):
    parts = chunks(total, n)
    assert [i for a, b in parts for i in range(a, b)] == list(range(total))
    assert max(b - a for a, b in parts) == ceil_div(total, n)
    assert min(b - a for a, b in parts) == total // n


@pytest.mark.parametrize(
    ("args", "message"),
    [((3, 0), "n: expected at least one part for 3 elements, got 0"), ((-1, 2), "total: expected at least 0, got -1")],
)
def test_chunks_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        chunks(*args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((0, 8, 1, [8, 4, 2, 1]), [(0, 8)]),
        ((0, 45, 1, [32, 16, 8, 4, 2, 1]), [(0, 32), (32, 8), (40, 4), (44, 1)]),
        ((0, 13, 1, [3, 5, 5]), [(0, 5), (5, 5), (10, 3)]),
        ((0, 10, 1, [7, 4]), [(0, 7), (7, 1), (8, 1), (9, 1)]),
        ((0, 3, 1, []), [(0, 1), (1, 1), (2, 1)]),
        ((5, 5, 1, [4]), []),
        ((5, 2, 1, [4]), []),
        ((-3, 4, 3, [2]), [(-3, 2), (3, 1)]),  # -3, 0, 3: as range(), the last step may pass the end
        ((10, 31, 5, [2, 3]), [(10, 3), (25, 2)]),
    ],
)
def test_loop_unroll_by_hand(args, expected):
    assert list(loop_unroll(*args)) == expected


def test_loop_unroll_covers_every_small_range_once():
    lists = [c for n in range(4) for c in itertools.combinations((2, 3, 4, 5, 7), n)]
    for stop, step, factors in itertools.product(range(-2, 24), (1, 2, 3), lists):
        visited, biggest_left = [], None
        for index, factor in loop_unroll(-1, stop, step, factors):
            assert factor in {1, *factors}
            assert biggest_left is None or factor <= biggest_left
            biggest_left = factor
            visited += [index + i * step for i in range(factor)]
        assert visited == list(range(-1, stop, step)), (stop, step, factors)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((0, 8, 0, [1]), ValueError, r"step: expected at least 1, got 0"),
        ((0, 8, 1, [4, 0]), ValueError, r"unroll_list\[1\]: expected at least 1, got 0"),
        ((0, 8, 1, [4, 2.0]), TypeError, r"unroll_list\[1\]: expected int, got float"),
        ((0, 8, 1, 4), TypeError, r"unroll_list: expected a sequence of ints >= 1, got 4"),
        ((0, 8, 1, "421"), TypeError, r"unroll_list: expected a sequence of ints >= 1, got '421'"),
        ((0.0, 8, 1, [1]), TypeError, r"start: expected int, got float"),
        ((0, None, 1, [1]), TypeError, r"stop: expected int, got NoneType"),
        ((0, 8, True, [1]), TypeError, r"step: expected int, got bool"),
    ],
)
def test_loop_unroll_refuses_before_the_first_tile(args, error, message):
    with pytest.raises(error, match=message):
        loop_unroll(*args)
