"""Arguments that sparse attention refuses, each by name, before it writes anything."""

import re

import numpy as np
import pytest
from helpers import BF16
from helpers.attention_calls import Shape, assert_exact, attend, one_nan, random_call, reference
from helpers.wrong_arguments import arrays_like, not_aligned, objects
from test_wrong_arguments import SAME_VALUES, assert_takes

import mla_numba as mla
from mla_numba.oracle.bits import compare_bits

INDEX = np.array([[0, 3], [4, -1], [1, 2], [5, 0]], np.int32)
TABLE = np.array([[1, 0, 3, -1], [2, 4, -1, 5]], np.int32)


TAKEN_QUERIES = {"read-only", "subclass"}


def small_call(**changes):
    """Two sequences of two tokens, of 5 and 8 keys, in blocks of 3 slots."""
    call = random_call(np.random.default_rng(0), Shape(n_heads=3, latent=8, rope=2, n_blocks=6))
    return call._replace(**{"index": INDEX, "block_table": TABLE, "act_seq": np.array([5, 8], np.int32)} | changes)


def index_with(position, place=(2, 1)):
    changed = INDEX.astype(np.int64)
    changed[place] = position
    return changed


def table_with(block, at):
    changed = TABLE.copy()
    changed[at] = block
    return changed


REFUSED = {
    "a position behind the last key": (
        {"index": index_with(7)}, ValueError,
        "index[2, 1]: expected a position below 7, the keys that the token sees, got 7",
    ),
    "a position of the token after it": (
        {"index": index_with(4, (0, 1))}, ValueError,
        "index[0, 1]: expected a position below 4, the keys that the token sees, got 4",
    ),
    "a position beyond int32": (
        {"index": index_with(2**32)}, ValueError,
        "index[2, 1]: expected a position below 7, the keys that the token sees, got 4294967296",
    ),
    "a block that is missing": (
        {"block_table": table_with(-1, (1, 0))}, ValueError,
        "block_table[1, 0]: expected a block from 0 to below 6, since index[2, 0] is 1, got -1",
    ),
    "a block beyond the cache": (
        {"block_table": table_with(6, (1, 2)), "index": index_with(6)}, ValueError,
        "block_table[1, 2]: expected a block from 0 to below 6, since index[2, 1] is 6, got 6",
    ),
    "a block that all keys need": (
        {"index": None}, ValueError, "block_table[1, 2]: expected a block from 0 to below 6, since act_seq[1] is 8",
    ),
    "more keys than blocks": (
        {"act_seq": np.array([5, 13])}, ValueError, "act_seq[1]: expected 0 to 12 (4 blocks of 3 slots), got 13",
    ),
    "tokens that are not shared evenly": (
        {"act_seq": np.array([5, 8, 1]), "block_table": np.zeros((3, 4), np.int32)}, ValueError,
        "act_seq: expected a number of sequences that divides the 4 tokens",
    ),
    "an index of fewer tokens": ({"index": INDEX[:3]}, ValueError, "index: expected shape (4, any), got (3, 2)"),
    "an index of floats": (
        {"index": INDEX.astype(np.float32)}, TypeError, "index: expected dtype int32 or int64, got float32",
    ),
    "NaN as a scale": (
        {"softmax_scale": float("nan")}, ValueError, "softmax_scale: expected a number that is finite in float32, got",
    ),
    "a scale beyond float32": (
        {"softmax_scale": 1e39}, ValueError, "softmax_scale: expected a number that is finite in float32, got 1e+39",
    ),
    "a scale that is none": ({"softmax_scale": "1"}, TypeError, "softmax_scale: expected a number, got str"),
    "another cache": ({"cache": {}}, TypeError, "cache: expected PagedCache or a NumPy array of records, got dict"),
    "an order of no records": (
        {"record_order": "cann"}, ValueError, "record_order: expected None with a PagedCache, got 'cann'",
    ),
    "arrays in place of an output": ({"out": (1, 2)}, TypeError, "out: expected PrologOutput, got tuple"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_said(what):
    changes, kind, said = REFUSED[what]
    assert_exact(small_call())
    latent = np.full((4, 3, 8), 7, BF16)
    with pytest.raises(kind, match=re.escape(said)):
        attend(small_call(**changes), latent=latent)
    assert (latent == np.array(7, BF16)).all()


def test_what_is_never_read_may_be_anything():
    """Places behind a list's end, and as many as the token sees no keys."""
    call = small_call(act_seq=np.array([1, 8], np.int32))  # tokens of the first sequence see none and one
    index = np.array([[99, 99], [0, 99], [1, 2], [-5, 99]], np.int32)
    want = assert_exact(call._replace(index=index))
    assert not want.view(np.uint16)[[0, 3]].any()


class TestRecords:
    @pytest.fixture
    def call(self):
        return random_call(np.random.default_rng(1), Shape(n_heads=2, latent=512, rope=64), record_order="cann")

    @pytest.mark.parametrize(
        ("order", "kind", "said"),
        [
            (None, ValueError, "record_order: expected cann or flashmla with records, got None"),
            ("vllm", ValueError, "record_order: expected "),
            (1, TypeError, "record_order: expected str, got int"),
        ],
    )
    def test_orders(self, call, order, kind, said):
        with pytest.raises(kind, match=said):
            attend(call._replace(record_order=order))

    def test_other_bytes(self, call):
        with pytest.raises(ValueError, match=r"^cache: expected records of 656 bytes, got 655"):
            attend(call._replace(cache=call.cache[..., :655].copy()))
        with pytest.raises(ValueError, match=r"^cache: expected records aligned to their scales' 4 bytes, got address"):
            attend(call._replace(cache=not_aligned(call.cache)))
        with pytest.raises(ValueError, match=r"^cache: expected blocks that are contiguous within"):
            attend(call._replace(cache=np.repeat(call.cache, 2, axis=1)[:, ::2]))
        with pytest.raises(TypeError, match=r"^cache: expected dtype uint8 or int8, got uint16"):
            attend(call._replace(cache=call.cache.view(np.uint16)))


def test_memory_that_overlaps():
    call = small_call()
    for name in ("query_nope", "query_rope"):
        given = getattr(call.out, name)
        memory = np.zeros(4 * 3 * 8, BF16)
        shared = memory[: given.size].reshape(given.shape)
        shared[...] = given
        with pytest.raises(ValueError, match=rf"^latent: expected memory of its own, got an overlap with out\.{name}"):
            attend(call._replace(out=call.out._replace(**{name: shared})), latent=memory.reshape(4, 3, 8))
    whole = np.zeros((6, 3, 1, 8), BF16)
    cache = mla.PagedCache(whole, call.cache.kr)
    with pytest.raises(ValueError, match=r"^latent: expected memory of its own, got an overlap with kv_cache"):
        attend(call._replace(cache=cache), latent=whole.reshape(-1)[:96].reshape(4, 3, 8))
    for name in ("index", "block_table", "act_seq"):
        given = getattr(call, name)
        memory = np.zeros(max(given.nbytes, 4 * 3 * 8 * 2), np.uint8)
        shared = memory[: given.nbytes].view(given.dtype).reshape(given.shape)
        shared[...] = given
        with pytest.raises(ValueError, match=rf"^latent: expected memory of its own, got an overlap with {name}$"):
            attend(call._replace(**{name: shared}), latent=memory[: 4 * 3 * 8 * 2].view(BF16).reshape(4, 3, 8))
        assert (shared == given).all()


class TestEveryWrongArgument:
    """Each argument replaced by each wrong one of a pool."""

    @pytest.mark.parametrize("dense", [False, True])
    def test_arguments(self, dense):
        table = np.array([[1, 0, 3], [2, 4, 5]], np.int32)
        call = small_call(act_seq=np.array([8, 7], np.int32), block_table=table, index=None if dense else INDEX)
        starts, latent = np.array([0, 2, 4]), np.zeros((4, 3, 8), BF16)
        arguments = dict(zip(call._fields, call, strict=True)) | {"latent": latent, "n_threads": 1}
        arguments |= {"query_start_loc": starts}
        want = reference(call)

        def run(**given):
            got = mla.sparse_attention(**given)
            unchanged = all(given[name] is getattr(call, name) for name in ("block_table", "act_seq", "index"))
            if unchanged and (given["softmax_scale"], given["flash_tile"]) == (call.softmax_scale, None):
                assert compare_bits("latent", one_nan(np.asarray(got)), one_nan(want)) is None
            latent[...] = 0

        ints = SAME_VALUES | {"dtype i4", "dtype i8", "backwards", "columns backwards", "every other column", "Fortran"}
        ints |= {"every other row", "transposed", "one row again and again", "one element again and again"}
        taken = {
            "block_table": ints | {"one column more", "one column fewer"},
            "act_seq": ints,
            "index": ints | {"None", "one column more", "one column fewer", "no columns"},
            "query_start_loc": ints | {"None"},
            "softmax_scale": {
                "zero", "minus one", "minus two", "huge int", "huge negative int", "64 bits", "float", "whole float",
                "NumPy float",
            },
            "record_order": {"None"},
            "flash_tile": {"None", "huge int", "64 bits"},
            "latent": {"None", "subclass", "Fortran"},
            "n_threads": {"None"},
        }  # fmt: skip
        assert assert_takes(run, arguments, taken, written=[latent]) > 300

    def test_queries(self):
        call = small_call()
        for name in ("query_nope", "query_rope"):
            right = getattr(call.out, name)
            pool = [*objects().items(), *arrays_like(right)]
            for label, value in pool:
                changed = call._replace(out=call.out._replace(**{name: value}))
                if label in TAKEN_QUERIES:
                    assert compare_bits("latent", one_nan(attend(changed)), one_nan(reference(call))) is None
                else:
                    with pytest.raises((TypeError, ValueError), match=r"^out\.query_(nope|rope): expected "):
                        attend(changed)
