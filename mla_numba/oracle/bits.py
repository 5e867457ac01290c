"""Comparing a call with the reference, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.checks import Array, expect_type
from ..base.modes import Numerics
from ..base.short_repr import short_repr
from ..cache import PagedCache
from ..call.bind import PrologOutput
from ..call.indexer import IndexerOutput
from ..indexer_cache import IndexerCache
from ..weights.plain import MlaWeights
from .indexer import IndexerReferenceOutput
from .reference import ReferenceOutput, mla_prolog

__all__ = [
    "Mismatch",
    "check_indexer_output",
    "check_output",
    "compare_bits",
    "indexer_pairs",
    "poison",
    "reference_run",
]

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How an array, `name`, differs from the wanted one in at least one bit. `compare_bits` has an example.

    `n_differ` of `n_total` elements differ. `first` is the index of the first element that differs, in C order, `got`
    and `want` are its values as text (NaNs and zeros of other bits with their bits). `n_nan_got`
    and `n_nan_want` count the NaNs of either array, `first_nan_got` and `first_nan_want` are where the first of them
    is, None without one.
    """

    name: str
    n_differ: int
    n_total: int
    first: Index
    got: str
    want: str
    n_nan_got: int
    n_nan_want: int
    first_nan_got: Index | None
    first_nan_want: Index | None

    def __repr__(self) -> str:
        return short_repr(self, str(self).replace("\n  ", "; "))

    def __str__(self) -> str:
        """One line, with one more on the NaNs if there are any."""
        text = (
            f"{self.name}: {self.n_differ} of {self.n_total} elements differ, first at {_index_text(self.first)}: "
            f"expected {self.want}, got {self.got}"
        )
        if self.n_nan_got or self.n_nan_want:
            text += (
                f"\n  NaNs: expected {_nan_text(self.n_nan_want, self.first_nan_want)}, "
                f"got {_nan_text(self.n_nan_got, self.first_nan_got)}"
            )
        return text


def compare_bits(name: str, got: Array, want: Array) -> Mismatch | None:
    """None if `got` and `want` are equal in every bit, else how they differ.

    So -0 is not +0, and a NaN equals only a NaN of the same bits.

    Args:
        name: What the result calls the array.
        got: An array of any dtype and strides.
        want: What it should be.

    Returns:
        Where they differ first, and how many elements do.

    Raises:
        TypeError: One of them is no array, or the dtypes differ.
        ValueError: The shapes differ.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.verify import compare_bits
        >>> want = np.array([0.0, 1.0], np.float32)
        >>> compare_bits("y", want.copy(), want)
        >>> print(compare_bits("y", -want, want))
        y: 2 of 2 elements differ, first at [0]: expected 0.0, got -0.0
    """
    for array in (got, want):
        expect_type(name, array, np.ndarray)
    if got.dtype != want.dtype:
        raise TypeError(f"{name}: expected dtype {want.dtype}, got {got.dtype}")
    if got.shape != want.shape:
        raise ValueError(f"{name}: expected shape {want.shape}, got {got.shape}")
    differ = _bits(got) != _bits(want)
    n_differ = int(np.count_nonzero(differ))
    if not n_differ:
        return None
    first = _first(differ)
    assert first is not None
    nan_got, nan_want = np.isnan(got), np.isnan(want)
    return Mismatch(
        name=name,
        n_differ=n_differ,
        n_total=got.size,
        first=first,
        got=_value_text(got, first, want),
        want=_value_text(want, first, got),
        n_nan_got=int(np.count_nonzero(nan_got)),
        n_nan_want=int(np.count_nonzero(nan_want)),
        first_nan_got=_first(nan_got),
        first_nan_want=_first(nan_want),
    )


def check_output(output: PrologOutput, cache: PagedCache, reference: ReferenceOutput) -> list[Mismatch]:
    """Compares a call's outputs and the cache it wrote with the reference's. `reference_run` has an example.

    Args:
        output: What a call returned.
        cache: The cache that it wrote.
        reference: What `reference_run` made of the same arguments and the cache of before.

    Returns:
        An entry for each array that differs; an empty list if every bit is equal.

    Raises:
        TypeError: An argument is of another type, dtypes differ, or only one of the two has an array.
        ValueError: Shapes differ.
    """
    expect_type("output", output, PrologOutput)
    expect_type("cache", cache, PagedCache)
    expect_type("reference", reference, ReferenceOutput)
    arrays = output._asdict() | {"kv_cache": cache.kv, "kr_cache": cache.kr, "k_scale_cache": cache.k_scale}
    found = []
    for name, want in reference._asdict().items():
        got = arrays[name]
        if got is None and want is None:
            continue
        if got is None or want is None:
            kinds = ("an array", "None")
            raise TypeError(f"{name}: expected {kinds[want is None]}, got {kinds[got is None]}")
        found.append(compare_bits(name, got, want))
    return [mismatch for mismatch in found if mismatch is not None]


def check_indexer_output(
    output: IndexerOutput, cache: IndexerCache, reference: IndexerReferenceOutput
) -> list[Mismatch]:
    """Compares what the indexer's prolog returned, and the cache it wrote, with the reference's.

    Args:
        output: What a call returned.
        cache: The cache that it wrote.
        reference: What `indexer_prolog_reference` made of the same arguments and the cache of before.

    Returns:
        An entry for each array that differs; an empty list if every bit is equal.

    Raises:
        TypeError: An argument is of another type, or dtypes differ.
        ValueError: Shapes differ.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba.reference import IndexerReferenceOutput
        >>> from mla_numba.verify import check_indexer_output
        >>> cache = mla.IndexerCache.allocate(mla.IndexerDims(256, 96, 8, 64, 32), n_blocks=2, block_size=16)
        >>> codes, scale = np.ones((3, 8, 64), np.int8), np.ones((3, 8, 1), np.float16)
        >>> out = mla.IndexerOutput(codes, scale, scale[:, :, 0])
        >>> check_indexer_output(out, cache, IndexerReferenceOutput(*out, cache.k, cache.k_scale))
        []
    """
    found = [compare_bits(name, got, want) for name, got, want in indexer_pairs(output, cache, reference)]
    return [mismatch for mismatch in found if mismatch is not None]


def indexer_pairs(
    output: IndexerOutput, cache: IndexerCache, reference: IndexerReferenceOutput
) -> Iterator[tuple[str, Array, Array]]:
    """The name of each array of the indexer's prolog, what there is and what the reference has. Raises `TypeError`."""
    expect_type("output", output, IndexerOutput)
    expect_type("cache", cache, IndexerCache)
    expect_type("reference", reference, IndexerReferenceOutput)
    arrays = output._asdict() | cache.arrays()
    for name, want in reference._asdict().items():
        yield name, arrays[name], want


def reference_run(
    weights: MlaWeights, x: Array, cos: Array, sin: Array, cache_index: Array | None, cache: PagedCache,
    *, numerics: Numerics = "pypto",
) -> ReferenceOutput:  # fmt: skip
    """The NumPy reference on the arguments of a call; the cache stays as it is and new ones are returned.

    Args:
        weights: The weights, in any mode.
        x: As for `MlaProlog`.
        cos: As for `MlaProlog`.
        sin: As for `MlaProlog`.
        cache_index: As for `MlaProlog`.
        cache: As for `MlaProlog`; only read.
        numerics: "pypto" or "cann".

    Returns:
        Outputs, and the arrays that the cache should have afterwards.

    Raises:
        TypeError: An argument, named in the message, is of another dtype.
        ValueError: It has another shape or value.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> from mla_numba.verify import check_output, reference_run
        >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32))
        >>> cache = mla.PagedCache.allocate(weights.dims, n_blocks=2, block_size=16)
        >>> inputs = random_inputs(weights.dims, t=3, seed=0, capacity=cache.capacity)
        >>> want = reference_run(weights, *inputs, cache)  # before the call, which writes the cache
        >>> check_output(mla.MlaProlog(weights)(*inputs, cache), cache, want)
        []
    """
    return mla_prolog(
        x,
        cos,
        sin,
        cache_index,
        cache.kv,
        cache.kr,
        cache.k_scale,
        w_dq=weights.w_dq,
        w_uq_qr=weights.w_uq_qr,
        w_uk=weights.w_uk,
        w_dkv_kr=weights.w_dkv_kr,
        gamma_cq=weights.gamma_cq,
        gamma_ckv=weights.gamma_ckv,
        dequant_scale_w_uq_qr=weights.dequant_scale_w_uq_qr,
        dequant_scale_w_dq=weights.dequant_scale_w_dq,
        dequant_scale_w_dkv_kr=weights.dequant_scale_w_dkv_kr,
        smooth_scales_cq=weights.smooth_scales_cq,
        epsilon_cq=weights.epsilon_cq,
        epsilon_ckv=weights.epsilon_ckv,
        cache_mode=cache.cache_mode,
        numerics=numerics,
    )


def poison(*arrays: Array | None) -> None:
    """Fills arrays with what no call writes, so that an element left out shows: floats with NaN, int8 with -128.

    Args:
        *arrays: Arrays of floats or ints, written in place; None is passed over.

    Raises:
        TypeError: One of them is no array.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.verify import poison
        >>> codes = np.zeros(2, np.int8)
        >>> poison(codes, None)
        >>> codes.tolist()
        [-128, -128]
    """
    for array in arrays:
        if array is not None:
            expect_type("arrays", array, np.ndarray)
            array.fill(np.iinfo(array.dtype).min if array.dtype.kind == "i" else np.nan)


def _bits(array: Array) -> Array:
    """Unsigned integers over the same memory; strided arrays too."""
    return array.view(f"u{array.itemsize}")


def _first(flags: Array) -> Index | None:
    """Where the first true element is, in C order."""
    if not flags.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(flags.argmax()), flags.shape))


def _value_text(array: Array, index: Index, other: Array) -> str:
    """The element, with its bits where the two values alone would not tell them apart."""
    value: Any = array[index]
    text = str(value)
    if text == str(other[index]) or np.isnan(value):
        text += f" (bits 0x{int(_bits(array)[index]):0{2 * array.itemsize}x})"
    return text


def _index_text(index: Index) -> str:
    return f"[{', '.join(map(str, index))}]"


def _nan_text(count: int, first: Index | None) -> str:
    return "none" if first is None else f"{count}, first at {_index_text(first)}"
