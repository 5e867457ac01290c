"""`lightning_index` gives the oracle's list, whatever the keys, the cache and the threads, and says what is wrong."""

import re
import threading
import tracemalloc

import numpy as np
import pytest
from helpers.lightning_calls import Shape, assert_same_list, check_random_calls, make_call, reference_of

from mla_numba import IndexerCache, IndexerOutput, MlaDims, PagedCache, lightning_index
from mla_numba.attention import lightning, pages
from mla_numba.attention.lightning import GROUP, MAX_HEAD_DIM, MAX_K, TOKENS
from mla_numba.kernels.lightning.keys import TILE
from mla_numba.kernels.lightning.panel import SPLIT, half_of

SMALL = Shape((2, 2), 20, 3, 8, 4, 6)


@pytest.fixture(autouse=True)
def _small_calls_have_several_threads(monkeypatch):
    monkeypatch.setattr(lightning, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(pages, "_recent", ())  # how tokens are shared stays with the pages


def test_random_calls():
    check_random_calls(40)


@pytest.mark.parametrize("kind", ["random", "ties", "zeros"])
def test_buffers_that_are_full_more_than_once(kind):
    """A buffer holds 3 * k + TILE ranks."""
    for n_keys in (4 * TILE, 4 * TILE + 1, 7 * TILE + 5):
        assert_same_list(make_call(Shape((1, 3), n_keys, 2, 5, 128, 3), kind, n_keys))


def test_scores_that_rise_and_that_fall():
    """All keys come into the buffer, or none after the first."""
    n = 5 * TILE
    for order in (1, -1):
        call = make_call(Shape((1,), n, 1, 32, 64, 9))
        for array in (*call.out, call.cache.k):
            array[...] = 127
        call.act_seq[...], call.block_table[...] = n, np.arange(call.block_table.size)
        call.cache.k_scale[...].reshape(-1)[:n] = np.arange(n)[::order]
        assert_same_list(call)


def test_more_tokens_than_share_a_tile_or_a_call():
    for tokens in ((GROUP + 1,), (TOKENS + 6,), (1,) * (TOKENS + 2), (3, 0, 64, 1)):
        assert_same_list(make_call(Shape(tokens, 70, 2, 32, 16, 8), "random", len(tokens)))


@pytest.mark.parametrize("k", [1, 2047, 2048, MAX_K])
def test_the_longest_lists(k):
    assert_same_list(make_call(Shape((1, 2), 2100, 1, 3, 100, k), "ties", k))


@pytest.mark.parametrize("k", [1023, 1024, 1800])
@pytest.mark.parametrize("n_keys", [40, 6400])
def test_a_list_that_threads_share(k, n_keys):
    """That of one token, where it is long; with fewer keys than that, too."""
    for kind in ("random", "ties"):
        assert_same_list(make_call(Shape((1,), n_keys, 1, 3, 100, k), kind, k))


def test_no_tokens_and_no_keys():
    for tokens in ((), (0,), (0, 0)):
        call = make_call(SMALL._replace(tokens=tokens))
        assert call.index(None).shape == (0, SMALL.k)
    call = make_call(SMALL)
    call.act_seq[...], call.block_table[...] = 0, -1
    assert (call.index(None) == -1).all()
    call = make_call(SMALL._replace(tokens=(4, 1), n_keys=8))
    call.act_seq[0] = 2  # two tokens see no key, the others one and two
    assert reference_of(call)[:2].tolist() == [[-1] * SMALL.k] * 2
    assert_same_list(call)


def test_zeros_of_both_signs_are_equal_and_nan_comes_first():
    call = make_call(Shape((1,), 8, 1, 32, 8, 8))
    call.act_seq[...] = 8
    for array in (*call.out, call.cache.k):
        array[...] = 64
    scales = call.cache.k_scale[call.block_table[0, 0]].reshape(-1)
    scales[...] = [0, -0.0, 1, np.nan, -1, np.inf, 0, np.nan]
    assert call.index(1).tolist() == [[3, 7, 5, 2, 0, 1, 6, 4]]
    assert_same_list(call)


def test_a_token_that_is_not_a_number_concerns_no_other():
    call = make_call(SMALL._replace(n_keys=40), seed=3)
    want = call.index(1)
    call.out.weights[1, 0] = np.nan
    got = call.index(1)
    seen = int(call.act_seq[0])
    assert got[1].tolist() == [*range(min(seen, SMALL.k))]
    assert (got[[0, 2, 3]] == want[[0, 2, 3]]).all()


def test_entries_of_the_table_that_nobody_needs():
    call = make_call(SMALL)
    call.act_seq[...] = 5
    want = call.index(1)
    call.block_table[:, 2:] = 10**6
    assert (call.index(1) == want).all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_tables_of_either_integer_and_of_any_strides(dtype):
    call = make_call(SMALL)
    table, lengths = (np.repeat(a.astype(dtype), 2, axis=-1)[..., ::2] for a in (call.block_table, call.act_seq))
    assert (lightning_index(call.out, call.cache, table, lengths, call.k) == call.index(1)).all()


def test_arrays_are_only_read():
    call = make_call(SMALL)
    arrays = (*call.out, call.cache.k, call.cache.k_scale, call.block_table, call.act_seq)
    before = [array.tobytes() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    cache = IndexerCache(call.cache.k, call.cache.k_scale)
    assert (call._replace(cache=cache).index(1) == reference_of(call)).all()
    assert [array.tobytes() for array in arrays] == before


def test_calls_at_the_same_time():
    calls = [make_call(SMALL._replace(n_keys=300, k=k), seed=k) for k in (1, 5, 40)]
    wrong = []

    def work(call):
        want = reference_of(call)
        wrong.extend(i for i in range(30) if (call.index(1 + i % 2) != want).any())

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_eleven_bits_are_fp16s():
    """Of every dot product: they are multiples of 2**-11 of 1008 at most, with keys of 128 elements."""
    dots = np.arange(128 * 128 * 128 + 1, dtype=np.int32).astype(np.float32)
    fp16 = (dots * np.float32(2**-11)).astype(np.float16).astype(np.float32)
    assert (half_of(dots) * np.float32(2**-11) == fp16).all()
    assert SPLIT == 2**13 + 1


def test_eleven_bits_of_any_number_of_24():
    numbers = np.arange(2**23, 2**24, dtype=np.uint32).astype(np.float32)
    bits = numbers.view(np.uint32)
    even = (bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)
    assert (half_of(numbers) == even.view(np.float32)).all()


@pytest.mark.parametrize(("n_keys", "n_workers"), [(16, 1), (17, 1), (100, 1), (4096, 2), (2**20, 3)])
def test_a_thread_has_enough_to_do(monkeypatch, n_keys, n_workers):
    monkeypatch.undo()
    launched = []
    monkeypatch.setattr(lightning, "lightning_tile", lambda n_threads, *_: launched.append(n_threads))
    call = make_call(Shape((1,), 4, 64, 128, 16, 4))
    table = np.zeros((1, n_keys), np.int64)
    monkeypatch.setattr(lightning, "max_threads", lambda: 3)
    lightning_index(call.out, call.cache, table, np.array([n_keys]), 4, n_threads=3)
    assert launched == [n_workers]


def test_a_bad_block_is_an_error_before_anything_is_written():
    call = make_call(SMALL)
    call.block_table[1, 0] = -1
    with pytest.raises(ValueError, match=re.escape("block_table[1, 0]: expected a block from 0 to below")):
        call.index(1)


def changed(**changes):
    call = make_call(SMALL)
    fields = call.out._asdict() | {k: v for k, v in changes.items() if k in call.out._fields}
    arguments = call._asdict() | {k: v for k, v in changes.items() if k not in call.out._fields}
    return arguments | {"out": arguments["out"] if "out" in changes else IndexerOutput(**fields)}


OUT = make_call(SMALL).out


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"out": tuple(OUT)}, TypeError, "out: expected IndexerOutput, got tuple"),
        ({"cache": PagedCache.allocate(MlaDims(256, 4, 96, 64, 32, 32), 1)}, TypeError,
         "cache: expected IndexerCache, got PagedCache"),
        ({"cache": IndexerCache(np.zeros((1, 1, 1, MAX_HEAD_DIM + 1), np.int8), np.zeros((1, 1, 1, 1), np.float16))},
         ValueError, f"cache: expected keys of at most {MAX_HEAD_DIM} elements, got {MAX_HEAD_DIM + 1}"),
        ({"query": OUT.query.astype(np.int16)}, TypeError, "query: expected dtype int8, got int16"),
        ({"query": OUT.query[:, :, :4]}, ValueError, "query: expected shape (any, any, 8), got (4, 3, 4)"),
        ({"query": OUT.query[:, ::-1]}, ValueError, "query: expected a C-contiguous array, got strides"),
        ({"query": OUT.query[:, :0]}, ValueError, "query: expected at least one head, got shape (4, 0, 8)"),
        ({"query_scale": OUT.query_scale[..., 0]}, ValueError, "query_scale: expected shape (4, 3, 1), got (4, 3)"),
        ({"query_scale": OUT.query_scale.astype(np.float32)}, TypeError, "query_scale: expected dtype float16, got"),
        ({"weights": OUT.weights[:3]}, ValueError, "weights: expected shape (4, 3), got (3, 3)"),
        ({"block_table": [[0]]}, TypeError, "block_table: expected a NumPy array, got list"),
        ({"act_seq": np.array([1, 2, 3])}, ValueError, "block_table: expected 3 rows as act_seq, got 2"),
        ({"act_seq": np.array([5.0, 5.0])}, TypeError, "act_seq: expected dtype int32 or int64, got float64"),
        ({"query_start_loc": np.array([0, 4])}, ValueError, "query_start_loc: expected shape (3,), got (2,)"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"k": MAX_K + 1}, ValueError, f"k: expected at most {MAX_K}, got {MAX_K + 1}"),
        ({"k": 2.0}, TypeError, "k: expected int, got float"),
        ({"n_threads": 0}, ValueError, "n_threads: expected at least 1, got 0"),
        ({"n_threads": 10**6}, ValueError, "n_threads: expected at most Numba's"),
    ],
)  # fmt: skip
def test_what_is_refused(changes, error, said):
    with pytest.raises(error, match=f"^{re.escape(said)}"):
        lightning_index(**changed(**changes))


def test_memory_does_not_grow_with_the_context():
    """A thread holds at most 64 buffers of 3 * k ranks and a tile's more: 3.3 MB for k = 2048."""
    peaks = []
    for n_keys in (2**13, 2**17):
        call = make_call(Shape((64,), n_keys, 1, 1, 1024, 2048), "zeros")
        call.index(1)
        tracemalloc.start()
        call.index(1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < min(peaks) + 2**16 < 5e6
