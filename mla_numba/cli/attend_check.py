"""A step of sparse attention held against the NumPy reference, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..call.indexer import IndexerOutput
from ..oracle import bits as verify
from ..oracle.inputs import Inputs
from ..oracle.lightning_index import lightning_index_reference
from ..oracle.sparse_attention import sparse_attention_reference
from ..prolog import IndexedOutput, PrologOutput
from .attend_step import Results, Step
from .layer import Caches, mismatches_of

__all__ = ["check_step", "tokens_to_check"]


def tokens_to_check(t: int, which: str) -> list[int]:
    """The tokens that are compared: of "some" the first and the last, which are of different sequences if it can be."""
    if which == "none":
        return []
    return list(range(t)) if which == "all" else sorted({0, t - 1})


def check_step(
    step: Step, before: Caches, results: Results, tokens: Sequence[int], advance: Callable[[], None]
) -> list[verify.Mismatch]:
    """How the results of these tokens differ from the reference's; `advance` is called after each token.

    Each stage is held against the reference of the stage's own arguments. A token's bits depend on it alone. So the
    reference computes the tokens that are asked for; if these are all, the whole caches are compared with what they
    should be, else the rows of these tokens.
    """
    some = list(tokens)
    inputs = Inputs(*(array[some] for array in step.inputs))
    # Where other tokens wrote rows, too, the reference writes its own over what is there.
    base = before if len(some) == step.t else step.caches
    found = mismatches_of(step.layer, inputs, base, _of_tokens(results.out, some), step.caches)
    for token in some:
        found += _check_token(step, results, token)
        advance()
    return found


def _of_tokens(out: PrologOutput, tokens: Sequence[int]) -> IndexedOutput:
    some = list(tokens)
    arrays = [None if array is None else array[some] for array in out]
    assert out.indexer is not None
    return IndexedOutput(arrays, IndexerOutput(*(array[some] for array in out.indexer)))


def _check_token(step: Step, results: Results, token: int) -> list[verify.Mismatch]:
    """The list of a token, and its attention over the list that was found."""
    assert step.caches.keys is not None
    one, sequence = [token], int(step.pages.sequences[token])
    out = _of_tokens(results.out, one)
    seen = step.block_table[sequence : sequence + 1], np.array([step.pages.limits[token]], np.int32)
    index = lightning_index_reference(out.indexer, step.caches.keys, *seen, step.k)
    latent = sparse_attention_reference(out, step.caches.latents, results.positions[one], *seen, step.softmax_scale)
    pairs = {"index": (results.positions[one], index), "latent": (results.latent[one], latent)}
    found = [verify.compare_bits(name, got, want) for name, (got, want) in pairs.items()]
    return [replace(mismatch, name=f"{mismatch.name} of token {token}") for mismatch in found if mismatch is not None]
