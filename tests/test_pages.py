"""Block tables, lengths and tokens of sequences: what is made of them, and what is refused."""

import re

import numpy as np
import pytest

from mla_numba.attention.pages import Pages

TABLE = np.array([[3, 0, -1], [1, 2, 4]], np.int32)


def pages(t=4, table=TABLE, act_seq=(7, 12), starts=None, n_blocks=5):
    lengths = np.array(act_seq, np.int32)
    starts = None if starts is None else np.array(starts, np.int64)
    return Pages.of(t, table, lengths, starts, block_size=4, n_blocks=n_blocks)


def test_tokens_of_one_length():
    made = pages()
    assert made.query_start_loc.tolist() == [0, 2, 4]
    assert made.sequences.tolist() == [0, 0, 1, 1]
    assert made.limits.tolist() == [6, 7, 11, 12]
    made.check_mapped()


def test_ragged_tokens():
    made = pages(5, starts=[0, 5, 5], act_seq=(3, 12))
    assert made.sequences.tolist() == [0] * 5
    assert made.limits.tolist() == [0, 0, 1, 2, 3]
    made.check_mapped()


def test_no_tokens():
    for made in (pages(0), pages(0, starts=[0, 0, 0]), pages(0, TABLE[:0], ())):
        assert made.limits.shape == made.sequences.shape == (0,)
        made.check_mapped()  # no key is needed


def test_copies_are_held():
    table = TABLE.copy()
    made = pages(table=table)
    table[...] = 99
    assert made.block_table.tolist() == TABLE.tolist()


def test_calls_of_the_same_tokens_have_limits_of_their_own():
    for starts in (None, [0, 2, 4]):
        first = pages(starts=starts)
        first.limits[...] = 0
        assert pages(starts=starts).limits.tolist() == [6, 7, 11, 12]
        assert pages(starts=starts, act_seq=(1, 2)).limits.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("act_seq", "starts", "n_blocks", "said"),
    [
        ((9, 12), None, 5, "block_table[0, 2]: expected a block from 0 to below 5, since act_seq[0] is 9 "
                          "in blocks of 4, got -1"),
        ((7, 12), None, 4, "block_table[1, 2]: expected a block from 0 to below 4, since act_seq[1] is 12 "
                          "in blocks of 4, got 4"),
    ],
)  # fmt: skip
def test_a_block_that_is_missing(act_seq, starts, n_blocks, said):
    made = pages(act_seq=act_seq, starts=starts, n_blocks=n_blocks)
    with pytest.raises(ValueError, match=re.escape(said)):
        made.check_mapped()


def test_a_sequence_without_tokens_needs_no_block():
    pages(2, act_seq=(12, 12), starts=[0, 0, 2]).check_mapped()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"table": TABLE.astype(np.float32)}, TypeError, "block_table: expected dtype int32 or int64, got float32"),
        ({"table": TABLE[0]}, ValueError, "block_table: expected a matrix, got shape (3,)"),
        ({"table": TABLE[:1]}, ValueError, "block_table: expected 2 rows as act_seq, got 1"),
        ({"act_seq": (7, 13)}, ValueError, "act_seq[1]: expected 0 to 12 (3 blocks of 4 slots), got 13"),
        ({"act_seq": (-1, 3)}, ValueError, "act_seq[0]: expected 0 to 12 (3 blocks of 4 slots), got -1"),
        ({"t": 3}, ValueError, "act_seq: expected a number of sequences that divides the 3 tokens (or a "
                               "query_start_loc), got 2"),
        ({"t": 3, "table": TABLE[:0], "act_seq": ()}, ValueError, "act_seq: expected a number of sequences"),
        ({"starts": [0, 4]}, ValueError, "query_start_loc: expected shape (3,), got (2,)"),
        ({"starts": [0, 2, 3]}, ValueError, "query_start_loc: expected 0 first and 4 tokens last, got 0 and 3"),
        ({"starts": [1, 2, 4]}, ValueError, "query_start_loc: expected 0 first and 4 tokens last, got 1 and 4"),
        ({"starts": [0, 5, 4]}, ValueError, "query_start_loc[2]: expected at least 5, as before it, got 4"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, error, said):
    with pytest.raises(error, match=re.escape(said)):
        pages(**arguments)
