"""Memory layouts of weights and caches in other systems, to and from ND and PA_BSND, which this library reads.

FRACTAL_NZ and PA_NZ are the layouts of Ascend NPUs: c0 is 32 bytes, 16 elements of bf16 and 32 of int8. All functions
copy, whatever the strides of their argument, and return C-contiguous arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tiling import ceil_div

from .base.checks import (
    BF16,
    FP32,
    INT8,
    Array,
    check_choice,
    check_int,
    dtype_text,
)
from .base.modes import RecordOrder
from .base.short_repr import arrays_text, short_repr

__all__ = [
    "C0_BYTES",
    "RECORD_BYTES",
    "RECORD_ORDERS",
    "RecordFields",
    "from_fractal_nz",
    "from_records",
    "pa_bsnd_to_pa_nz",
    "pa_nz_to_pa_bsnd",
    "record_spans",
    "to_fractal_nz",
    "to_records",
]

C0_BYTES = 32  # the innermost run of an NZ layout
FRACTAL_ROWS = 16
RECORD_BYTES = 656  # 512 codes, 4 float32 scales and 64 bf16 rope elements of one token
RECORD_ORDERS: dict[RecordOrder, tuple[str, ...]] = {
    "cann": ("codes", "rope", "scales"),
    "flashmla": ("codes", "scales", "rope"),
}
_RECORD_FIELDS = {"codes": (INT8, 512), "scales": (FP32, 4), "rope": (BF16, 64)}
_UINT8 = np.dtype(np.uint8)


class RecordFields(NamedTuple):
    """What a 656-byte record holds of a token. `to_records` has an example.

    | field  | shape      | dtype                                    |
    |--------|------------|------------------------------------------|
    | codes  | (..., 512) | int8 codes of the normalised latent      |
    | scales | (..., 4)   | float32, one for each 128 codes          |
    | rope   | (..., 64)  | bf16 rotated key                         |
    """

    codes: Array
    scales: Array
    rope: Array

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


def to_fractal_nz(weight: Array) -> Array:
    """A weight (..., K, N) int8 or bf16 as FRACTAL_NZ (..., ceil(N / c0), ceil(K / 16), 16, c0), padded with zeros.

    Element (k, n) lies at `(n // c0) * Kp * c0 + k * c0 + n % c0` of its matrix, Kp being K rounded up to 16.

    Args:
        weight: The weight. Leading axes are batches, such as the heads of w_uk.

    Returns:
        The fractals, of the same dtype.

    Raises:
        TypeError: `weight` is of another type or dtype.
        ValueError: It has fewer than two axes.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.layouts import from_fractal_nz, to_fractal_nz
        >>> weight = np.arange(20 * 40, dtype=np.int8).reshape(20, 40)
        >>> fractals = to_fractal_nz(weight)
        >>> fractals.shape
        (2, 2, 16, 32)
        >>> bool((from_fractal_nz(fractals, 20, 40) == weight).all())
        True
    """
    _check("weight", weight, (INT8, BF16))
    if weight.ndim < 2:
        raise ValueError(f"weight: expected shape (..., K, N), got {weight.shape}")
    *batch, k, n = weight.shape
    n_columns, n_rows, fractal_rows, c0 = _fractal_shape(k, n, weight.dtype)
    padded = np.zeros((*batch, n_rows * fractal_rows, n_columns * c0), weight.dtype)
    padded[..., :k, :n] = weight
    return np.ascontiguousarray(np.moveaxis(padded.reshape(*batch, n_rows, fractal_rows, n_columns, c0), -2, -4))


def from_fractal_nz(fractals: Array, k: int, n: int) -> Array:
    """The (..., k, n) weight that FRACTAL_NZ holds. `to_fractal_nz` has an example.

    Args:
        fractals: The fractals (..., ceil(n / c0), ceil(k / 16), 16, c0), int8 or bf16.
        k: Rows of the weight.
        n: Its columns.

    Returns:
        The weight, of the same dtype.

    Raises:
        TypeError: `fractals` is of another type or dtype.
        ValueError: Its shape is not that of a (k, n) weight, or its padding is not zero: k or n are then not the
            weight's.
    """
    _check("fractals", fractals, (INT8, BF16))
    wanted = _fractal_shape(check_int("k", k, 0), check_int("n", n, 0), fractals.dtype)
    if fractals.shape[-4:] != wanted:
        text = f"(..., {str(wanted)[1:]}"
        raise ValueError(f"fractals: expected shape {text} of a ({k}, {n}) weight, got {fractals.shape}")
    n_columns, n_rows, fractal_rows, c0 = wanted
    padded = np.moveaxis(fractals, -4, -2).reshape(*fractals.shape[:-4], n_rows * fractal_rows, n_columns * c0)
    if (padded[..., k:, :] != 0).any() or (padded[..., n:] != 0).any():
        raise ValueError(f"fractals: expected zeros beyond row {k} and column {n}, got other values")
    return padded[..., :k, :n].copy(order="C")


def pa_bsnd_to_pa_nz(cache: Array) -> Array:
    """A PA_BSND cache as PA_NZ, which has the same shape.

    Blocks of PA_NZ are ordered `[d / c0][block_size][c0]`.

    Args:
        cache: One array of the cache (blocks, block_size, 1, d), int8 or bf16.

    Returns:
        The array in the other order.

    Raises:
        TypeError: `cache` is of another type or dtype.
        ValueError: It has another shape, or its d is no multiple of c0.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.layouts import pa_bsnd_to_pa_nz, pa_nz_to_pa_bsnd
        >>> rows = np.arange(2 * 64, dtype=np.int8).reshape(1, 2, 1, 64)
        >>> pa_bsnd_to_pa_nz(rows).reshape(-1)[[0, 31, 32, 64]].tolist()  # both rows' first 32, then their last
        [0, 31, 64, 32]
        >>> bool((pa_nz_to_pa_bsnd(pa_bsnd_to_pa_nz(rows)) == rows).all())
        True
    """
    c0 = _check_cache(cache)
    blocks, block_size, _, d = cache.shape
    rows = cache.reshape(blocks, block_size, d // c0, c0)
    return rows.swapaxes(1, 2).copy(order="C").reshape(cache.shape)


def pa_nz_to_pa_bsnd(cache: Array) -> Array:
    """The inverse of `pa_bsnd_to_pa_nz`. `pa_bsnd_to_pa_nz` has an example.

    Args:
        cache: One array of a PA_NZ cache (blocks, block_size, 1, d), int8 or bf16.

    Returns:
        The array in the order of PA_BSND.

    Raises:
        TypeError: `cache` is of another type or dtype.
        ValueError: It has another shape, or its d is no multiple of c0.
    """
    c0 = _check_cache(cache)
    blocks, block_size, _, d = cache.shape
    chunks = cache.reshape(blocks, d // c0, block_size, c0)
    return chunks.swapaxes(1, 2).copy(order="C").reshape(cache.shape)


def to_records(codes: Array, scales: Array, rope: Array, *, order: RecordOrder) -> Array:
    """Token rows (`RecordFields`, with the same leading axes) as records (..., 656) uint8 in one of two orders.

    | order    | fields                | who reads it so                                             |
    |----------|-----------------------|-------------------------------------------------------------|
    | cann     | codes, rope, scales   | the MlaProlog operators of CANN                             |
    | flashmla | codes, scales, rope   | FlashMLA, vLLM and SGLang ("fp8_ds_mla")                    |

    Both have 656 bytes, so a record does not show its order. FlashMLA and the systems around it read the 512 codes as
    float8_e4m3fn; here they are int8, and bytes are moved, not converted. Arrays of a PA_BSND cache can be passed
    directly.

    Args:
        codes: Codes (..., 512) int8.
        scales: Scales (..., 4) float32.
        rope: Rotated keys (..., 64) bf16.
        order: "cann" or "flashmla".

    Returns:
        The records.

    Raises:
        TypeError: An array is of another type or dtype.
        ValueError: It has another shape, or the order is neither.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.layouts import from_records, to_records
        >>> cache = mla.PagedCache.allocate(mla.MlaDims.deepseek_v32(), n_blocks=2, block_size=16)
        >>> records = to_records(cache.kv, cache.k_scale, cache.kr, order="cann")
        >>> records.shape
        (2, 16, 1, 656)
        >>> from_records(records, order="cann").scales.shape
        (2, 16, 1, 4)
    """
    given = {"codes": codes, "scales": scales, "rope": rope}
    for name, (dtype, width) in _RECORD_FIELDS.items():
        _check(name, given[name], (dtype,))
        if given[name].shape != (wanted := (*codes.shape[:-1], width)):
            lead = "..., " if name == "codes" else "".join(f"{m}, " for m in wanted[:-1])
            raise ValueError(f"{name}: expected shape ({lead}{width}), got {given[name].shape}")
    records = np.empty((*codes.shape[:-1], RECORD_BYTES), np.uint8)
    for name, (start, stop) in record_spans(order).items():
        records[..., start:stop] = np.ascontiguousarray(given[name]).view(np.uint8)
    return records


def from_records(records: Array, *, order: RecordOrder) -> RecordFields:
    """The fields of records. `to_records` has an example.

    Args:
        records: Records (..., 656), uint8 or int8.
        order: "cann" or "flashmla", see `to_records`.

    Returns:
        Their codes, scales and rotated keys.

    Raises:
        TypeError: `records` is of another type or dtype.
        ValueError: It has another shape, or the order is neither.
    """
    _check("records", records, (_UINT8, INT8))
    if records.ndim == 0 or records.shape[-1] != RECORD_BYTES:
        raise ValueError(f"records: expected shape (..., {RECORD_BYTES}), got {records.shape}")
    spans = record_spans(order)

    def field(name: str) -> Array:
        start, stop = spans[name]
        return records[..., start:stop].copy(order="C").view(_RECORD_FIELDS[name][0])

    return RecordFields(field("codes"), field("scales"), field("rope"))


def record_spans(order: RecordOrder) -> dict[str, tuple[int, int]]:
    """First byte of each field and the byte behind its last."""
    spans, at = {}, 0
    for name in RECORD_ORDERS[check_choice("order", order, RECORD_ORDERS)]:
        dtype, width = _RECORD_FIELDS[name]
        spans[name] = (at, at + width * dtype.itemsize)
        at += width * dtype.itemsize
    return spans


def _fractal_shape(k: int, n: int, dtype: np.dtype[Any]) -> tuple[int, int, int, int]:
    c0 = C0_BYTES // dtype.itemsize
    return ceil_div(n, c0), ceil_div(k, FRACTAL_ROWS), FRACTAL_ROWS, c0


def _check_cache(cache: Array) -> int:
    """c0 of a cache (blocks, block_size, 1, d) that can be PA_NZ."""
    _check("cache", cache, (INT8, BF16))
    if cache.ndim != 4 or cache.shape[2] != 1:
        raise ValueError(f"cache: expected shape (blocks, block_size, 1, d), got {cache.shape}")
    c0 = C0_BYTES // cache.itemsize
    if cache.shape[3] % c0:
        raise ValueError(f"cache: expected rows of a multiple of {c0} elements, got {cache.shape[3]}")
    return c0


def _check(name: str, value: object, dtypes: tuple[np.dtype[Any], ...]) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {dtype_text(value.dtype)}")
