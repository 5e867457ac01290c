"""What a call of the indexer's prolog returns."""

from __future__ import annotations

from typing import NamedTuple

from ..base.checks import Array
from ..base.short_repr import arrays_text, short_repr

__all__ = ["IndexerOutput"]


class IndexerOutput(NamedTuple):
    """What the lightning index takes of the tokens of a call.

    | field       | shape       | dtype                                                      |
    |-------------|-------------|------------------------------------------------------------|
    | query       | (T, Ni, Di) | int8 codes, `real = code * query_scale`                    |
    | query_scale | (T, Ni, 1)  | fp16                                                       |
    | weights     | (T, Ni)     | fp16: of each head's scores in their sum, may be negative  |

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> codes, scale = np.ones((3, 64, 128), np.int8), np.full((3, 64, 1), 0.5, np.float16)
        >>> out = mla.IndexerOutput(codes, scale, np.ones((3, 64), np.float16))
        >>> out
        <IndexerOutput: query (3, 64, 128) int8, query_scale (3, 64, 1) float16, weights (3, 64) float16, 25.3 kB>
    """

    query: Array
    query_scale: Array
    weights: Array

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))
