"""What a call of the indexer's prolog returns."""

from __future__ import annotations

from typing import NamedTuple

from ..base.checks import Array
from ..base.short_repr import arrays_text, short_repr

__all__ = ["IndexerOutput"]


class IndexerOutput(NamedTuple):
    """What the lightning index takes of the tokens of a call. `indexer_prolog_reference` has an example.

    | field       | shape       | dtype                                                      |
    |-------------|-------------|------------------------------------------------------------|
    | query       | (T, Ni, Di) | int8 codes, `real = code * query_scale`                    |
    | query_scale | (T, Ni, 1)  | fp16                                                       |
    | weights     | (T, Ni)     | fp16: of each head's scores in their sum, may be negative  |
    """

    query: Array
    query_scale: Array
    weights: Array

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))
