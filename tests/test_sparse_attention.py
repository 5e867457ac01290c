"""Attention over listed positions of the latent cache equals the reference in every bit."""

import sys
import threading
from collections import deque

import numba
import numpy as np
import pytest
from helpers import BF16, THREADS
from helpers.attention_calls import (
    KINDS,
    Shape,
    assert_exact,
    attend,
    limits,
    one_nan,
    random_call,
    random_shape,
)
from helpers.attention_calls import reference as reference_of

import mla_numba as mla
from mla_numba import reference
from mla_numba.attention import rounds, sparse
from mla_numba.attention.rounds import Sizes, cuts, memory_bytes
from mla_numba.inputs import random_inputs
from mla_numba.kernels import scalars
from mla_numba.kernels.attention.arguments import ALL, LARGEST, SUM, VALUES_OF
from mla_numba.kernels.attention.dequantise import N_SMALLEST, ROW_RUN, WILD, least_of_tame, row_of_bits
from mla_numba.kernels.attention.exponentials import add_exponentials
from mla_numba.kernels.attention.quotients import NO_SMALLEST, pairs_of_quotients
from mla_numba.kernels.attention.transpose import columns_of_rows, rows_of_columns
from mla_numba.kernels.micro.ukernel import A_BF16_DTYPE, MR, NR
from mla_numba.oracle.bits import compare_bits

N_CALLS = 60


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", [False, True])
def test_random_calls(kind, dense):
    for seed in range(N_CALLS):
        rng = np.random.default_rng((seed, dense))
        assert_exact(random_call(rng, random_shape(rng), kind, dense=dense), n_threads=THREADS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_is_written_between_calls(kind):
    """What a cache keeps for calls are views: they see what it holds, and belong to no other one."""
    rng, shape = np.random.default_rng(7), Shape(n_heads=3)
    calls = [random_call(rng, shape, kind) for _ in range(2)]
    for _ in range(2):
        for call in calls:
            assert_exact(call)
        for call in calls:
            call.cache.kv[...] = random_call(rng, shape, kind).cache.kv
    assert_exact(calls[0]._replace(cache=calls[0].cache.copy()))


def test_a_call_makes_few_calls_of_its_own():
    """What a call costs in Python, counted: a time would be that of the machine's other work too."""
    call = random_call(np.random.default_rng(0), Shape(b=1, s1=1))
    latent = np.empty(call.out.query_nope.shape, BF16)
    attend(call, latent=latent, n_threads=1)
    called = []
    sys.setprofile(lambda frame, event, arg: called.append(arg or frame) if event in ("call", "c_call") else None)
    try:
        attend(call, latent=latent, n_threads=1)
    finally:
        sys.setprofile(None)
    assert len(called) < 230, called


@pytest.mark.parametrize("transpose", [columns_of_rows, rows_of_columns])
def test_words_are_transposed(transpose):
    """In vector code as in plain Python, and nothing beside them is written."""
    word = np.uint16 if transpose is columns_of_rows else np.uint32
    source = np.random.default_rng(1).integers(0, np.iinfo(word).max, 4000, word, endpoint=True)
    want, got = np.full((2, 4000), 7, np.uint16)

    @numba.njit
    def compiled(source, target):
        transpose(source, 3, 70, target, 5, 66)

    transpose(source, 3, 70, want, 5, 66)
    compiled(source, got)
    assert len(np.unique(want)) > 16
    assert compare_bits(transpose.__name__, got, want) is None


def of_softmax(rng, n):
    """n exponents: ordinary ones, those of subnormal quotients and of zeros, and bounds of the exponential."""
    x = rng.uniform(-100, 0, n).astype(np.float32)
    bounds = np.array([-0.0, -86.99, -87.0, np.nextafter(np.float32(-87), np.float32(-88)), -np.inf], np.float32)
    some = rng.permutation(n)[: n // 5]
    x[some] = rng.choice(bounds, len(some))
    return x


def test_exponentials_of_whole_steps():
    """In vector code as in plain Python."""
    rng, step = np.random.default_rng(1), 16 * NR
    most, scale = rng.uniform(0, 3, step).astype(np.float32), np.float32(0.7)
    given = of_softmax(rng, 3 * step)
    given[[5, -1]] = np.nan
    scores, totals = [given.copy(), given.copy()], [np.zeros(step, np.float32), np.zeros(step, np.float32)]

    @numba.njit(error_model="numpy")
    def compiled(scores, scale, most, total):
        add_exponentials(scores, scale, most, total)

    with np.errstate(all="ignore"):
        add_exponentials(scores[0], scale, most, totals[0])
    compiled(scores[1], scale, most, totals[1])
    assert compare_bits("scores", scores[1], scores[0]) is None
    assert compare_bits("total", totals[1], totals[0]) is None
    assert 0 < np.count_nonzero(scores[0] == 0) < step


@pytest.mark.parametrize("n_rows", [1, 8])
def test_pairs_of_quotients(n_rows):
    """In vector code as in plain Python; the smallest quotients go on from what they were."""
    rng = np.random.default_rng(n_rows)
    e = np.exp(of_softmax(rng, 2 * n_rows * NR)).astype(np.float32)
    total = rng.uniform(1, 2000, NR).astype(np.float32)
    total[3] = np.nan
    words = [np.full(n_rows * NR + 1, 7, np.uint32) for _ in range(2)]
    smallest = [np.full(2 * NR, NO_SMALLEST, np.uint16) for _ in range(2)]
    smallest[0][:9] = smallest[1][:9] = np.arange(9)

    @numba.njit(error_model="numpy")
    def compiled(e, total, words, smallest):
        pairs_of_quotients(e, total, words, smallest)

    with np.errstate(all="ignore"):
        pairs_of_quotients(e, total, words[0], smallest[0])
    compiled(e, total, words[1], smallest[1])
    assert compare_bits("words", words[1], words[0]) is None
    assert compare_bits("smallest", smallest[1], smallest[0]) is None
    assert len(np.unique(words[0])) > NR // 2


def test_scales_that_vector_code_takes():
    """Of zero and of normal numbers no product with a code has less than what is said, and any other is refused."""
    tiny, codes = np.finfo(np.float32).tiny, np.array([-128, -1, 0, 1, 127], np.float32)
    for scale in np.array([0, -0.0, tiny, -tiny, 1.5 * tiny, 0.013, -3, np.finfo(np.float32).max], np.float32):
        with np.errstate(over="ignore"):
            products = (codes * scale).astype(BF16).view(np.uint16)
        assert 0 < least_of_tame(scale) <= scalars.min_magnitude(products)
    for scale in (tiny / 2, -1e-45, np.inf, -np.inf, np.nan):
        assert least_of_tame(np.float32(scale)) == WILD


@pytest.mark.parametrize("n_runs", [1, 3])
def test_rows_of_bits(n_runs):
    """In vector code as in plain Python: any bits, and the smallest magnitudes."""
    rng, n = np.random.default_rng(n_runs), n_runs * ROW_RUN
    bits = rng.integers(0, 0xFFFF, n, np.uint16, endpoint=True)
    bits[: n // 2] &= 0x8003  # zeros, subnormal numbers
    rows = [np.zeros(n, A_BF16_DTYPE) for _ in range(2)]
    smallest = [np.full(N_SMALLEST, 0xFFFFFFFF, np.uint32) for _ in range(2)]
    smallest[0][0] = smallest[1][0] = 0x10000

    @numba.njit
    def compiled(bits, row, smallest):
        row_of_bits(bits, row, smallest)

    row_of_bits(bits, rows[0], smallest[0])
    compiled(bits, rows[1], smallest[1])
    assert compare_bits("row", rows[1], rows[0]) is None
    assert compare_bits("smallest", smallest[1], smallest[0]) is None
    assert len(np.unique(smallest[0])) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_caches_in_fractals(kind):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shape = Shape(latent=96, rope=48, k=9, block_size=1 + seed, n_blocks=4)
        assert_exact(random_call(rng, shape, kind, "PA_NZ"))


@pytest.mark.parametrize("order", ["cann", "flashmla"])
@pytest.mark.parametrize("dense", [False, True])
def test_records(order, dense):
    rng = np.random.default_rng(3)
    call = random_call(rng, Shape(latent=512, rope=64, n_heads=3), dense=dense, record_order=order)
    want = assert_exact(call)
    every_other = np.repeat(call.cache, 2, axis=0)[::2]
    assert_exact(call._replace(cache=every_other), want=want)
    assert_exact(call._replace(cache=call.cache.view(np.int8)), want=want)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_are_strided_and_read_only(kind):
    call = random_call(np.random.default_rng(4), kind=kind)
    want = reference_of(call)
    arrays = [np.repeat(a, 2, axis=0)[::2] for a in call.cache.arrays().values()]
    for array in arrays:
        array.setflags(write=False)
    assert_exact(call._replace(cache=mla.PagedCache(*arrays)), want=want)


def test_caches_without_pages():
    """A BSND cache is blocks of S slots; a TND one is one block."""
    rng = np.random.default_rng(5)
    paged = random_call(rng, Shape(b=1, n_blocks=4, block_size=5))
    arrays = paged.cache.arrays().values()
    assert_exact(paged._replace(cache=mla.PagedCache(*arrays, cache_mode="BSND")), want=reference_of(paged))
    one_block = Shape(b=1, n_blocks=1, block_size=20)
    call = random_call(rng, one_block)
    rows = [a[0] for a in call.cache.arrays().values()]
    assert_exact(call._replace(cache=mla.PagedCache(*rows, cache_mode="TND")), want=reference_of(call))


def test_more_positions_than_a_task_takes():
    shape = Shape(b=1, s1=2, n_heads=NR + MR + 1, latent=2 * NR + 4, rope=8, k=700, block_size=32, n_blocks=24)
    rng = np.random.default_rng(6)
    for dense in (False, True):
        call = random_call(rng, shape, dense=dense)._replace(act_seq=np.array([760], np.int32))
        if not dense:
            index = np.stack([rng.permutation(limit)[:700] for limit in limits(call.act_seq, 2)])
            call = call._replace(index=index.astype(np.int64))
        assert_exact(call)


def test_ragged_tokens():
    rng = np.random.default_rng(7)
    call = random_call(rng, Shape(b=3, s1=2), dense=True)
    starts = np.array([0, 1, 1, 6], np.int32)
    assert_exact(call._replace(query_start_loc=starts, act_seq=np.array([3, 0, 4], np.int32)))


@pytest.mark.parametrize("scale", [0, -0.3, 1e-40, 1e38, np.float32(0.125), 2])
def test_softmax_scales(scale):
    assert_exact(random_call(np.random.default_rng(8))._replace(softmax_scale=scale))


@pytest.mark.parametrize("factor", [1e-38, 1e-30, 1e-20, 5, 30, 1e4, 1e30])
def test_peaked_probabilities_and_subnormal_sums(factor):
    """Probabilities, scores and sums below float32's normal numbers, and scores beyond all numbers."""
    for scale in (0.1, 1e20):
        call = random_call(np.random.default_rng(9), Shape(k=30, n_heads=20, n_blocks=9))
        queries = [(q.astype(np.float32) * factor).astype(BF16) for q in call.out[:2]]
        assert_exact(
            call._replace(out=call.out._replace(query_nope=queries[0], query_rope=queries[1]), softmax_scale=scale)
        )


@pytest.mark.parametrize("factor", [0, 1e-40, 1e-36, 1e-30, 1e-20, 1e30])
def test_small_and_large_keys(factor):
    call = random_call(np.random.default_rng(10), Shape(k=30, n_heads=20, n_blocks=9))
    call.cache.k_scale[...] *= np.float32(factor)
    call.cache.kr[...] = (call.cache.kr.astype(np.float32) * np.float32(factor)).astype(BF16)
    assert_exact(call)


def test_every_fp16_scale():
    """All of its bits: subnormal numbers, infinities and NaN. Each token attends to one slot, whose key it returns."""
    shape, t = Shape(b=1, s1=1, n_heads=1, latent=4, rope=1, block_size=64, n_blocks=256), 2**14
    call = random_call(np.random.default_rng(11), shape, "fp16 scales")
    scales = call.cache.k_scale.reshape(t, 4)
    scales[...] = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(t, 4)
    queries = [np.zeros((t, 1, width), BF16) for width in (4, 1)]
    call = call._replace(
        out=mla.PrologOutput(*queries, np.zeros((t, 1), np.int8), None), index=np.arange(t, dtype=np.int32)[:, None],
        block_table=np.arange(256, dtype=np.int32)[None], act_seq=np.array([t], np.int32),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        keys = (call.cache.kv.reshape(t, 4).astype(np.float32) * scales.astype(np.float32)).astype(BF16)
    # A key that is Inf or NaN makes its token's score NaN. Sums begin with 0, so -0 becomes 0.
    keys = np.where(np.isfinite(keys.astype(np.float32)).all(axis=1, keepdims=True), keys, np.array(np.nan, BF16)) + 0
    assert compare_bits("latent", one_nan(attend(call)[:, 0]), one_nan(keys.astype(BF16))) is None


class TestEdges:
    def test_no_tokens(self):
        for dense in (False, True):
            call = random_call(np.random.default_rng(0), dense=dense)
            none = [a[:0] for a in call.out[:3]]
            call = call._replace(out=mla.PrologOutput(*none, None), index=None if dense else call.index[:0])
            assert attend(call).shape == (0, 5, 20)
            without = call._replace(block_table=call.block_table[:0], act_seq=call.act_seq[:0])
            assert attend(without).shape == (0, 5, 20)

    @pytest.mark.parametrize("dense", [False, True])
    def test_no_position_gives_zeros(self, dense):
        call = random_call(np.random.default_rng(1), Shape(b=3, s1=1), dense=dense)
        call = call._replace(act_seq=np.array([0, 3, 0], np.int32))
        if not dense:
            index = np.array([[5], [1], [0]], np.int32)
            call = call._replace(index=index)
        want = assert_exact(call)
        assert not want.view(np.uint16)[[0, 2]].any()
        assert want.view(np.uint16)[1].any()

    def test_lists_of_no_places(self):
        call = random_call(np.random.default_rng(2))
        latent = attend(call._replace(index=np.zeros((4, 0), np.int32)))
        assert not latent.view(np.uint16).any()

    def test_nan_and_inf_stay_with_their_head(self):
        call = random_call(np.random.default_rng(3), Shape(n_heads=40), dense=True)
        call = call._replace(act_seq=np.array([9, 12], np.int32))
        clean = assert_exact(call)
        call.out.query_nope[1, 3, 5] = np.nan
        call.out.query_rope[3, 39, 1] = np.inf
        got = assert_exact(call)
        changed = (got.view(np.uint16) != clean.view(np.uint16)).any(axis=-1)
        assert np.argwhere(changed).tolist() == [[1, 3], [3, 39]]

    def test_a_key_that_is_nan_stays_with_its_tokens(self):
        call = random_call(np.random.default_rng(4), Shape(b=3, s1=1, k=4))
        call = call._replace(act_seq=np.full(3, 18, np.int32), index=np.array([[1, 2], [3, 4], [5, 6]], np.int32))
        clean = assert_exact(call)
        block = call.block_table[1, 1]  # of position 3
        call.cache.k_scale[block, 0, 0, 1] = np.nan
        got = assert_exact(call)
        untouched = [b for b in (0, 2) if block not in (call.block_table[b, p // 3] for p in call.index[b])]
        assert np.isnan(got[1].astype(np.float32)).all()
        assert np.array_equal(got[untouched].view(np.uint16), clean[untouched].view(np.uint16))

    def test_blocks_that_no_position_needs_may_be_missing(self):
        call = random_call(np.random.default_rng(5), Shape(b=1, s1=1))
        call = call._replace(act_seq=np.array([18], np.int32), index=np.array([[4, 15]], np.int32))
        want = reference_of(call)
        table = np.full((1, 6), -1, np.int32)
        table[0, [1, 5]] = call.block_table[0, [1, 5]]
        assert_exact(call._replace(block_table=table), want=want)


class TestFlash:
    """Tiles of positions that are merged, whatever their size."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dense", [False, True])
    def test_random_calls(self, kind, dense):
        for seed in range(N_CALLS // 4):
            rng = np.random.default_rng((seed, dense))
            call = random_call(rng, random_shape(rng), kind, dense=dense)
            assert_exact(call._replace(flash_tile=(1, 2, 7, 16, 33, 10**12)[seed % 6]), n_threads=THREADS)

    @pytest.mark.parametrize("small", [{}, {"_ROUND_BYTES": 1}, {"_ROUND_BYTES": 1, "_MOST_BYTES": 1, "_DEPTH": 2}])
    def test_more_tiles_than_a_round_takes(self, small, monkeypatch):
        with_small_rounds(monkeypatch, small)
        shape = Shape(n_heads=2 * NR + 1, latent=4 * NR + 4, k=100, block_size=16, n_blocks=9)
        for dense in (False, True):
            call = random_call(np.random.default_rng(2), shape, dense=dense)._replace(act_seq=np.array([140, 3]))
            if not dense:
                call = call._replace(index=call.index % 2)
            for tile in (16, 21):
                assert_exact(call._replace(flash_tile=tile))

    def test_extreme_scores(self):
        for scale, factor in ((1e20, 1), (0.1, 1e-30), (0.1, 1e30), (-0.3, 5)):
            call = random_call(np.random.default_rng(9), Shape(k=30, n_heads=20, n_blocks=9))
            queries = [(q.astype(np.float32) * factor).astype(BF16) for q in call.out[:2]]
            out = call.out._replace(query_nope=queries[0], query_rope=queries[1])
            assert_exact(call._replace(out=out, softmax_scale=scale, flash_tile=8))

    def test_no_position_gives_zeros(self):
        call = random_call(np.random.default_rng(1), Shape(b=3, s1=1), dense=True)
        want = assert_exact(call._replace(act_seq=np.array([0, 3, 0], np.int32), flash_tile=2))
        assert not want.view(np.uint16)[[0, 2]].any()

    @pytest.mark.parametrize(("tile", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
    def test_refused(self, tile, error):
        call = random_call(np.random.default_rng(1))
        with pytest.raises(error, match=r"^flash_tile: expected"):
            attend(call, flash_tile=tile)


def with_small_rounds(monkeypatch, small):
    """Other sizes of rounds, in plans that are not kept."""
    for name, value in small.items():
        monkeypatch.setattr(rounds, name, value)
    afresh = rounds.plan_of.__wrapped__
    for module in (rounds, sparse):
        monkeypatch.setattr(module, "plan_of", afresh)
    monkeypatch.setattr(sparse, "_memory", deque())


class TestCuts:
    @pytest.mark.parametrize(
        "small",
        [
            {"_ROUND_BYTES": 1},
            {"_MOST_BYTES": 1},
            {"_MOST_BYTES": 1, "_ROUND_BYTES": 1, "_DEPTH": 16},
            {"_DEPTH": 2},
            {"_ROWS": 1, "_WALK": 1},
            {"_TASKS_EACH": 99},
        ],
    )
    def test_bits_do_not_depend_on_them(self, small, monkeypatch):
        rng = np.random.default_rng(6)
        calls = [
            random_call(rng, Shape(n_heads=3 * NR - 1, latent=4 * NR + 4, k=50, n_blocks=20), dense=d) for d in (0, 1)
        ]
        want = [reference_of(call) for call in calls]
        with_small_rounds(monkeypatch, small | {"_MACS_EACH": 1})
        for call, latent in zip(calls, want, strict=True):
            assert_exact(call, want=latent)

    @pytest.mark.parametrize("t", [1, 2, 7, 128])
    @pytest.mark.parametrize("n", [0, 1, 100, 2048, 131072])
    @pytest.mark.parametrize("n_threads", [1, 2, 96])
    def test_each_head_of_each_token_is_in_one_round(self, t, n, n_threads):
        sizes = Sizes(t, 5 * NR + 1, 512, 64, n)
        seen = np.zeros((t, 6), int)
        for cut in cuts(sizes, n_threads):
            assert 1 <= cut.n_workers <= n_threads
            assert min(cut.rows, cut.depth, cut.walk, cut.heads) >= 1
            seen[cut.t0 : cut.t0 + cut.t, cut.panel0 : cut.panel0 + cut.h] += 1
        assert (seen == 1).all()

    @pytest.mark.parametrize("n_threads", [1, 2, 8])
    @pytest.mark.parametrize(
        ("t", "n"), [(1, 2048), (8, 2048), (512, 2048), (1, 2**17), (4, 2**17), (1, 2**18), (2, 2**20)]
    )
    def test_memory(self, t, n, n_threads):
        """Of the largest model, and of all positions of its longest context and beyond."""
        for tile in (0, 512, 2048):
            assert memory_bytes(Sizes(t, 128, 512, 64, n, tile), n_threads) < n_threads * 64e6

    @pytest.mark.parametrize(("n", "tile"), [(2**20, 0), (2**20, 512), (5000, 16), (3, 3)])
    @pytest.mark.parametrize("n_threads", [1, 2])
    def test_each_place_is_in_one_round_of_each_stage(self, n, tile, n_threads):
        """In their order, tiles whole; and memory does not grow with their number."""
        sizes = Sizes(1, 128, 512, 64, n, tile)
        made = cuts(sizes, n_threads)
        for stage in sorted({cut.stage for cut in made}):
            for panel0 in {cut.panel0 for cut in made}:
                of_one = [cut for cut in made if (cut.stage, cut.panel0) == (stage, panel0)]
                ends = [cut.place0 + cut.n for cut in of_one]
                assert [cut.place0 for cut in of_one] == [0, *ends[:-1]]
                assert ends[-1] == n
                assert [cut.last for cut in of_one] == [0] * (len(of_one) - 1) + [1]
                assert all(end % (tile or 16) == 0 for end in ends[:-1])
        assert memory_bytes(sizes._replace(n=4 * n), n_threads) <= max(memory_bytes(sizes, n_threads), n_threads * 64e6)

    def test_long_contexts_go_through_their_keys_in_stages(self):
        stages = {n: [*dict.fromkeys(cut.stage for cut in cuts(Sizes(1, 128, 512, 64, n), 1))] for n in (2**17, 2**20)}
        assert stages == {2**17: [ALL], 2**20: [LARGEST, SUM, VALUES_OF]}

    def test_all_threads_have_tasks(self):
        """Of a single token too, while there are as many columns and panels of heads."""
        sizes = Sizes(1, 128, 512, 64, 2048)
        for n_threads in (1, 2, 8, 64):
            (cut,) = cuts(sizes, n_threads)
            assert cut.n_workers == n_threads
            columns, panels = -(-512 // NR), -(-128 // NR)
            n_tasks = -(-columns // cut.walk) * -(-panels // cut.heads)
            assert n_tasks >= min(n_threads, columns * panels)
            assert -(-2048 // cut.rows) >= min(n_threads, 2048 // MR)


def test_threads_may_call_at_once():
    calls = [random_call(np.random.default_rng(seed), Shape(k=30, n_blocks=20, n_heads=40)) for seed in range(4)]
    want, got = [reference_of(call) for call in calls], [None] * 4

    def run(i):
        for _ in range(20):
            got[i] = attend(calls[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(got, want, strict=True):
        assert np.array_equal(one.view(np.uint16), other.view(np.uint16))


def test_a_decode_loop():
    """The prolog, the indexer, the choice of keys and attention, step after step on the same caches."""
    dims, k, scale = mla.MlaDims(64, 6, 24, 16, 8, 16), 3, 0.2
    prolog = mla.MlaProlog(mla.MlaWeights.random(dims, seed=0))
    indexer = mla.IndexerProlog(mla.IndexerWeights.random(dims, seed=0, n_heads=4, head_dim=32))
    cache = mla.PagedCache.allocate(dims, n_blocks=8, block_size=4)
    keys = mla.IndexerCache.allocate(indexer.dims, n_blocks=8, block_size=4)
    table = np.array([[2, 0, 5], [7, 1, 3]], np.int32)
    for step in range(4):
        act_seq = np.array([2 * step + 2, 2 * step + 5], np.int32)  # two more tokens each; 3 of one are not there
        positions = np.concatenate([[keys - 2, keys - 1] for keys in act_seq])
        slots = table[[0, 0, 1, 1], positions // 4] * np.int64(4) + positions % 4
        x, cos, sin, _ = random_inputs(dims, t=4, seed=step, capacity=32)
        out = prolog(x, cos, sin, slots, cache)
        found = indexer(x, out.q_norm, out.q_norm_scale, cos, sin, slots, keys)
        index = mla.lightning_index(found, keys, table, act_seq, k=k)
        assert np.array_equal(index, reference.lightning_index_reference(found, keys, table, act_seq, k))
        got = mla.sparse_attention(out, cache, index, table, act_seq, softmax_scale=scale)
        want = reference.sparse_attention_reference(out, cache, index, table, act_seq, scale)
        assert compare_bits("latent", got, want) is None
