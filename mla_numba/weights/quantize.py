"""int8 weights of bf16 ones, and the error that they bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..base.checks import FP32, INT8, Array

__all__ = ["QuantizationReport", "WeightError", "quantize_columns"]

_BLOCK = 256  # columns at a time: a block in float32 stays in cache


@dataclass(frozen=True, slots=True)
class WeightError:
    """How far a quantised weight w' = smooth * code * scale lies from the bf16 weight w, in w's own units.

    `QuantizationReport` has an example.

    - `max_abs`: the largest |w' - w|.
    - `relative_rms`: sqrt(sum (w' - w)^2 / sum w^2); 0 for a weight of zeros.
    - `saturated`: the share of codes that are -127 or 127, the ends of the range. The largest element of a column
      always is one, so it is at least 1 / K for a weight without columns of zeros.
    """

    max_abs: float
    relative_rms: float
    saturated: float


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """The error of each weight that `MlaWeights.quantize` made int8; `print` shows a table.

    Args:
        errors: A `WeightError` for each weight, by its name.

    Examples:
        >>> import mla_numba as mla
        >>> dims = mla.MlaDims(256, 4, 96, 64, 32, 32)
        >>> weights = mla.MlaWeights.random(dims, quant="a")
        >>> error = weights.quantization.errors["w_dq"]
        >>> error.max_abs < 0.01, error.relative_rms < 0.01, error.saturated >= 1 / dims.hidden_size
        (True, True, True)
    """

    errors: Mapping[str, WeightError]

    def __str__(self) -> str:
        if not self.errors:
            return "no weight is quantised"
        lines = [f"{'weight':10} {'max abs error':>14} {'relative RMS':>13} {'saturated':>10}"]
        for name, e in self.errors.items():
            lines.append(f"{name:10} {e.max_abs:14.3e} {e.relative_rms:13.3e} {e.saturated:10.2%}")
        return "\n".join(lines)


def quantize_columns(name: str, weight: Array, smooth: Array | None = None) -> tuple[Array, Array, WeightError]:
    """int8 codes (K, N), float32 scales (N,) and the error of a bf16 weight (K, N).

    `scale = max|column| / 127`, `code = rint(w / scale)`; a column of zeros has scale 1. With `smooth` (K,) float32 the
    rows are divided by it first. Raises `ValueError` where a quotient or a scale is NaN or Inf.
    """
    k, n = weight.shape
    codes = np.empty((k, n), INT8)
    scale = np.empty(n, FP32)
    max_abs, squared_error, squared, n_saturated = 0.0, 0.0, 0.0, 0
    for start in range(0, n, _BLOCK):
        columns = slice(start, start + _BLOCK)
        original = weight[:, columns].astype(FP32)
        with np.errstate(all="ignore"):
            values = original if smooth is None else original / smooth[:, None]
            largest = np.abs(values).max(axis=0)
        finite = np.isfinite(largest)
        if not finite.all():
            column = start + int(finite.argmin())
            raise ValueError(f"{name}: expected finite weights, got NaN or Inf in column {column}")
        block_scale = largest / FP32.type(127)
        block_scale[block_scale == 0] = 1
        block_codes = np.rint(values / block_scale).clip(-127, 127)
        codes[:, columns], scale[columns] = block_codes, block_scale
        restored = block_codes * block_scale
        if smooth is not None:
            restored *= smooth[:, None]
        error = restored - original
        max_abs = max(max_abs, float(np.abs(error).max()))
        squared_error += float(np.square(error, dtype=np.float64).sum())
        squared += float(np.square(original, dtype=np.float64).sum())
        n_saturated += int(np.count_nonzero(np.abs(block_codes) == 127))
    relative_rms = (squared_error / squared) ** 0.5 if squared else 0.0
    return codes, scale, WeightError(max_abs, relative_rms, n_saturated / codes.size)
