"""How a list of selected keys agrees with the oracle's: equal, the same keys, or others that score as much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..base.checks import Array, check_number, expect_array
from ..base.short_repr import short_repr
from .arrays import F32
from .lightning_index import best_positions, scores_of_tokens

if TYPE_CHECKING:
    from ..call.indexer import IndexerOutput
    from ..indexer_cache import IndexerCache

__all__ = ["IndexAgreement", "compare_index"]


@dataclass(frozen=True, slots=True)
class IndexAgreement:
    """How the selected keys of all tokens agree with the oracle's. `compare_index` has an example.

    | field         | meaning                                                                                    |
    |---------------|--------------------------------------------------------------------------------------------|
    | `n_tokens`    | tokens: each is one of the four kinds that follow                                          |
    | `n_same_list` | whose list is the oracle's, position by position                                           |
    | `n_same_keys` | whose keys are the oracle's, in another order                                              |
    | `n_close`     | with other keys, all of whose scores are close to the last one of the oracle's list        |
    | `n_wrong`     | with a key whose score is not close, that is not seen or listed twice, or with too few keys |
    | `first_wrong` | the first of these tokens, None where there is none                                        |
    | `reason`      | what is wrong there                                                                        |
    """

    n_tokens: int
    n_same_list: int
    n_same_keys: int
    n_close: int
    n_wrong: int
    first_wrong: int | None
    reason: str

    def __repr__(self) -> str:
        return short_repr(self, str(self))

    def __str__(self) -> str:
        text = (
            f"{self.n_same_list} of {self.n_tokens} lists equal, {self.n_same_keys} in another order, "
            f"{self.n_close} with others of close scores, {self.n_wrong} wrong"
        )
        return text if self.first_wrong is None else f"{text}; first at token {self.first_wrong}: {self.reason}"

    @property
    def exact(self) -> bool:
        """Whether every list is the oracle's."""
        return self.n_same_list == self.n_tokens

    @property
    def passed(self) -> bool:
        """Whether no token's keys are wrong."""
        return not self.n_wrong


def compare_index(
    got: Array,
    out: IndexerOutput,
    cache: IndexerCache,
    block_table: Array,
    act_seq: Array,
    *,
    query_start_loc: Array | None = None,
    relative: float = 1e-4,
) -> IndexAgreement:
    """Compares the keys that another operator selected with those that the oracle does.

    Where scores are nearly equal, another order of sums selects other keys. So a key that only one of the two has
    passes if its score differs from that of the last of the oracle's keys by at most `relative` times the latter, as in
    the test of CANN's operator.

    Args:
        got: The selected positions (T, k), int32 or int64, and -1 behind them.
        out: As for `lightning_index_reference`.
        cache: As for `lightning_index_reference`.
        block_table: As for `lightning_index_reference`.
        act_seq: As for `lightning_index_reference`.
        query_start_loc: As for `lightning_index_reference`.
        relative: Of the last key's score.

    Returns:
        How many tokens agree, and how.

    Raises:
        TypeError: `got` or `relative` is of another type.
        ValueError: `got` has another number of tokens, or what `lightning_index_reference` raises.

    Examples:
        >>> import numpy as np
        >>> import mla_numba as mla
        >>> from mla_numba.tolerance import compare_index
        >>> cache = mla.IndexerCache.allocate(mla.IndexerDims(256, 96, 1, 64, 32), n_blocks=1, block_size=4)
        >>> cache.k[...], cache.k_scale[...] = 64, np.arange(4).reshape(1, 4, 1, 1)
        >>> one = np.ones((1, 1), np.float16)
        >>> arguments = mla.IndexerOutput(np.full((1, 1, 64), 64, np.int8), one[..., None], one), cache
        >>> arguments += np.array([[0]]), np.array([4])
        >>> print(compare_index(np.array([[2, 3]]), *arguments))
        0 of 1 lists equal, 1 in another order, 0 with others of close scores, 0 wrong
        >>> print(compare_index(np.array([[3, 1]]), *arguments).reason)
        position 1 scores 128, the last of the 2 best 256
    """
    expect_array("got", got, (np.dtype(np.int32), np.dtype(np.int64)))
    if got.ndim != 2 or len(got) != len(out.query):
        raise ValueError(f"got: expected shape ({len(out.query)}, any), got {got.shape}")
    relative = check_number("relative", relative)
    counts = {"list": 0, "keys": 0, "close": 0, "wrong": 0}
    first_wrong, reason = None, ""
    for token, scores in enumerate(scores_of_tokens(out, cache, block_table, act_seq, query_start_loc)):
        kind, why = _compare(got[token].tolist(), scores, relative)
        counts[kind] += 1
        if kind == "wrong" and first_wrong is None:
            first_wrong, reason = token, why
    n_lists = (counts["list"], counts["keys"], counts["close"], counts["wrong"])
    return IndexAgreement(len(got), *n_lists, first_wrong, reason)


def _compare(row: list[int], scores: F32, relative: float) -> tuple[str, str]:
    """The kind of one token's list, and what is wrong with it."""
    want = best_positions(scores, len(row))
    n = len(want)
    if row == want + [-1] * (len(row) - n):
        return "list", ""
    listed = row[:n]
    wrong = [p for p in listed if not 0 <= p < len(scores)]
    if wrong:
        return "wrong", f"expected {n} of positions 0 to {len(scores) - 1}, got {wrong[0]}"
    if any(p != -1 for p in row[n:]):
        return "wrong", f"expected -1 behind {n} positions, got {next(p for p in row[n:] if p != -1)}"
    if len({*listed}) < n:
        return "wrong", f"expected each position once, got {next(p for p in listed if listed.count(p) > 1)} again"
    last = float(scores[want[-1]])
    for position in sorted({*listed} ^ {*want}):
        score = float(scores[position])
        if not (score == last or abs(score - last) <= relative * abs(last)):
            return "wrong", f"position {position} scores {score:g}, the last of the {n} best {last:g}"
    return "keys" if {*listed} == {*want} else "close", ""
