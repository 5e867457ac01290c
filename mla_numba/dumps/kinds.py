"""What a dumped file may hold: the shapes and elements that an argument can have."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from tiling import ceil_div

from ..base.checks import Array
from ..base.modes import CacheMode
from ..layouts import C0_BYTES, FRACTAL_ROWS

__all__ = [
    "Kind",
    "Shape",
    "cache_like",
    "exactly",
    "first_cache",
    "fractals",
    "heads",
    "lists",
    "rows",
    "vector",
]

Shape = tuple[int, ...]


class Kind(NamedTuple):
    """What a file may hold: elements of `dtype` in `shape`, where None stands for a length that its size tells.

    `fit` gives the shape in which to see a `.npy` of another shape, or None where it cannot be the same array.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    fit: Callable[[Shape], Shape | None]

    def __str__(self) -> str:
        return f"({', '.join('any' if n is None else str(n) for n in self.shape)}) {self.dtype}"

    @property
    def known_bytes(self) -> int:
        """Bytes of the file, or of which they are a multiple."""
        return prod(n for n in self.shape if n is not None) * self.dtype.itemsize


def exactly(shape: Shape, dtype: np.dtype[Any]) -> Kind:
    """An array of this shape only."""
    return Kind(shape, dtype, lambda got: shape if got == shape else None)


def vector(n: int, *dtypes: np.dtype[Any]) -> list[Kind]:
    """n elements with any axes of length 1."""
    return [Kind((n,), d, lambda got: (n,) if prod(got) == n and max(got, default=1) == n else None) for d in dtypes]


def rows(t: int | None, *tail: int, dtype: np.dtype[Any]) -> Kind:
    """A row a token, (T, *tail); (B, S, *tail) is the same, and (T,) is (T, 1)."""

    def fit(got: Shape) -> Shape | None:
        n_lead = len(got) - len(tail)
        if tail == (1,) and prod(got) == t:
            return (t, 1)
        if n_lead < 1 or got[n_lead:] != tail or t not in (None, prod(got[:n_lead])):
            return None
        return (prod(got[:n_lead]), *tail)

    return Kind((t, *tail), dtype, fit)


def heads(t: int | None, n: int, d: int, dtype: np.dtype[Any]) -> Kind:
    """n heads a token, (T, n, d); (B, S, n, d) and (T * n, d) are the same."""

    def fit(got: Shape) -> Shape | None:
        if len(got) < 2 or got[-1] != d or (len(got) > 2 and got[-2] != n) or prod(got[:-1]) % n:
            return None
        n_tokens = prod(got[:-1]) // n
        return (n_tokens, n, d) if t in (None, n_tokens) else None

    return Kind((t, n, d), dtype, fit)


def lists(n: int, length: int | None, dtype: np.dtype[Any]) -> Kind:
    """n lists of equal length, (n, length); (n, 1, length) and (B, S, length) are the same."""

    def fit(got: Shape) -> Shape | None:
        fits = len(got) > 1 and prod(got[:-1]) == n and length in (None, got[-1])
        return (n, got[-1]) if fits else None

    return Kind((n, length), dtype, fit)


def fractals(k: int, n: int, dtype: np.dtype[Any]) -> Kind:
    """A (k, n) weight in FRACTAL_NZ; (ceil(n / c0), k padded to 16, c0) is the same."""
    c0 = C0_BYTES // dtype.itemsize
    shape = (ceil_div(n, c0), ceil_div(k, FRACTAL_ROWS), FRACTAL_ROWS, c0)
    flat = (shape[0], shape[1] * shape[2], c0)
    return Kind(shape, dtype, lambda got: shape if got in (shape, flat) else None)


def first_cache(d: int, dtype: np.dtype[Any], cache_mode: CacheMode, block_size: int) -> Kind:
    """A cache of any number of slots. A `.npy` shows its block size, unless it is flat: (slots, d)."""

    def fit(got: Shape) -> Shape | None:
        if cache_mode == "TND":
            return (prod(got[:-1]), 1, d) if got[-1:] == (d,) else None
        if len(got) in (3, 4) and got[-1] == d and got[2:-1] in ((), (1,)):
            return (*got[:2], 1, d)
        c0 = C0_BYTES // dtype.itemsize
        if cache_mode == "PA_NZ" and len(got) == 4 and got[1] * got[3] == d and got[3] == c0:
            return (got[0], got[2], 1, d)
        if len(got) == 2 and got[1] == d and got[0] % block_size == 0:
            return (got[0] // block_size, block_size, 1, d)
        return None

    return Kind((None, 1, d) if cache_mode == "TND" else (None, block_size, 1, d), dtype, fit)


def cache_like(kv: Array, d: int, dtype: np.dtype[Any], cache_mode: CacheMode) -> Kind:
    """A cache of d elements a slot with the slots of another."""
    shape = (*kv.shape[:-1], d)

    def fit(got: Shape) -> Shape | None:
        block_size = 1 if kv.ndim == 3 else kv.shape[1]
        return shape if first_cache(d, dtype, cache_mode, block_size).fit(got) == shape else None

    return Kind(shape, dtype, fit)
