"""How far outputs may lie from the oracle's, and how far they do.

`TOLERANCES` are those of the reference operator's own test (hicann/pypto,
`models/deepseek_v32_exp/deepseekv32_mla_prolog_quant.py`), whose oracle is a PyTorch program: an element is beyond its
tolerance where `|got - want| > absolute + relative * |want|`, and an output passes where at most
`round(share * elements)` are. A NaN or Inf in it fails, wherever it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ..base.checks import Array, check_choice
from ..base.short_repr import short_repr
from .bits import Mismatch, compare_bits

__all__ = ["TOLERANCES", "Agreement", "Tolerance", "compare_within", "tolerance_of"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An element may differ by `absolute + relative * |want|`; a `share` of all elements may differ by more.

    `tolerance_of` has an example.
    """

    absolute: float
    relative: float
    share: float

    def __str__(self) -> str:
        allowed = f", {self.share:.1%} of all beyond it" if self.share else ""
        return f"{self.absolute:g} + {self.relative:g} |expected|{allowed}"


# By output and kind of its elements: int8 codes, or floats.
TOLERANCES: Mapping[tuple[str, str], Tolerance] = MappingProxyType(
    {
        ("query_nope_out", "float"): Tolerance(0.005, 0.0078125, 0.005),
        ("query_rope_out", "float"): Tolerance(0.005, 0.0078125, 0.005),
        ("q_norm_out", "int8"): Tolerance(1, 0, 0.005),
        ("q_norm_out", "float"): Tolerance(1e-4, 0.0078125, 0.005),
        ("q_norm_scale_out", "float"): Tolerance(2.5e-5, 0.005, 0.005),
        ("kv_cache_out", "int8"): Tolerance(1, 0, 0),
        ("kv_cache_out", "float"): Tolerance(1e-4, 0.0078125, 0),
        ("kr_cache_out", "float"): Tolerance(1e-4, 0.0078125, 0),
        ("k_scale_cache_out", "float"): Tolerance(2.5e-5, 0.005, 0),
    }
)


def tolerance_of(name: str, dtype: np.dtype[Any]) -> Tolerance:
    """The tolerance of an output in the reference operator's test.

    Args:
        name: The output: `q_norm_out`, ...
        dtype: Of its elements.

    Returns:
        One of `TOLERANCES`.

    Raises:
        TypeError: `name` is no string.
        ValueError: There is no tolerance for such an output with such elements.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.tolerance import tolerance_of
        >>> print(tolerance_of("q_norm_out", np.dtype(np.int8)))
        1 + 0 |expected|, 0.5% of all beyond it
    """
    kind = "int8" if dtype == np.int8 else "float"
    check_choice("name", name, dict.fromkeys(output for output, _ in TOLERANCES))
    if (name, kind) not in TOLERANCES:
        raise ValueError(f"{name}: expected elements of another type than {dtype}, which this output never has")
    return TOLERANCES[name, kind]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one output agrees with the oracle's. `compare_within` has an example.

    | field                        | meaning                                                                         |
    |------------------------------|---------------------------------------------------------------------------------|
    | `name`, `file`, `n_elements` | the output, where it is from, and how many elements it has                      |
    | `tolerance`                  | what was allowed                                                                |
    | `mismatch`                   | which elements differ in a bit; None where none does                            |
    | `max_abs`, `max_abs_at`      | the largest difference of finite elements; None if it is 0                      |
    | `max_rel`                    | the largest of `difference / abs(want)` where want is neither 0 nor NaN nor Inf |
    | `n_beyond`                   | elements beyond the tolerance, NaN and Inf among them                           |
    | `n_nan`, `n_inf`             | NaN and Inf in the output                                                       |
    | `n_changed`, `first_changed` | rows of a cache that no token names and that differ from the input, and a slot  |
    | `passed`                     | the verdict                                                                     |
    """

    name: str
    file: str
    n_elements: int
    tolerance: Tolerance
    mismatch: Mismatch | None
    max_abs: float
    max_abs_at: tuple[int, ...] | None
    max_rel: float
    n_beyond: int
    n_nan: int
    n_inf: int
    n_changed: int
    first_changed: int | None
    passed: bool

    def __repr__(self) -> str:
        return short_repr(self, str(self), "passed" if self.passed else "failed")

    def __str__(self) -> str:
        text = f"{self.name}: {self.n_beyond} of {self.n_elements} elements beyond {self.tolerance}"
        if self.max_abs_at is not None:
            text += f"; the largest difference is {self.max_abs:.3g}, at {list(self.max_abs_at)}"
        return text + (f"; {self.n_nan} NaN, {self.n_inf} Inf" if self.n_nan or self.n_inf else "")

    @property
    def exact(self) -> bool:
        """Whether every bit is the oracle's."""
        return self.mismatch is None

    @property
    def share_beyond(self) -> float:
        """`n_beyond` as a share of all elements."""
        return self.n_beyond / self.n_elements if self.n_elements else 0.0

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self) | {"exact": self.exact, "share_beyond": self.share_beyond}


@np.errstate(all="ignore")
def compare_within(
    name: str,
    got: Array,
    want: Array,
    *,
    tolerance: Tolerance | None = None,
    file: str = "",
    exact: bool = False,
    untouched: tuple[Array, Array] | None = None,
) -> Agreement:
    """Compares an output with the oracle's of the same shape and dtype.

    Args:
        name: The output: `q_norm_out`, ...
        got: Its array.
        want: The oracle's.
        tolerance: By default that of the output, see `tolerance_of`.
        file: Where it is from, for the result.
        exact: Pass if every bit is equal, NaNs included, whatever the tolerance.
        untouched: For caches, the cache before the call and the flat slots that no token names; their rows must be
            equal in every bit.

    Returns:
        The verdict, and how far the two are apart.

    Raises:
        TypeError: One of them is no array, or the dtypes differ.
        ValueError: The shapes differ, or the output has no tolerance of its own and none is given.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.tolerance import compare_within
        >>> want = np.zeros((8, 1536), np.int8)
        >>> got = want + np.int8(1)
        >>> compare_within("q_norm_out", got, want).passed, compare_within("q_norm_out", got, want, exact=True).passed
        (True, False)
    """
    mismatch = compare_bits(name, got, want)
    tolerance = tolerance or tolerance_of(name, want.dtype)
    is_float = got.dtype.kind != "i"
    n_nan = int(np.count_nonzero(np.isnan(got))) if is_float else 0
    n_inf = int(np.count_nonzero(np.isinf(got))) if is_float else 0
    n_beyond, max_abs, max_abs_at, max_rel = n_nan + n_inf, 0.0, None, 0.0
    if mismatch is not None:
        g, w = got.astype(np.float64), want.astype(np.float64)
        difference, size = np.abs(g - w), np.abs(w)
        n_beyond = int(np.count_nonzero(~(difference <= tolerance.absolute + tolerance.relative * size)))
        finite = np.where(np.isfinite(difference), difference, -1)
        at = int(finite.argmax())
        if finite.flat[at] > 0:
            max_abs, max_abs_at = float(finite.flat[at]), tuple(int(i) for i in np.unravel_index(at, got.shape))
        max_rel = float(np.max(difference / size, where=np.isfinite(difference) & (size > 0), initial=0))
    changed = np.zeros(0, np.int64)
    if untouched is not None:
        before, slots = untouched
        changed = slots[(_bits_by_slot(got)[slots] != _bits_by_slot(before)[slots]).any(axis=1)]
    within = n_beyond <= round(tolerance.share * got.size) and not n_nan and not n_inf and not len(changed)
    return Agreement(
        name=name,
        file=file,
        n_elements=got.size,
        tolerance=tolerance,
        mismatch=mismatch,
        max_abs=max_abs,
        max_abs_at=max_abs_at,
        max_rel=max_rel,
        n_beyond=n_beyond,
        n_nan=n_nan,
        n_inf=n_inf,
        n_changed=len(changed),
        first_changed=int(changed[0]) if len(changed) else None,
        passed=mismatch is None if exact else within,
    )


def _bits_by_slot(cache: Array) -> Array:
    """The bits of a C-contiguous cache, a row a slot."""
    return cache.view(f"u{cache.itemsize}").reshape(-1, cache.shape[-1])
