"""Integer arithmetic of blocks."""

from tiling.check import check_int

__all__ = ["ceil_div", "chunks", "round_up"]


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up.

    Args:
        a: An int.
        b: An int of at least 1.

    Returns:
        The least int that is not below the quotient.

    Raises:
        ZeroDivisionError: ``b`` is 0.

    Examples:
        >>> from tiling import ceil_div
        >>> ceil_div(7, 2), ceil_div(-7, 2)
        (4, -3)
    """
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The smallest multiple of ``b`` that is not below ``a``.

    Args:
        a: An int.
        b: An int of at least 1.

    Returns:
        The multiple.

    Raises:
        ZeroDivisionError: ``b`` is 0.

    Examples:
        >>> from tiling import round_up
        >>> round_up(33, 16), round_up(32, 16)
        (48, 32)
    """
    return -(-a // b) * b


def chunks(total: int, n: int) -> list[tuple[int, int]]:
    """Cut ``range(total)`` evenly in ``n`` parts; part i is ``(i * total // n, (i + 1) * total // n)``.

    Sizes differ by one at most and none exceeds ``ceil_div(total, n)``. Some parts are empty where ``n > total``.
    The kernels cut their row blocks by the same formula.

    Args:
        total: Elements, from 0 on.
        n: Parts, at least 1 unless there is no element.

    Returns:
        First element of each part and the one behind its last.

    Raises:
        TypeError: ``total`` is no int.
        ValueError: One of them is negative, or there is no part for the elements.

    Examples:
        >>> from tiling import chunks
        >>> chunks(7, 3)
        [(0, 2), (2, 4), (4, 7)]
    """
    check_int("total", total, 0, None)
    if n < 0 or (n == 0 and total > 0):
        raise ValueError(f"n: expected at least one part for {total} elements, got {n}")
    return [(i * total // n, (i + 1) * total // n) for i in range(n)]
