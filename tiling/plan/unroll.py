"""Cutting a range into full tiles of the sizes in a list."""

from collections.abc import Iterable, Iterator

from tiling.arith import ceil_div
from tiling.check import check_int, check_ints

__all__ = ["loop_unroll"]


def loop_unroll(start: int, stop: int, step: int, unroll_list: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Cut ``range(start, stop, step)`` in tiles; yield ``(index, factor)``: first index and number of iterations.

    Factors are sorted downwards, deduplicated, and 1 is always among them. The range is covered greedily, largest
    factor first; every tile is full and each iteration belongs to exactly one, for every list, also where a factor
    does not divide the next larger one. ``index`` moves on by ``factor * step``. As in ``range``, the number of
    iterations is ``(stop - start) / step`` rounded up, and an empty range yields nothing.

    Args:
        start: First index.
        stop: The index behind the last.
        step: From one iteration to the next, at least 1.
        unroll_list: Sizes of tiles, each at least 1, at most 4096 of them.

    Yields:
        First index and number of iterations of each tile.

    Raises:
        TypeError: An argument is of another type.
        ValueError: It is out of range.

    Examples:
        >>> from tiling import loop_unroll
        >>> list(loop_unroll(0, 13, 1, [5, 3]))
        [(0, 5), (5, 5), (10, 3)]
    """
    check_int("start", start, most=None)
    check_int("stop", stop, most=None)
    check_int("step", step, 1, None)
    factors = sorted({1, *check_ints("unroll_list", unroll_list, 1, most=None)}, reverse=True)
    return _tiles(start, max(0, ceil_div(stop - start, step)), step, factors)


def _tiles(start: int, n_iterations: int, step: int, factors: list[int]) -> Iterator[tuple[int, int]]:
    done = 0
    for factor in factors:
        while n_iterations - done >= factor:
            yield start + done * step, factor
            done += factor
