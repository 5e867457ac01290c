"""How far an independent implementation may be from the reference: `mla_numba.tolerance` for arrays of any dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mla_numba.oracle.tolerance import TOLERANCES as BY_DTYPE
from mla_numba.oracle.tolerance import Tolerance, tolerance_of

__all__ = ["TOLERANCES", "Agreement", "check_agreement", "compare_within"]

Array = np.ndarray[Any, Any]


TOLERANCES = {
    name.removesuffix("_out"): tolerance_of(name, np.dtype(np.int8 if (name, "int8") in BY_DTYPE else np.float32))
    for name in dict.fromkeys(name for name, _ in BY_DTYPE)
}


@dataclass(frozen=True)
class Agreement:
    """How many of an array's elements are outliers, how many are not finite, and the farthest one."""

    name: str
    n_outliers: int
    n_not_finite: int
    n_total: int
    max_difference: float
    first: tuple[int, ...] | None
    tolerance: Tolerance

    @property
    def holds(self) -> bool:
        """Whether the array is within its tolerance."""
        return not self.n_not_finite and self.n_outliers <= round(self.tolerance.share * self.n_total)

    def __str__(self) -> str:
        text = (
            f"{self.name}: {self.n_outliers} of {self.n_total} elements beyond abs {self.tolerance.absolute:g} + rel "
        )
        text += f"{self.tolerance.relative:g}, largest difference {self.max_difference:.3g}"
        if self.first is not None:
            text += f", first at {list(self.first)}"
        return text + (f", {self.n_not_finite} NaN or Inf" if self.n_not_finite else "")


def compare_within(name: str, got: Array, want: Array, tolerance: Tolerance) -> Agreement:
    """Compare two arrays of one shape, in fp64."""
    if got.shape != want.shape:
        raise ValueError(f"{name}: expected shape {want.shape}, got {got.shape}")
    got_fp64, want_fp64 = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(got_fp64)
    difference = np.abs(np.where(finite, got_fp64, 0) - want_fp64)
    outlier = (difference > tolerance.absolute + tolerance.relative * np.abs(want_fp64)) | ~finite
    first = np.unravel_index(int(outlier.argmax()), outlier.shape) if outlier.any() else None
    return Agreement(
        name=name,
        n_outliers=int(np.count_nonzero(outlier)),
        n_not_finite=int(np.count_nonzero(~finite)),
        n_total=got.size,
        max_difference=float(difference.max(initial=0)),
        first=None if first is None else tuple(int(i) for i in first),
        tolerance=tolerance,
    )


def check_agreement(got: Mapping[str, Array], want: Mapping[str, Array]) -> list[Agreement]:
    """The arrays of `got` that are beyond their tolerance; both hold all names of TOLERANCES."""
    compared = [compare_within(name, got[name], want[name], tolerance) for name, tolerance in TOLERANCES.items()]
    return [agreement for agreement in compared if not agreement.holds]
