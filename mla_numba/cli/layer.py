"""A layer at random, with an indexer or without, its caches, and how a call on them compares with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Self

from ..base.checks import Array
from ..base.modes import Numerics
from ..cache import PagedCache
from ..call.bind import PrologOutput
from ..indexer_cache import IndexerCache
from ..oracle import bits as verify
from ..oracle.indexer import indexer_prolog_reference
from ..oracle.inputs import Inputs
from ..weights.indexer import IndexerWeights
from ..weights.plain import MlaWeights

__all__ = ["Caches", "Layer", "arrays_of", "mismatches_of"]


class Layer(NamedTuple):
    """The weights of a prolog, and of the indexer beside it, if there is one."""

    weights: MlaWeights
    indexer: IndexerWeights | None = None


class Caches(NamedTuple):
    """The cache of a prolog, and the keys of its indexer."""

    latents: PagedCache
    keys: IndexerCache | None = None

    def arrays(self) -> list[Array]:
        """The arrays of both."""
        return [*self.latents.arrays().values(), *([] if self.keys is None else self.keys.arrays().values())]

    def copy(self) -> Self:
        """Both with arrays of their own."""
        return type(self)(self.latents.copy(), None if self.keys is None else self.keys.copy())


def arrays_of(out: PrologOutput) -> list[Array]:
    """The arrays that a call returned, those of an indexer too."""
    found = [*out, *([] if out.indexer is None else out.indexer)]
    return [array for array in found if array is not None]


def mismatches_of(
    layer: Layer, inputs: Inputs, before: Caches, out: PrologOutput, after: Caches, numerics: Numerics = "pypto"
) -> list[verify.Mismatch]:
    """How outputs and caches differ from what the reference makes of the same inputs and the caches of before."""
    want = verify.reference_run(layer.weights, *inputs, before.latents, numerics=numerics)
    found = verify.check_output(out, after.latents, want)
    if layer.indexer is None or before.keys is None or after.keys is None or out.indexer is None:
        return found
    assert want.q_norm_scale is not None
    x, cos, sin, slots = inputs
    of_indexer = indexer_prolog_reference(
        layer.indexer, x, want.q_norm, want.q_norm_scale, cos, sin, slots, before.keys
    )
    return [*found, *_of_indexer(verify.check_indexer_output(out.indexer, after.keys, of_indexer))]


def _of_indexer(found: Sequence[verify.Mismatch]) -> list[verify.Mismatch]:
    """With names that tell them from the prolog's."""
    return [replace(mismatch, name=f"indexer.{mismatch.name}") for mismatch in found]
