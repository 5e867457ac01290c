"""Run by test_guard_pages.py: calls whose every array lies at an unreadable page, on one instruction set.

Arguments: the instruction set expected; "some" or "all" token counts, or the name of an array that is made too short;
and a file that always holds the case that runs, for the process may end at any of them. Prints the number of cases.
"""

import faulthandler
import itertools
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from helpers import MODES, THREADS, assert_none, assert_same_bits, make_cache, make_inputs, make_weights
from helpers.guarded import SIDES, Guards
from helpers.indexer_calls import assert_as_reference, expect_indexer, make_indexer, make_indexer_cache

import mla_numba as mla
from mla_numba import (
    CpuTiling,
    MlaDims,
    MlaProlog,
    MlaQuantInputs,
    MlaTileConfig,
    PagedCache,
    reference,
)
from mla_numba import (
    indexer as indexer_engine,
)
from mla_numba import (
    prolog as engine,
)
from mla_numba.call import indexer_bind, indexer_memory, tile_memory, workspace
from mla_numba.kernels import ISA
from mla_numba.kernels.indexer.arguments import IndexBuffers
from mla_numba.kernels.launch import plain
from mla_numba.kernels.sweeps.arguments import Activations
from mla_numba.oracle.bits import check_output, poison, reference_run
from mla_numba.oracle.inputs import Inputs
from mla_numba.pypto import projections
from mla_numba.weights import packed_gemm
from tiling import gemm

MR, NR = ISA.mr, ISA.nr
BLOCKS, BLOCK_SIZE = 3, 5
# Rows, columns and lengths of k below, at and above the tiles, and a multiple of none.
DIMS = [
    MlaDims(2, 1, 1, 4, 1, 2),
    MlaDims(50, 5, 17, 20, 10, 10),
    MlaDims(130, 3, NR + 1, NR + 4, 33, 34),
    MlaDims(66, 2, 2 * NR, NR, NR, NR),
    MlaDims(34, 2, NR - 1, 2 * NR - 4, NR - 1, 6),
]
FRACTAL = MlaDims(50, 3, 17, 64, 10, 32)
SHARED = MlaDims(514, 5, 101, 132, 33, 34)  # work enough to be shared among threads
SMALL_BLOCKS = MlaTileConfig(
    unroll_list=[MR + 1, 2],
    m_tile=3,
    pre_quant_cube_tile=[3, 3, 16, 16, 8, 8],
    cube_qb_tile=[5, 5, 8, 16, 8, 8],
    cube_wuk_tile=[2, 4, 8, 8, 8, 8],
)
LEGS = CpuTiling(down_legs=3, down_mc=MR - 1, heads_legs=2)
EDGES = sorted({1, 2, 3, MR - 1, MR, MR + 1, 2 * MR, 3 * MR + 1})


@contextmanager
def guarded_allocations(guards):
    """Packed weights, outputs and working memory that the library allocates lie at pages too, buffer by buffer."""

    class Memory(workspace.Memory):
        def make(self, plan, block):
            cuts, buffers, (_, _, *of_indexer) = super().make(plan, block)
            placed = guards.fields(buffers)
            prepared = workspace.Prepared.of(cuts, placed)
            if not of_indexer:
                return prepared
            shared = {"q": placed.q, "counters": placed.counters, "spans": placed.spans}
            shared |= {} if plan.indexer.packs_x else {"x": placed.x}
            index = placed_index_buffers(guards, of_indexer[0])._replace(**shared)
            return prepared._replace(taken=(*prepared.taken, plain(index), of_indexer[1]))

    class IndexerMemory(indexer_memory.IndexerMemory):
        def make(self, plan, block):
            n_workers, _, (buffers, cuts) = super().make(plan, block)
            placed = placed_index_buffers(guards, buffers)
            return indexer_memory.PreparedIndexer(n_workers, placed.counters, (plain(placed), cuts))

    places = [(m, "aligned_empty", guards.aligned_empty) for m in (packed_gemm, tile_memory, engine, projections)]
    places += [(indexer_bind, "aligned_empty", guards.aligned_empty), (indexer_engine, "IndexerMemory", IndexerMemory)]
    places += [(m, "Memory", Memory) for m in (engine, projections)]
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, value in places:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(places, before, strict=True):
            setattr(module, name, value)


def placed_index_buffers(guards, taken):
    """The indexer's buffers, given as a kernel takes them, at pages."""
    buffers = IndexBuffers(*taken)
    return guards.fields(buffers._replace(x=Activations(*buffers.x), q=Activations(*buffers.q)))


def placed_weights(guards, weights):
    """The ND weights, which packing reads, at pages."""
    values = {f.name: getattr(weights, f.name) for f in fields(weights) if f.init}
    names = [n for n, value in values.items() if isinstance(value, np.ndarray)]
    return type(weights)(**(values | {n: guards.copy(values[n], n) for n in names}))


def placed_cache(guards, cache, strided):
    kinds = (cache.kv, cache.kr, cache.k_scale)
    if strided:  # every other block of a larger buffer, whose last byte is the last block's
        kinds = [None if a is None else np.repeat(a, 2, axis=0)[::2] for a in kinds]
    names = ("kv_cache", "kr_cache", "k_scale_cache")
    return PagedCache(*(guards.copy(a, n) for a, n in zip(kinds, names, strict=True)), cache.cache_mode)


def placed_output(guards, prolog, t):
    """Of the plain `aligned_empty`, so each array's own end is at its page, not the end of its cache line."""
    out = guards.fields(prolog.allocate_output(t))
    poison(*out)
    return out


def run_prolog(weights, t, side, *, cache_mode="PA_BSND", strided=False, fp16=False, threads=1, config=None):
    guards = Guards(side)
    inputs = make_inputs(weights.dims, t, BLOCKS * BLOCK_SIZE, seed=t)
    cache = make_cache(weights.dims, "b" in weights.quant, BLOCKS, BLOCK_SIZE, cache_mode, seed=t)
    if fp16:
        cache = PagedCache(cache.kv, cache.kr, np.zeros(cache.k_scale.shape, np.float16), cache_mode)
    want = reference_run(weights, *inputs, cache)
    out_guards = Guards(side)
    cache = placed_cache(guards, cache, strided)
    given = Inputs(*(guards.copy(a, n) for n, a in inputs._asdict().items()))
    with guarded_allocations(guards):
        # Copies of the packed weights end at their page even where an allocation's alignment would not let them.
        packed_weights = guards.fields(placed_weights(guards, weights).pack(threads))
        prolog = MlaProlog(packed_weights, n_threads=threads, tile_config=config)
    out = placed_output(out_guards, prolog, t)
    with guarded_allocations(guards):
        prolog(*given, cache, out)
    assert_none(check_output(out, cache, want))
    guards.assert_intact()
    out_guards.assert_intact()


def run_indexer(mode, n_heads, head_dim, t, side, *, rope="half", threads=1, strided=False):
    """The indexer alone, then with its prolog."""
    guards, out_guards = Guards(side), Guards(side)
    dims = SHARED if threads > 1 else MlaDims(50, 5, 17, 20, 10, 10)
    weights, indexer = make_weights(dims, mode), make_indexer(dims, n_heads, head_dim, rope, seed=t)
    inputs = make_inputs(dims, t, BLOCKS * BLOCK_SIZE, seed=t)
    cache, keys = make_cache(dims, True, BLOCKS, BLOCK_SIZE), make_indexer_cache(indexer.dims, BLOCKS, BLOCK_SIZE)
    want, of_indexer = expect_indexer(weights, indexer, inputs, cache, keys)
    if strided:
        keys = mla.IndexerCache(*(np.repeat(a, 2, axis=0)[::2] for a in (keys.k, keys.k_scale)))

    def placed_keys():
        return mla.IndexerCache(guards.copy(keys.k, "k_cache"), guards.copy(keys.k_scale, "k_scale_cache"))

    q_norm, q_norm_scale = (guards.copy(a) for a in (want.q_norm, want.q_norm_scale))
    x, cos, sin, slots = (guards.copy(a, n) for n, a in inputs._asdict().items())
    cache = placed_cache(guards, cache, strided=False)
    with guarded_allocations(guards):
        packed_indexer = guards.fields(placed_weights(guards, indexer).pack(threads))
        alone = mla.IndexerProlog(packed_indexer, n_threads=threads)
        prolog = MlaProlog(guards.fields(weights.pack(threads)), n_threads=threads, indexer=packed_indexer)
        outputs = out_guards.fields(alone.allocate_output(t)), placed_output(out_guards, MlaProlog(weights), t)
        index_keys = placed_keys()
        alone(x, q_norm, q_norm_scale, cos, sin, slots, index_keys, outputs[0])
        assert_as_reference(outputs[0], index_keys, of_indexer)
        index_keys = placed_keys()
        out = mla.IndexedOutput(outputs[1], out_guards.fields(alone.allocate_output(t)))
        prolog(x, cos, sin, slots, cache, out, indexer_cache=index_keys)
    assert_none(check_output(out, cache, want))
    assert_as_reference(out.indexer, index_keys, of_indexer)
    guards.assert_intact()
    out_guards.assert_intact()


def run_projections(mode, t, side):
    guards = Guards(side)
    dims = MlaDims(130, 1, NR + 1, 68, NR + 1, 34)
    weights = make_weights(dims, mode, seed=t)
    x = make_inputs(dims, t, 16, seed=t).x
    names = ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "dequant_scale_w_uq_qr", "smooth_scales_cq")
    scales = {name: getattr(weights, name) for name in names}
    arguments = [x, weights.w_dq, weights.w_uq_qr, weights.w_dkv_kr, weights.gamma_cq]
    want = reference.pre_compute_2d(*arguments, 1e-3, **scales)
    arguments = [guards.copy(a) for a in arguments]
    scales = {name: guards.copy(a, name) for name, a in scales.items()}
    with guarded_allocations(guards):
        got = mla.pre_compute_2d(*arguments, 1e-3, MlaQuantInputs(**scales))
    for i, (g, w) in enumerate(zip(got, want, strict=False)):
        assert_same_bits(f"result {i}", g, w)
    guards.assert_intact()


def cases(tokens):
    """Each case: a line that says what it is, and the call."""
    weights = {}

    def call(dims, mode, t, side, **more):
        def run():
            if (dims, mode) not in weights:
                weights[dims, mode] = make_weights(dims, mode)
            run_prolog(weights[dims, mode], t, side, **more)

        return f"{dims} {mode}: T = {t}, pages at the {side}, {more}", run

    for dims, mode, t, side in itertools.product(DIMS, MODES, tokens, SIDES):
        yield call(dims, mode, t, side)
    yield from indexer_cases(tokens)
    layouts = [{"cache_mode": "PA_NZ"}, {"cache_mode": "PA_NZ", "strided": True}, {"strided": True}, {"fp16": True}]
    for mode, layout, t, side in itertools.product(MODES, layouts, (1, MR + 1), SIDES):
        if "b" in mode or "fp16" not in layout:
            yield call(FRACTAL, mode, t, side, **layout)
    for dims, mode, t, side in itertools.product(DIMS[1:4], MODES, (MR, 3 * MR + 1), SIDES):
        yield call(dims, mode, t, side, config=SMALL_BLOCKS)
    for mode, n, t, side in itertools.product(MODES, THREADS, (MR, 3 * MR + 1), SIDES):
        yield call(SHARED, mode, t, side, threads=n, config=LEGS)
    for mode, n, t, side in itertools.product(MODES, THREADS, (MR + 1, 3 * MR + 1), SIDES):
        yield call(SHARED, mode, t, side, threads=n)
    for mode, t, side in itertools.product(MODES, tokens, SIDES):
        yield (
            f"pre_compute_2d {mode}: T = {t}, pages at the {side}",
            lambda m=mode, t=t, s=side: run_projections(m, t, s),
        )


def indexer_cases(tokens):
    """Heads of the indexer, and their width: at the edges of panels, all columns rotated, odd."""
    shapes = [(1, 10), (2, NR + 1), (NR + 1, NR - 1), (3, 2 * NR)]

    def call(mode, shape, t, side, **more):
        what = f"indexer {shape} beside {mode}: T = {t}, pages at the {side}, {more}"
        return what, lambda: run_indexer(mode, shape[0], max(shape[1], 34), t, side, **more)

    for (i, shape), t, side in itertools.product(enumerate(shapes), tokens, SIDES):
        rope = ("half", "interleaved")[(i + t) % 2]
        yield call(("b", "ab smooth")[i % 2], shape, t, side, rope=rope, strided=t == MR)
    for t, side in itertools.product((MR, 40), SIDES):
        yield call("b", (8, 64), t, side, threads=THREADS[-1])


def too_short(name):
    """A call that reads or writes past the end of one array, which has to end the process."""
    dims = MlaDims(50, 5, 17, 20, 10, 10)
    guards = Guards("end")
    inputs = make_inputs(dims, 3, 15)._replace(cache_index=np.array([0, 1, 14]))
    cache = make_cache(dims, True, BLOCKS, BLOCK_SIZE)
    prolog = MlaProlog(make_weights(dims, "b"), n_threads=1)
    call = prolog.bind(*inputs, cache)
    if name in ("down", "up", "uk"):
        product = getattr(prolog.weights, name)
        short = replace(product, panels=guards.copy(product.panels[: -len(product.panels) // 4]))
        # A prolog refuses such weights, so they are put behind its back.
        layer = replace(prolog.weights, **{name: short}).arguments_for("pypto")
        prolog.__dict__["_layers"] = prolog._layers._replace(prolog=layer)
    elif name.removesuffix("_cache") in call.caches._fields:
        field = name.removesuffix("_cache")
        slots = getattr(call.caches, field)
        short = slots._replace(flat=guards.copy(slots.flat[: len(slots.flat) * 3 // 4]))
        call = call._replace(caches=call.caches._replace(**{field: short}))
    else:
        array = getattr(call.tokens, name)
        short = guards.copy(array.reshape(-1)[:-1])
        short = np.lib.stride_tricks.as_strided(short, array.shape, array.strides)
        # Without a cache_index of the caller's, the slots are not copied anew.
        call = call._replace(tokens=call.tokens._replace(**{name: short}), cache_index=None)
    yield f"{name} is too short", lambda: prolog.run(call)


if __name__ == "__main__":
    faulthandler.enable()
    gemm._APART_BYTES = 0  # between what workers write: there an access would go unseen
    expected, scope, running = sys.argv[1:]
    assert expected == ISA.name, f"expected the kernels of {expected}, got those of {ISA.name}"
    scopes = {"some": EDGES, "all": range(1, 3 * MR + 2)}
    n = 0
    for what, run in cases(scopes[scope]) if scope in scopes else too_short(scope):
        Path(running).write_text(what, encoding="utf-8")
        run()
        n += 1
    sys.stdout.write(str(n))
