"""Cos and sin tables of positions, plain and YaRN, and tables of other layouts made into the prolog's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from .base.checks import (
    BF16,
    FP16,
    FP32,
    Array,
    check_array,
    check_number,
    dtype_text,
)
from .base.model_config import read_model_config
from .base.rope_settings import (
    Yarn,
    read_count,
    read_theta,
    read_yarn,
)
from .base.short_repr import arrays_text, short_repr

__all__ = [
    "CosSin",
    "RopeTable",
    "check_cos_sin",
    "from_cos_sin_cache",
    "from_half",
    "from_interleaved",
    "softmax_scale",
]

_FLOATS = (BF16, FP16, FP32)
_MAX_POSITION = 2**24  # beyond it a position is no float32, in which angles are computed
# cos² + sin² of a token's pairs is one number but for the rounding of both to bf16, 2^-8 of it at most.
_NOISE = 2.0**-6


class CosSin(NamedTuple):
    """What a call of the prolog takes, `cos` and `sin`: both (T, R) bf16, columns i and i + R/2 alike.

    `RopeTable` has an example.
    """

    cos: Array
    sin: Array

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


@dataclass(frozen=True, slots=True, eq=False)
class RopeTable:
    """Frequencies of the R/2 pairs of a rope.

    | field            | shape  | dtype   | meaning                                             |
    |------------------|--------|---------|-----------------------------------------------------|
    | frequencies      | (R/2,) | float32 | radians a position                                  |
    | attention_factor |        | float   | what YaRN multiplies cos and sin by; 1 without it   |

    Args:
        frequencies: See the table.
        attention_factor: See the table.

    Raises:
        TypeError: A field is of another type or dtype.
        ValueError: There is no frequency, or more than one axis.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> table = mla.RopeTable.from_hf({"qk_rope_head_dim": 64, "rope_theta": 10000})
        >>> table.frequencies.shape, table.attention_factor
        ((32,), 1.0)
        >>> table.at(np.arange(3))
        <CosSin: cos (3, 64) bf16, sin (3, 64) bf16, 768 bytes>
    """

    frequencies: Array
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        check_array("frequencies", self.frequencies, (FP32,), (None,))
        if not self.frequencies.size:
            raise ValueError("frequencies: expected at least 1, got 0")
        check_number("attention_factor", self.attention_factor)

    def __repr__(self) -> str:
        first, last = self.frequencies[0], self.frequencies[-1]
        radians = f"{len(self.frequencies)} frequencies from {first:.4g} to {last:.4g} radians a position"
        return short_repr(self, f"R={2 * len(self.frequencies)}", radians, f"attention_factor={self.attention_factor}")

    @classmethod
    def from_hf(cls, config: Any) -> Self:
        """From a model's configuration.

        It reads `qk_rope_head_dim`, `rope_theta` and `rope_scaling`, or `rope_parameters`, which holds both in newer
        configurations. Of a YaRN scaling: `factor`, `original_max_position_embeddings` (if missing,
        `max_position_embeddings`), `beta_fast` (32), `beta_slow` (1), `mscale`, `mscale_all_dim`, `attention_factor`,
        `truncate` (true). Of two settings that contradict each other, the one that transformers takes counts:
        `rope_scaling` before `rope_parameters`, `rope_type` before `type`, a trained length beside the scaling before
        the one in it.

        The formulas are those of YaRN (arXiv 2309.00071, section 3.4, appendix A.2), in float32 step by step as in
        transformers; each step is rounded correctly, where another library's power may be one unit off.

        cos and sin are multiplied by m(mscale) / m(mscale_all_dim), m(s) = 0.1 s ln(factor) + 1, where both are given
        and not 0, else by m(1); DeepSeek's models give equal ones, hence 1. What the scores are multiplied by is
        `softmax_scale`.

        Args:
            config: A mapping (the parsed `config.json`), or an object with those attributes.

        Returns:
            The table of the R/2 frequencies.

        Raises:
            TypeError: A field is of another type.
            ValueError: A field is missing or out of range, a kind of scaling or a setting is not known, or the model is
                none that this prolog computes (see `read_model_config`).
        """
        model = read_model_config(config)
        dim, theta = read_count(model, "qk_rope_head_dim"), read_theta(model)
        if dim % 2:
            raise ValueError(f"{model.name}.qk_rope_head_dim: expected an even number of at least 2, got {dim}")
        yarn = read_yarn(model)
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        wavelengths = (np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32)  # over 2 pi
        plain = np.float32(1) / wavelengths
        if yarn is None:
            return cls(plain)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            slowed = np.float32(1) / (np.float32(yarn.factor) * wavelengths)
            low, high = _yarn_range(yarn, dim, theta, model.name)
            ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
            keep = np.float32(1) - ramp.clip(0, 1)
            frequencies = slowed * (np.float32(1) - keep) + plain * keep
        if not np.isfinite(frequencies).all():
            raise ValueError(f"{model.name}.factor: expected one that leaves finite frequencies, got {yarn.factor}")
        return cls(frequencies.astype(np.float32), _attention_factor(yarn))

    def at(self, positions: Array) -> CosSin:
        """cos and sin of positions, as a call of the prolog takes them.

        An angle is position times frequency in float32, as in transformers; its cos and sin are rounded correctly to
        float32, multiplied by the attention factor and rounded to bf16.

        Args:
            positions: Integers (T,), each at least 0 and at most 2^24.

        Returns:
            cos and sin (T, R) bf16, columns i and i + R/2 alike.

        Raises:
            TypeError: `positions` is no array of integers.
            ValueError: It has another shape, or a position is out of range.
        """
        if not isinstance(positions, np.ndarray) or positions.dtype.kind not in "iu":
            kind = f"dtype {positions.dtype}" if isinstance(positions, np.ndarray) else type(positions).__name__
            raise TypeError(f"positions: expected an array of integers, got {kind}")
        if positions.ndim != 1:
            raise ValueError(f"positions: expected shape (any), got {positions.shape}")
        _check_range("positions", positions, _MAX_POSITION + 1)
        angles = (positions.astype(np.float32)[:, None] * self.frequencies).astype(np.float64)
        factor = np.float32(self.attention_factor)
        return _repeated(*((f(angles).astype(np.float32) * factor).astype(BF16) for f in (np.cos, np.sin)))


def softmax_scale(config: Any) -> float:
    """What attention multiplies its scores by: (D + R)^-1/2, with YaRN times m(mscale_all_dim)² (see `RopeTable`).

    A scaling's `apply_yarn_scaling`, which SGLang and vLLM know, is true by default; false leaves (D + R)^-1/2.

    Args:
        config: As for `RopeTable.from_hf`; `qk_nope_head_dim` is read beside the fields that are read there.

    Returns:
        The factor.

    Raises:
        TypeError: As `RopeTable.from_hf`.
        ValueError: As `RopeTable.from_hf`.

    Examples:
        >>> from mla_numba.rope_table import softmax_scale
        >>> softmax_scale({"qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "rope_theta": 10000})
        0.0625
    """
    model = read_model_config(config)
    scale: float = (read_count(model, "qk_nope_head_dim") + read_count(model, "qk_rope_head_dim")) ** -0.5
    yarn = read_yarn(model)
    if yarn is None or not yarn.scales_scores or not yarn.mscale_all_dim:
        return scale
    return scale * _mscale(yarn.factor, yarn.mscale_all_dim) ** 2


def from_half(cos: Array, sin: Array) -> CosSin:
    """From tables with a column for each pair.

    Args:
        cos: Cosines (T, R/2), float32, fp16 or bf16.
        sin: Sines of the same shape and dtype.

    Returns:
        Both as (T, R) bf16, columns i and i + R/2 alike.

    Raises:
        TypeError: A table is of another type or dtype.
        ValueError: It has another shape.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.rope_table import from_half
        >>> angles = np.arange(6, dtype=np.float32).reshape(3, 2)
        >>> from_half(np.cos(angles), np.sin(angles)).cos.shape
        (3, 4)
    """
    _check_pair(cos, sin)
    return _repeated(cos, sin)


def from_interleaved(cos: Array, sin: Array) -> CosSin:
    """From tables that repeat each pair's value side by side: c0, c0, c1, c1, ...

    Args:
        cos: Cosines (T, R), float32, fp16 or bf16.
        sin: Sines of the same shape and dtype.

    Returns:
        Both as (T, R) bf16, columns i and i + R/2 alike.

    Raises:
        TypeError: A table is of another type or dtype.
        ValueError: It has another shape, or the two of a pair differ; the message names a known layout.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.rope_table import from_interleaved
        >>> tables = np.array([[1, 1, 0.5, 0.5]], np.float32)
        >>> from_interleaved(tables, tables).cos.tolist()
        [[1.0, 0.5, 1.0, 0.5]]
    """
    width = _check_pair(cos, sin)
    for name, table in (("cos", cos), ("sin", sin)):
        if width % 2 or not _is_interleaved(table):
            raise ValueError(f"{name}: expected interleaved pairs, got {_layout_of(cos, sin)}")
    return _repeated(cos[:, 0::2], sin[:, 0::2])


def from_cos_sin_cache(cos_sin_cache: Array, positions: Array) -> CosSin:
    """From a table of all positions, as vLLM and SGLang keep it.

    Args:
        cos_sin_cache: R/2 columns of cos and then R/2 of sin (P, R), float32, fp16 or bf16.
        positions: The rows to take (T,), int64 or int32.

    Returns:
        cos and sin (T, R) bf16, columns i and i + R/2 alike.

    Raises:
        TypeError: An array is of another type or dtype.
        ValueError: It has another shape, the table does not hold a position, or its rows are not of that layout.

    Examples:
        >>> import numpy as np
        >>> from mla_numba.rope_table import from_cos_sin_cache
        >>> angles = np.outer(np.arange(100), [1, 0.1])
        >>> kept = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        >>> from_cos_sin_cache(kept, np.array([0, 7])).sin[0].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    check_array("cos_sin_cache", cos_sin_cache, _FLOATS, (None, None))
    if cos_sin_cache.shape[1] < 2 or cos_sin_cache.shape[1] % 2:
        raise ValueError(f"cos_sin_cache: expected an even number of columns, got {cos_sin_cache.shape[1]}")
    check_array("positions", positions, tuple(map(np.dtype, ("int64", "int32"))), (None,))
    _check_range("positions", positions, cos_sin_cache.shape[0])
    rows = cos_sin_cache[positions]
    if not _is_cos_sin(rows):
        raise ValueError("cos_sin_cache: expected columns of cos and then of sin, got rows in which cos² + sin² varies")
    cos, sin = np.split(rows, 2, axis=1)
    return _repeated(cos, sin)


def check_cos_sin(cos: Array, sin: Array, rope_dim: int) -> None:
    """Raises where `cos` and `sin` are not tables as the prolog takes them: (T, R) bf16, columns i and i + R/2 alike.

    A table that fits several layouts, such as that of position 0, is accepted. A call of the prolog itself reads both
    halves as given and checks none of this.

    Args:
        cos: What is to be the cosines.
        sin: What is to be the sines.
        rope_dim: R.

    Raises:
        TypeError: A table is of another type or dtype.
        ValueError: It has another layout, which the message names if it is a known one (interleaved pairs, R/2 columns,
            cos beside sin in one table), or the two are of different angles.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba.rope_table import check_cos_sin
        >>> cos, sin = mla.RopeTable(np.ones(4, np.float32)).at(np.arange(5))
        >>> check_cos_sin(cos, sin, 8)
        >>> check_cos_sin(cos[:, :4], sin[:, :4], 8)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: cos: expected 8 columns whose halves are alike, got half as many, a column a pair; from_half ...
    """
    for name, table in (("cos", cos), ("sin", sin)):
        if not isinstance(table, np.ndarray):
            raise TypeError(f"{name}: expected a NumPy array, got {type(table).__name__}")
        if table.dtype != BF16:
            raise TypeError(f"{name}: expected dtype {BF16}, got {dtype_text(table.dtype)}")
    wanted = f"{rope_dim} columns whose halves are alike"
    if cos.ndim == 2 and cos.shape == sin.shape and 2 * cos.shape[1] == rope_dim:
        raise ValueError(f"cos: expected {wanted}, got half as many, a column a pair; from_half converts")
    for name, table in (("cos", cos), ("sin", sin)):
        check_array(name, table, (BF16,), (len(cos), rope_dim))
        if not _is_halves(table):
            raise ValueError(f"{name}: expected {wanted}, got {_layout_of(cos, sin)}")
    if not _is_one_circle(cos, sin):
        raise ValueError("cos, sin: expected tables of the same angles, got rows in which cos² + sin² varies")


def _repeated(cos: Array, sin: Array) -> CosSin:
    return CosSin(*(np.concatenate([half, half], axis=1).astype(BF16) for half in (cos, sin)))


def _check_pair(cos: Array, sin: Array) -> int:
    check_array("cos", cos, _FLOATS, (None, None))
    check_array("sin", sin, (cos.dtype,), cos.shape)
    return int(cos.shape[1])


def _check_range(name: str, positions: Array, end: int) -> None:
    bad = (positions < 0) | (positions >= end)
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(f"{name}[{at}]: expected 0 to {end - 1}, got {positions[at]}")


def _is_halves(table: Array) -> bool:
    left, right = np.split(table, 2, axis=1)
    return bool((left == right).all())


def _is_interleaved(table: Array) -> bool:
    return bool((table[:, 0::2] == table[:, 1::2]).all())


def _is_one_circle(cos: Array, sin: Array) -> bool:
    """Whether cos² + sin² is one number in each row."""
    squares = cos.astype(FP32) ** 2 + sin.astype(FP32) ** 2
    if not squares.size:
        return True
    return bool((squares.max(axis=1) - squares.min(axis=1) <= _NOISE * squares.max(axis=1)).all())


def _is_cos_sin(table: Array) -> bool:
    return _is_one_circle(*np.split(table, 2, axis=1))


def _layout_of(cos: Array, sin: Array) -> str:
    """What tables whose halves are not alike look like."""
    if cos.shape[1] % 2 == 0:
        if _is_interleaved(cos) and _is_interleaved(sin):
            return "interleaved pairs, columns 2i and 2i + 1 alike; from_interleaved converts"
        if _is_cos_sin(cos) or _is_cos_sin(sin):
            return "cos in the first half and sin in the second, a cos_sin_cache; from_cos_sin_cache converts"
        if _is_halves(cos) and _is_halves(sin):
            return "halves that are alike"
    return "a layout that is none of the known ones"


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _attention_factor(yarn: Yarn) -> float:
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)


def _yarn_range(yarn: Yarn, dim: int, theta: float, where: str) -> tuple[float, float]:
    """Pairs below the first turn as without YaRN, those from the second on `factor` times slower."""

    def pair_that_turns(name: str) -> float:
        """So many times in the trained positions; a fraction of a pair."""
        n_times = getattr(yarn, name)
        ratio = yarn.trained / (n_times * 2 * math.pi)
        if not 0 < ratio < math.inf:
            raise ValueError(f"{where}.{name}: expected a number of turns in {yarn.trained:g} positions, got {n_times}")
        return dim * math.log(ratio) / (2 * math.log(theta))

    low, high = pair_that_turns("beta_fast"), pair_that_turns("beta_slow")
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if high == low else high
