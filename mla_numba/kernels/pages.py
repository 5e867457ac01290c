"""What Python asks of block tables: are they right, and what follows of them?

In Python each question is a function of NumPy, whose code comes from memory where other work has swept the caches.
"""

from __future__ import annotations

from .jit.callee import callee
from .kinds import Index, Int64
from .launch import asked

__all__ = ["MAPPED", "UNMAPPED", "WRONG", "read_pages", "take"]

MAPPED, UNMAPPED, WRONG = range(3)


@callee
def take(given: Int64, copy: Int64) -> None:
    """Copies an array of int32 or int64."""
    values, copies = given.reshape(-1), copy.reshape(-1)
    for i in range(len(copies)):
        copies[i] = values[i]


@callee
def _take_starts(t: Index, starts: Int64, copy: Int64) -> bool:
    """Where each sequence begins; whether that is right."""
    n = len(copy) - 1
    if len(starts) == 0:  # as many tokens each
        each = t // max(n, 1)
        for i in range(n + 1):
            copy[i] = i * each
    else:
        take(starts, copy)
    rises = copy[0] == 0 and copy[n] == t
    for i in range(n):
        rises &= copy[i] <= copy[i + 1]
    return rises


@callee
def _see(starts: Int64, act_seq: Int64, sequences: Int64, limits: Int64) -> None:
    """The sequence of each token, and how many keys it sees."""
    for b in range(len(act_seq)):
        for token in range(starts[b], starts[b + 1]):
            sequences[token] = b
            limits[token] = max(act_seq[b] - (starts[b + 1] - 1 - token), 0)


@callee
def _is_mapped(table: Int64, act_seq: Int64, starts: Int64, block_size: Index, n_blocks: Index) -> bool:
    """Whether the blocks of all keys are in the cache; of a sequence without tokens none is needed."""
    mapped = True
    for b in range(len(act_seq)):
        n_used = (act_seq[b] + block_size - 1) // block_size if starts[b] < starts[b + 1] else 0
        for i in range(n_used):
            mapped &= 0 <= table[b, i] < n_blocks
    return mapped


@asked
def read_pages(
    given: tuple[Int64, Int64, Int64], made: tuple[Int64, Int64, Int64, Int64, Int64], t: Index, longest: Index,
    block_size: Index, n_blocks: Index,
) -> int:  # fmt: skip
    """Copies tables, lengths and starts, and makes the rest of `attention.pages.Pages`: see there.

    given: block_table (B, blocks), act_seq (B,) and query_start_loc (B + 1,), or (0,) for as many tokens each; all
    int32 or all int64. made: the arrays of `Pages`. A sequence has at most `longest` keys. Returns WRONG where a length
    or a start is, after which only the copies are good; else whether all keys are MAPPED.
    """
    table, act_seq, starts, sequences, limits = made
    take(given[0], table)
    take(given[1], act_seq)
    right = _take_starts(t, given[2], starts)
    for b in range(len(act_seq)):
        right &= 0 <= act_seq[b] <= longest
    if not right:
        return WRONG
    _see(starts, act_seq, sequences, limits)
    return MAPPED if _is_mapped(table, act_seq, starts, block_size, n_blocks) else UNMAPPED
