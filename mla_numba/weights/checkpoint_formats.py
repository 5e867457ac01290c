"""A Linear's weight as a safetensors file holds it, with its scales, and as bf16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from tiling import ceil_div

from ..base.checks import (
    BF16,
    FP32,
    INT8,
    Array,
)
from .safetensors_file import Shard
from .tensor_names import SCALES

__all__ = ["VECTORS", "StoredWeight"]

VECTORS = ("BF16", "F32", "F16")
_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_QUANTISED = ("F8_E4M3", "I8")
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_MX = ("U8", "F8_E8M0")  # both hold E8M0
_MX_GROUP = 32
_OFFSETS = ("F32", "BF16", "F16", "I8")
_PACKED = ("U8", "I32", "F4")  # several values in an element
_FP8_VALUES = np.arange(256, dtype=np.uint8).view(_FP8).astype(FP32)
_ROWS = 128  # of a weight, taken at a time


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """Values (out, in), or codes whose value is `code * scale`.

    `scales` is None for values, else float32 with an element for each block of `block` rows and columns, of the whole
    weight; `stored` are its rows from `first_row` on.
    """

    shard: Shard
    name: str
    stored: Array
    scales: Array | None
    block: tuple[int, int]
    first_row: int = 0

    @classmethod
    def open(
        cls,
        shard_of: Callable[[str], Shard],
        kinds: Mapping[str, str],
        shape: tuple[int, int],
        block: tuple[int, int],
    ) -> StoredWeight:
        """Checks all that headers say, and reads scales only. `kinds` are the names of the tensors of one Linear, such
        as `kinds["weight_scale"]`; `block` is the size of a block, where its scales are by blocks.

        Raises `TypeError` or `ValueError` naming file and tensor.
        """
        name = kinds["weight"]
        shard = shard_of(name)
        dtype = shard.dtype(name)
        allowed = (*VECTORS, *_QUANTISED)
        if dtype in _PACKED:
            raise TypeError(
                f"{shard.path}: {name}: expected dtype {' or '.join(allowed)}, "
                f"got {dtype}, as of packed weights (NVFP4, MXFP4, int4)"
            )
        stored = shard.tensor(name, allowed, shape)
        beside = [kinds[kind] for kind in (*SCALES, "weight_offset") if kind in kinds]
        if dtype not in _QUANTISED:
            if beside:
                raise ValueError(f"{shard.path}: {name}: expected codes where {beside[0]} is, got {dtype}")
            return cls(shard, name, stored, None, shape)
        scale_names = [kinds[kind] for kind in SCALES if kind in kinds]
        if len(scale_names) != 1:
            got = " and ".join(scale_names) or "none"
            raise ValueError(f"{shard.path}: {name}: expected {dtype} codes with one of {', '.join(SCALES)}, got {got}")
        if "weight_offset" in kinds:
            _check_zero(shard_of(kinds["weight_offset"]), kinds["weight_offset"], shape[0])
        return cls(shard, name, stored, *_scales(shard_of(scale_names[0]), scale_names[0], shape, block))

    def rows(self, first: int, n: int) -> StoredWeight:
        """Rows first..first+n of a whole weight."""
        return replace(self, stored=self.stored[first : first + n], first_row=first)

    def int8(self) -> tuple[Array, Array] | None:
        """Codes (out, in) and a scale (out,) float32, as they are in the file; None where it holds something else."""
        if self.stored.dtype != INT8 or self.scales is None or self.scales.shape[1] != 1:
            return None
        scales = np.repeat(self.scales[:, 0], self.block[0])
        return self.stored, scales[self.first_row : self.first_row + len(self.stored)]

    def read_bf16(self, out: Array) -> None:
        """Writes the weight as bf16 to `out` (out, in), of any strides: `bf16(float32(code) * scale)` of codes."""
        n_rows, n_columns = self.block
        step = n_rows if self.scales is not None and _ROWS // 2 <= n_rows <= 8 * _ROWS else _ROWS
        for row in range(0, len(self.stored), step):
            values = self.stored[row : row + step]
            if self.scales is not None:
                blocks = (self.first_row + np.arange(row, row + len(values))) // n_rows
                scales = self.scales[blocks if blocks[0] != blocks[-1] else blocks[:1]]
                if scales.shape[1] > 1:
                    scales = np.repeat(scales, n_columns, axis=1)[:, : values.shape[1]]
                with np.errstate(all="ignore"):
                    values = _numbers(values) * scales
            with np.errstate(all="ignore"):
                rounded = values.astype(BF16)
            self.shard.check_finite(self.name, rounded, self.first_row + row)
            out[row : row + step] = rounded


def _numbers(codes: Array) -> Array:
    return _FP8_VALUES[codes.view(np.uint8)] if codes.dtype == _FP8 else codes.astype(FP32)


def _scales(shard: Shard, name: str, shape: tuple[int, int], block: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """Scales (rows of blocks, columns of blocks) float32, and the block: the whole, a row, or one of `block`."""
    n_out, n_in = shape
    rows, columns = min(block[0], n_out), min(block[1], n_in)
    by_blocks = (ceil_div(n_out, rows), ceil_div(n_in, columns))
    given = shard.shape(name)
    if given in ((), (1,)):
        as_blocks, block = (1, 1), shape
    elif given in ((n_out,), (n_out, 1)):
        as_blocks, block = (n_out, 1), (1, n_in)
    elif given == by_blocks:
        as_blocks, block = by_blocks, (rows, columns)
    elif given == (n_out, ceil_div(n_in, _MX_GROUP)) and shard.dtype(name) in _MX:
        as_blocks, block = given, (1, _MX_GROUP)
    else:
        raise ValueError(
            f"{shard.path}: {name}: expected shape {by_blocks} for blocks of {block[0]} x {block[1]}, "
            f"({n_out}, 1) for rows or (1,), got {given}"
        )
    stored = shard.tensor(name, (*_SCALES, "U8"), given)
    scales = (stored.view(_E8M0) if stored.dtype == np.uint8 else stored).astype(FP32).reshape(as_blocks)
    shard.check_finite(name, scales, 0)
    return scales, block


def _check_zero(shard: Shard, name: str, n_out: int) -> None:
    """Raises unless all of a quantised weight's offsets are 0."""
    given = shard.shape(name)
    if given not in ((), (1,), (n_out,), (n_out, 1)):
        raise ValueError(f"{shard.path}: {name}: expected shape ({n_out}, 1), got {given}")
    offsets = shard.tensor(name, _OFFSETS, given).reshape(-1)
    if (offsets != 0).any():
        row = int((offsets != 0).argmax())
        raise ValueError(
            f"{shard.path}: {name}: expected offsets of 0 (the prolog's codes are symmetric), "
            f"got {float(offsets[row])} in row {row}"
        )
