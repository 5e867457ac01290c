"""Block tables, lengths and tokens of sequences: what is made of them, and what is refused."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mla_numba.attention.pages import Pages, _checked_copies, recent_pages
from mla_numba.kernels.pages import MAPPED, UNMAPPED, WRONG, read_pages

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


def some_arguments(rng):
    """Block tables, lengths and starts, right or wrong in some places, near their bounds."""
    n_sequences, width, t = rng.integers(0, 4), rng.integers(0, 4), int(rng.integers(0, 7))
    dtype = rng.choice([np.int32, np.int64])
    table = rng.integers(-1, 6, (n_sequences, width)).astype(dtype)
    lengths = rng.integers(0, width * 4 + 1, n_sequences).astype(dtype)
    starts = np.sort(rng.integers(0, t + 1, n_sequences + 1)).astype(dtype)
    starts[0], starts[-1] = 0, t
    for array in (table, lengths, starts):
        if array.size and rng.random() < 0.3:
            array.flat[rng.integers(array.size)] += rng.choice([-1, 1, -20, 20])
    return t, table, lengths, None if rng.random() < 0.4 else starts


def words_on(t, table, lengths, starts):
    """What the checks in words say, which are plain Python and NumPy; None where all is right."""
    try:
        _checked_copies(t, table, lengths, starts, 4)
    except ValueError as error:
        return str(error)
    return None


def test_compiled_code_finds_wrong_what_the_words_do():
    rng = np.random.default_rng(0)
    seen = {WRONG: 0, UNMAPPED: 0, MAPPED: 0}
    for _ in range(3000):
        t, table, lengths, starts = some_arguments(rng)
        n_sequences, width = table.shape
        sizes = (n_sequences, width), n_sequences, n_sequences + 1, t, t
        made = tuple(np.full(size, -9, np.int64) for size in sizes)
        none = np.zeros(0, table.dtype)
        found = read_pages((table, lengths, none if starts is None else starts), made, t, width * 4, 4, 5)
        said = words_on(t, table, lengths, starts)
        seen[found] += 1
        assert (found == WRONG) == (said is not None), (t, table, lengths, starts, said)
        if said is not None:
            with pytest.raises(ValueError, match=re.escape(said)):
                pages(t, table, lengths, starts)
            continue
        kept, act_seq, begins, sequences, limits = (array.tolist() for array in made)
        assert (kept, act_seq) == (table.tolist(), lengths.tolist())
        each = t // max(n_sequences, 1)
        assert begins == ([each * i for i in range(n_sequences + 1)] if starts is None else starts.tolist())
        assert sequences == [b for b in range(n_sequences) for _ in range(begins[b], begins[b + 1])]
        assert limits == [max(act_seq[b] - (begins[b + 1] - 1 - i), 0) for i, b in enumerate(sequences)]
        needed = [kept[b][: -(-act_seq[b] // 4)] for b in sorted(set(sequences))]
        assert (found == MAPPED) == all(0 <= block < 5 for row in needed for block in row), (table, lengths, begins)
    assert min(seen.values()) > 100, seen


@pytest.mark.parametrize(("found", "said"), [(WRONG, "the checks to agree"), (UNMAPPED, "a block that is missing")])
def test_what_the_words_do_not_find_is_no_silent_error(monkeypatch, found, said):
    monkeypatch.setattr("mla_numba.attention.pages.read_pages", lambda *given: read_pages(*given) * 0 + found)
    with pytest.raises(AssertionError, match=said):
        pages().check_mapped()


def recent(table, lengths, starts=None, t=4, n_blocks=5):
    return recent_pages(t, table, lengths, starts, block_size=4, n_blocks=n_blocks)


LENGTHS = np.array([7, 12], np.int32)


def test_pages_of_the_same_numbers_are_made_once():
    first, kept = recent(TABLE, LENGTHS)
    again, kept_again = recent(TABLE.copy(), LENGTHS.copy())
    assert again is first
    assert kept_again is kept
    starts = np.array([0, 1, 4], np.int32)
    others = [
        recent(TABLE, LENGTHS, starts),
        recent(TABLE, LENGTHS - 1),
        recent(TABLE[::-1].copy(), LENGTHS),
        recent(TABLE, LENGTHS, n_blocks=6),
        recent(TABLE, LENGTHS, t=2),
        recent(TABLE.astype(np.int64), LENGTHS.astype(np.int64)),
    ]
    assert len({id(kept), *(id(made) for _, made in others)}) == 7
    assert others[0][0].sequences.tolist() == [0, 1, 1, 1]
    assert others[1][0].act_seq.tolist() == [6, 11]
    assert others[2][0].block_table.tolist() == TABLE[::-1].tolist()
    assert others[5][0].block_table.tolist() == TABLE.tolist()


def test_numbers_that_change_in_place_are_others():
    table, lengths = TABLE.copy(), LENGTHS.copy()
    first, _ = recent(table, lengths)
    table[0, 0], lengths[1] = 1, 9
    second, _ = recent(table, lengths)
    assert first.block_table.tolist() == TABLE.tolist()
    assert second.block_table[0, 0] == 1
    assert second.act_seq.tolist() == [7, 9]
    lengths[1] = 13
    for _ in range(2):  # what is wrong is never kept
        with pytest.raises(ValueError, match=re.escape("act_seq[1]: expected 0 to 12")):
            recent(table, lengths)


@pytest.mark.parametrize("form", ["read-only", "strided", "other byte order", "mixed", "large"])
def test_unusual_arrays_are_made_anew_each_time(form, monkeypatch):
    table, lengths = TABLE.copy(), LENGTHS.copy()
    if form == "read-only":
        table.flags.writeable = False
    elif form == "strided":
        table = np.repeat(table, 2, axis=1)[:, ::2]
    elif form == "other byte order":
        with pytest.raises(TypeError, match="act_seq: expected dtype"):
            recent(table, lengths.astype(lengths.dtype.newbyteorder()))
        return
    elif form == "mixed":
        lengths = lengths.astype(np.int64)
    else:
        monkeypatch.setattr("mla_numba.attention.pages._RECENT_BYTES", 8)
    made = [recent(table, lengths)[0] for _ in range(2)]
    assert made[0] is not made[1]
    for each in made:
        assert each.block_table.tolist() == TABLE.tolist()
        assert each.limits.tolist() == [6, 7, 11, 12]


def test_threads_with_tables_of_their_own():
    def check(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            table, lengths = rng.integers(0, 5, (2, 3)).astype(np.int32), rng.integers(4, 13, 2).astype(np.int32)
            made, kept = recent(table, lengths)
            assert made.block_table.tolist() == table.tolist()
            assert made.act_seq.tolist() == lengths.tolist()
            assert kept.setdefault("of", made) is made

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(check, range(6)))
