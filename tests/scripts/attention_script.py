"""Run by test_sparse_attention_isa.py: sparse attention on the instruction set that is named.

Arguments: the instruction set, and what to do. "calls": random calls against the reference. "plain Python": few of
them. "pages": calls whose every array lies at an unreadable page; then a third one, a file that always holds the case
that runs, for the process may end at any of them. "short NAME ...": of each name a forked child, in which that array
of such a call ends too early. Prints the number of calls, or each name and what ended its child.
"""

import faulthandler
import itertools
import os
import sys
from pathlib import Path

import numpy as np
from helpers.attention_calls import KINDS, Shape, assert_exact, attend, one_nan, random_call, random_shape, reference
from helpers.guarded import SIDES, Guards

import mla_numba as mla
from mla_numba.attention import rounds, sparse
from mla_numba.kernels import ISA
from mla_numba.kernels.attention.arguments import Caches
from mla_numba.kernels.launch import plain
from mla_numba.oracle.bits import compare_bits
from tiling import gemm

MR, NR = ISA.mr, ISA.nr
SHAPES = (
    Shape(b=1, s1=1, n_heads=1, latent=4, rope=1, k=1, block_size=1, n_blocks=1),
    Shape(n_heads=NR + 1, latent=NR + 4, rope=7, k=MR + 1, block_size=5),
    Shape(n_heads=NR, latent=2 * NR, rope=NR, k=33, block_size=4, n_blocks=9),
    Shape(n_heads=MR + 1, latent=4 * NR + 4, rope=2, k=300, block_size=16, n_blocks=20),
)
FRACTALS = Shape(n_heads=3, latent=96, rope=48, k=9, block_size=3)
RECORDS = Shape(n_heads=3, latent=512, rope=64, k=9, block_size=3)


def calls(n):
    for seed in range(n):
        rng = np.random.default_rng(seed)
        yield random_call(rng, random_shape(rng), dense=seed % 3 == 0)
        kind = "bf16" if seed % 5 == 4 else "int8"
        yield random_call(rng, SHAPES[seed % len(SHAPES)], kind)._replace(flash_tile=(None, 16, 5)[seed % 3])
    for factor in (1e-30, 30):  # sums below the normal numbers, and probabilities of 0
        call = random_call(np.random.default_rng(9), SHAPES[2])
        queries = [(q.astype(np.float32) * factor).astype(q.dtype) for q in call.out[:2]]
        out = call.out._replace(query_nope=queries[0], query_rope=queries[1])
        yield call._replace(out=out, softmax_scale=1e20 if factor < 1 else 0.1)


def plain_python():
    shape = Shape(b=1, s1=2, n_heads=2, latent=8, rope=3, k=4, block_size=3, n_blocks=3)
    for seed, (kind, dense) in enumerate(itertools.product(KINDS, (False, True))):
        yield random_call(np.random.default_rng(seed), shape, kind, dense=dense)
    yield random_call(np.random.default_rng(7), RECORDS._replace(n_heads=1, k=2), record_order="cann")
    yield random_call(np.random.default_rng(8), shape, dense=True)._replace(flash_tile=2)


class Placed:
    """A call whose arrays lie at pages, those that the library makes for it too."""

    def __init__(self, side):
        self.guards = Guards(side)
        self.short = None

    def copy(self, array, name):
        """The array at a page; the one that is to be too short ends an element early, in memory only."""
        if name != self.short:
            return self.guards.copy(array, name)
        placed = self.guards.copy(array.reshape(-1)[: -max(array.size // 4, 1)], name)
        strides = np.empty(array.shape, array.dtype).strides
        return np.lib.stride_tricks.as_strided(placed, array.shape, strides)

    def fields(self, record):
        return type(record)(
            *(self.copy(v, n) if isinstance(v, np.ndarray) else v for n, v in zip(record._fields, record, strict=True))
        )

    def cache(self, cache):
        if isinstance(cache, np.ndarray):
            return self.copy(cache, "records")
        arrays = {name: self.guards.copy(array, name) for name, array in cache.arrays().items()}
        return mla.PagedCache(*arrays.values(), *[None] * (3 - len(arrays)), cache_mode=cache.cache_mode)

    def run(self, call, n_threads=1):
        check_lists, views, find = sparse._check_lists, sparse._check_cache, sparse.find_slots
        lay_out, make = rounds.lay_out, rounds.aligned_empty
        sparse._memory.clear()

        def placed_lists(index, pages):
            lists, counts, most = check_lists(index, pages)
            return self.fields(lists), self.copy(counts, "counts"), most

        def placed_find(given, lists, limits, n_blocks, sizes, counts):
            slots, *read = lists
            written = {"slots": slots, "counts": counts}
            held = {name: self.copy(array, name) for name, array in written.items()}
            read = [self.copy(array, name) for name, array in zip(("sequences", "block_table"), read, strict=True)]
            placed = self.copy(given, "given"), (held["slots"], *read), self.copy(limits, "limits")
            found = find(*placed, n_blocks, sizes, held["counts"])
            for name, array in written.items():
                array[...] = held[name]
            return found

        def short_views(cache, order):
            keys = views(cache, order)
            if self.short not in Caches._fields:
                return keys
            caches = Caches(*keys.views)
            flat, layout = getattr(caches, self.short)
            short = self.copy(flat, self.short), layout
            return keys._replace(views=plain(caches._replace(**{self.short: short})))

        sparse._check_lists, sparse._check_cache, sparse.find_slots = placed_lists, short_views, placed_find
        rounds.lay_out = lambda *given: self.fields(lay_out(*given))
        rounds.aligned_empty = self.guards.aligned_empty
        try:
            queries = {name: self.copy(getattr(call.out, name), name) for name in ("query_nope", "query_rope")}
            given = call._replace(out=call.out._replace(**queries), cache=self.cache(call.cache))
            latent = self.copy(np.zeros(call.out.query_nope.shape, call.out.query_nope.dtype), "latent")
            attend(given, latent=latent, n_threads=n_threads)
        finally:
            sparse._check_lists, sparse._check_cache, sparse.find_slots = check_lists, views, find
            rounds.lay_out, rounds.aligned_empty = lay_out, make
        mismatch = compare_bits("latent", one_nan(latent), one_nan(reference(call)))
        assert mismatch is None, mismatch
        self.guards.assert_intact()


def at_pages():
    """Each case: a line that says what it is, and the call."""
    for i, (shape, side, dense, n) in enumerate(itertools.product(SHAPES, SIDES, (False, True), (1, 2))):
        call = random_call(np.random.default_rng(i), shape, dense=dense)
        yield f"{shape}, pages at the {side}, dense {dense}, {n} threads", call, side, n
    for kind, side in itertools.product(KINDS if ISA.bf16_dot else KINDS[:1], SIDES):
        yield f"fractals of {kind}, {side}", random_call(np.random.default_rng(1), FRACTALS, kind, "PA_NZ"), side, 1
    for order, side in itertools.product(("cann", "flashmla"), SIDES):
        yield f"records {order}, {side}", random_call(np.random.default_rng(2), RECORDS, record_order=order), side, 1


def what_ends_it(name):
    """A call in a forked child, whose array of this name is too short: the signal that ended it, or 0."""
    call = random_call(np.random.default_rng(0), SHAPES[2])
    # All places of a list; among them the last slots of the cache.
    index = np.stack([np.random.default_rng(i).permutation(35)[:33] for i in range(4)])
    call = call._replace(act_seq=np.full(2, 36, np.int32), index=index)
    placed = Placed("end")
    if not name:
        return placed.run(call)
    child = os.fork()
    if not child:
        placed.short = name
        placed.run(call)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    faulthandler.enable()
    gemm._APART_BYTES = 0  # between what workers write: there an access would go unseen
    expected, what, *more = sys.argv[1:]
    assert expected == ISA.name, f"expected the kernels of {expected}, got those of {ISA.name}"
    if what == "short":
        rounds._DEPTH = 8  # so that the accumulators go through memory
        what_ends_it("")
        said = " ".join(f"{name}={-what_ends_it(name)}" for name in more)
    elif what == "pages":
        cases = list(at_pages())
        for line, call, side, n_threads in cases:
            Path(*more).write_text(line, encoding="utf-8")
            Placed(side).run(call, n_threads)
        said = len(cases)
    else:
        cases = list(plain_python() if what == "plain Python" else calls(30))
        for call in cases:
            assert_exact(call, n_threads=(1,) if what == "plain Python" else (1, 2))
        said = len(cases)
    sys.stdout.write(str(said))
