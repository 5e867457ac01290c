"""Integer arithmetic of blocks."""

from tiling.check import check_int

__all__ = ["ceil_div", "chunks", "round_up"]


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, for ``b >= 1``."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The smallest multiple of ``b`` that is not below ``a``, for ``b >= 1``."""
    return -(-a // b) * b


def chunks(total: int, n: int) -> list[tuple[int, int]]:
    """Cut ``range(total)`` evenly in ``n`` parts; part i is ``(i * total // n, (i + 1) * total // n)``.

    Sizes differ by one at most and none exceeds ``ceil_div(total, n)``. Some parts are empty where ``n > total``.
    The kernels cut their row blocks by the same formula.
    """
    check_int("total", total, 0, None)
    if n < 0 or (n == 0 and total > 0):
        raise ValueError(f"n: expected at least one part for {total} elements, got {n}")
    return [(i * total // n, (i + 1) * total // n) for i in range(n)]
