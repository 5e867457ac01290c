"""What vector code needs of a latent's columns: whole runs, and scales whose products are normal numbers or zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit.callee import by_dtype, inlined
from ..kinds import Index
from ..scalars import NONE_NONZERO, window
from .dequantise import least_of_tame
from .source import Columns, Source, scale_of

__all__ = ["fall_in_runs", "least_of_all"]


@inlined
def _whole_codes(source: Source, columns: Columns, unit: Index, has: bool) -> bool:
    return (
        has and source.c0 % unit == 0 and source.group % unit == 0 and columns.n % unit == 0
        and columns.left_in_run % unit == 0 and columns.left_in_group % unit == 0
    )  # fmt: skip


@inlined
def _whole_values(source: Source, columns: Columns, unit: Index, has: bool) -> bool:
    return source.c0 % unit == 0 and columns.n % unit == 0 and columns.left_in_run % unit == 0


@by_dtype("source.latents", {np.int8: _whole_codes}, otherwise=_whole_values, inline=True)
def fall_in_runs(source: Source, columns: Columns, unit: Index, has: bool) -> Any:
    """Whether columns fall into runs of `unit` elements, side by side and of one scale, and there is code for codes."""


@inlined
def least_of_all(source: Source, scales: Index, columns: Columns) -> Index:
    """The least of what `least_of_tame` says of the scales of columns: below 0 where one is wild."""
    least, at = NONE_NONZERO, scales + columns.group
    for _ in range(-(source.group - columns.left_in_group), columns.n, source.group):
        least, at = min(least, least_of_tame(scale_of(window(source.scales, at, 1)[0]))), at + 1
    return np.int32(least)
