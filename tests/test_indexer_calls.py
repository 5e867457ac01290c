"""Calls of the indexer's prolog: what they take and refuse, what they return, plans and traces of its phases."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from helpers import BF16, assert_none, assert_same_bits, make_cache, make_inputs, make_output, make_weights
from helpers.indexer_calls import (
    assert_as_reference,
    expect_indexer,
    make_indexer,
    make_indexer_cache,
    make_indexer_output,
)

import mla_numba as mla
from mla_numba.call.planning import Plans, PlanSettings
from mla_numba.oracle.bits import check_output
from mla_numba.weights import packed_gemm

DIMS = mla.MlaDims(130, 3, 50, 68, 10, 10)
T, BLOCKS, BLOCK_SIZE = 7, 3, 16
INDEXER = make_indexer(DIMS, 3, 32)
WEIGHTS = make_weights(DIMS, "b")


class Alone:
    """A call of the indexer alone that would succeed, and a copy of all it could write."""

    def __init__(self, **settings):
        self.call = mla.IndexerProlog(INDEXER, **settings)
        inputs = make_inputs(DIMS, T, BLOCKS * BLOCK_SIZE)
        rng = np.random.default_rng(3)
        self.arguments = inputs._asdict() | {
            "q_norm": rng.integers(-127, 128, (T, DIMS.q_lora_rank), np.int8),
            "q_norm_scale": rng.uniform(1e-3, 1, (T, 1)).astype(np.float32),
            "cache": make_indexer_cache(INDEXER.dims, BLOCKS, BLOCK_SIZE),
            "out": make_indexer_output(INDEXER.dims, T),
        }
        self.written = self.arguments["cache"].arrays() | self.arguments["out"]._asdict()
        self.before = {name: array.copy() for name, array in self.written.items()}

    def refuses(self, error, match, **changes):
        with pytest.raises(error, match=match) as caught:
            self.call(**(self.arguments | changes))
        assert type(caught.value) is error
        for name, array in self.written.items():
            assert_same_bits(name, array, self.before[name])


class Beside(Alone):
    """Likewise of a prolog with an indexer."""

    def __init__(self, **settings):
        super().__init__()
        self.call = mla.MlaProlog(WEIGHTS, indexer=INDEXER, **settings)
        indexer_cache, of_indexer = self.arguments.pop("cache"), self.arguments["out"]
        del self.arguments["q_norm"], self.arguments["q_norm_scale"]
        cache, out = make_cache(DIMS, True, BLOCKS, BLOCK_SIZE), make_output(DIMS, True, T)
        self.arguments |= {"cache": cache, "indexer_cache": indexer_cache, "out": mla.IndexedOutput(out, of_indexer)}
        self.written |= cache.arrays() | out._asdict()
        self.before = {name: array.copy() for name, array in self.written.items()}


@pytest.mark.parametrize("name", ["x", "q_norm", "q_norm_scale", "cos", "sin", "cache_index"])
def test_each_input_is_refused_by_its_name(name):
    case = Alone()
    array = case.arguments[name]
    case.refuses(TypeError, f"^{name}: expected dtype", **{name: array.astype(np.float64)})
    case.refuses(TypeError, f"^{name}: expected a NumPy array, got NoneType", **{name: None})
    case.refuses(ValueError, f"^{name}: expected", **{name: np.concatenate([array, array], axis=-1)})
    case.refuses(ValueError, f"^{name}: expected a C?-?contiguous", **{name: np.repeat(array, 2, axis=0)[::2]})


@pytest.mark.parametrize(("slot", "said"), [(-2, "got -2"), (BLOCKS * BLOCK_SIZE, "got 48")])
@pytest.mark.parametrize("case", [Alone, Beside])
def test_slots_outside_the_cache_are_refused(case, slot, said):
    case = case()
    slots = case.arguments["cache_index"].copy()
    slots[4] = slot
    case.refuses(ValueError, rf"^cache_index\[4\]: .*{said}$", cache_index=slots)


def test_int32_slots_are_taken():
    case, other = Alone(), Alone()
    case.call(**case.arguments)
    other.call(**(other.arguments | {"cache_index": other.arguments["cache_index"].astype(np.int32)}))
    for name, array in case.written.items():
        assert_same_bits(name, other.written[name], array)


def test_caches_are_refused():
    case = Alone()
    case.refuses(TypeError, "^cache: expected IndexerCache, got PagedCache", cache=make_cache(DIMS, True, 3, 16))
    narrow = make_indexer_cache(replace(INDEXER.dims, head_dim=31), BLOCKS, BLOCK_SIZE)
    case.refuses(ValueError, "^k_cache: expected keys of 32 elements, got 31", cache=narrow)
    read_only = make_indexer_cache(INDEXER.dims, BLOCKS, BLOCK_SIZE)
    read_only.k_scale.setflags(write=False)
    case.refuses(ValueError, "^k_scale_cache: expected a writable array", cache=read_only)


def test_a_prolog_asks_for_its_indexers_cache():
    case = Beside()
    case.refuses(TypeError, "^indexer_cache: expected IndexerCache, got NoneType", indexer_cache=None)
    few = make_indexer_cache(INDEXER.dims, BLOCKS - 1, BLOCK_SIZE)
    case.refuses(ValueError, "^indexer_cache: expected at least 48 slots, .*, got 32", indexer_cache=few)
    plain = mla.MlaProlog(WEIGHTS)
    arguments = case.arguments | {"out": None}
    with pytest.raises(ValueError, match=r"^indexer_cache: expected None for a prolog without an indexer, got Indexer"):
        plain(**arguments)


@pytest.mark.parametrize("name", ["query", "query_scale", "weights"])
@pytest.mark.parametrize("case", [Alone, Beside])
def test_outputs_are_refused(case, name):
    case = case()
    out, prefix = case.arguments["out"], "out"
    if isinstance(out, mla.PrologOutput):
        out, prefix = out.indexer, "out.indexer"

    def with_array(array):
        changed = out._replace(**{name: array})
        return changed if prefix == "out" else mla.IndexedOutput(case.arguments["out"], changed)

    array = getattr(out, name)
    case.refuses(TypeError, rf"^{prefix}\.{name}: expected dtype", out=with_array(array.astype(np.float64)))
    case.refuses(ValueError, rf"^{prefix}\.{name}: expected shape", out=with_array(array[:-1]))
    read_only = array.copy()
    read_only.setflags(write=False)
    case.refuses(ValueError, rf"^{prefix}\.{name}: expected a writable", out=with_array(read_only))


def test_outputs_of_a_prolog_without_an_indexer_are_refused():
    case = Beside()
    plain = mla.PrologOutput(*case.arguments["out"])
    case.refuses(TypeError, r"^out\.indexer: expected IndexerOutput, got NoneType", out=plain)


@pytest.mark.parametrize("case", [Alone, Beside])
def test_memory_that_is_shared_is_refused(case):
    case = case()
    cache = case.arguments.get("indexer_cache", case.arguments["cache"])
    out = case.arguments["out"]
    of_indexer = out.indexer if isinstance(out, mla.PrologOutput) else out
    n = of_indexer.query.size
    shared = cache.k.reshape(-1)[:n].reshape(of_indexer.query.shape)
    changed = of_indexer._replace(query=shared)
    given = mla.IndexedOutput(out, changed) if isinstance(out, mla.PrologOutput) else changed
    case.refuses(ValueError, "expected memory of its own, got an overlap with", out=given)


@pytest.mark.parametrize("case", [Alone, Beside])
def test_check_finite_names_the_token(case):
    case = case(check_finite=True)
    x = case.arguments["x"].copy()
    x[5, 3] = np.nan
    case.refuses(ValueError, "^x: expected finite values, got NaN or Inf in token 5", x=x)


def test_check_finite_looks_at_the_scales_of_q_norm():
    case = Alone(check_finite=True)
    scale = case.arguments["q_norm_scale"].copy()
    scale[2] = np.inf
    case.refuses(ValueError, "^q_norm_scale: expected finite values, got NaN or Inf in token 2", q_norm_scale=scale)


@pytest.mark.parametrize(
    ("dims", "name"),
    [
        (mla.MlaDims(132, 3, 50, 68, 10, 10), "hidden_size 130"),
        (mla.MlaDims(130, 3, 51, 68, 10, 10), "q_lora_rank 50"),
        (mla.MlaDims(130, 3, 50, 68, 10, 12), "qk_rope_head_dim 10"),
    ],
)
def test_an_indexer_of_another_layer_is_refused(dims, name):
    other = make_indexer(dims, 3, 32)
    for indexer in (other, other.pack()):
        with pytest.raises(ValueError, match=f"^indexer: expected {name}, that of weights, got "):
            mla.MlaProlog(WEIGHTS, indexer=indexer)


def test_what_an_indexer_cannot_stand_beside():
    with pytest.raises(TypeError, match=r"^indexer: expected IndexerWeights, PackedIndexer or None, got MlaWeights"):
        mla.MlaProlog(WEIGHTS, indexer=WEIGHTS)
    for quant in ("none", "a"):
        with pytest.raises(ValueError, match=f"^indexer: expected None for weights of quant '{quant}', .* int8 q_norm"):
            mla.MlaProlog(make_weights(DIMS, quant), indexer=INDEXER)
    with pytest.raises(ValueError, match=r"^numerics: expected 'pypto' with an indexer, .* got 'cann'"):
        mla.MlaProlog(WEIGHTS, indexer=INDEXER, numerics="cann")
    with pytest.raises(TypeError, match=r"^weights: expected IndexerWeights or PackedIndexer, got MlaWeights"):
        mla.IndexerProlog(WEIGHTS)


def test_packed_weights_that_do_not_fit_are_refused():
    good = INDEXER.pack()
    short = replace(good.up, panels=good.up.panels[:-1])
    for changes, match in (
        ({"up": short}, "expected up of the size and type that dims give"),
        ({"ln_beta_k": good.ln_beta_k[:-1]}, "expected ln_beta_k of the size"),
        ({"dims": replace(good.dims, n_heads=4)}, "expected down of the size|expected up of the size"),
    ):
        with pytest.raises(ValueError, match=match):
            mla.IndexerProlog(replace(good, **changes))
        with pytest.raises(ValueError, match=match):
            mla.MlaProlog(WEIGHTS, indexer=replace(good, **changes))
    with pytest.raises(TypeError, match="epsilon: expected float32, got float"):
        mla.IndexerProlog(replace(good, epsilon=1e-6))


def test_the_output_is_a_tuple_of_four_with_the_indexers_beside_it():
    prolog = mla.MlaProlog(WEIGHTS, indexer=INDEXER)
    out = prolog.allocate_output(T)
    query_nope, _, _, _ = out
    assert query_nope is out.query_nope
    assert isinstance(out, mla.PrologOutput)
    assert len(out) == len(out._asdict()) == 4
    assert isinstance(out.indexer, mla.IndexerOutput)
    other = out._replace(query_nope=None)
    assert (other.query_nope, other.indexer) == (None, out.indexer)
    assert mla.PrologOutput(*out).indexer is None
    assert mla.MlaProlog(WEIGHTS).allocate_output(T).indexer is None
    assert mla.PrologOutput(*out) == out  # as tuples


@pytest.mark.parametrize("indexer", [None, INDEXER], ids=["alone", "with an indexer"])
def test_outputs_are_allocated_for_a_number_of_tokens_alone(indexer):
    """Of each prolog: NumPy's own errors name no argument."""
    prologs = [mla.MlaProlog(WEIGHTS, indexer=indexer)] + ([mla.IndexerProlog(indexer)] if indexer else [])
    for prolog in prologs:
        for t in (True, 1.0, None, "3", np.array(3)):
            with pytest.raises(TypeError, match=f"^t: expected int, got {type(t).__name__}"):
                prolog.allocate_output(t)
        for t in (-1, 2**22 + 1, 10**30):
            with pytest.raises(ValueError, match=r"^t: expected at (least 0|most 4194304), got"):
                prolog.allocate_output(t)
        assert len(prolog.allocate_output(np.int64(2))[0]) == 2


@pytest.mark.parametrize("again", [lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy, copy.copy])
def test_copies_compute_the_same(again):
    inputs, cache = make_inputs(DIMS, T, 48), make_cache(DIMS, True, BLOCKS, BLOCK_SIZE)
    keys = make_indexer_cache(INDEXER.dims, BLOCKS, BLOCK_SIZE)
    want, of_indexer = expect_indexer(WEIGHTS, INDEXER, inputs, cache, keys)
    prolog = again(mla.MlaProlog(WEIGHTS, indexer=INDEXER, n_threads=1))
    out = again(prolog(*inputs, cache, indexer_cache=keys))
    assert_none(check_output(out, cache, want))
    assert_as_reference(out.indexer, keys, of_indexer)
    alone = again(mla.IndexerProlog(INDEXER, n_threads=1, check_finite=True))
    assert (alone.n_threads, alone.check_finite) == (1, True)
    keys = make_indexer_cache(INDEXER.dims, BLOCKS, BLOCK_SIZE)
    x, cos, sin, slots = inputs
    assert_as_reference(alone(x, want.q_norm, want.q_norm_scale, cos, sin, slots, keys), keys, of_indexer)


def test_panels_of_another_order_are_refused(monkeypatch):
    data = pickle.dumps(INDEXER.pack())
    monkeypatch.setattr(packed_gemm, "_PANEL_ORDER", np.inf)
    with pytest.raises(ValueError, match=r"^PackedIndexer: expected panels as .* \(order inf"):
        pickle.loads(data)


def test_a_bound_call_takes_the_slots_of_its_run():
    prolog = mla.MlaProlog(WEIGHTS, indexer=INDEXER)
    inputs, cache = make_inputs(DIMS, T, 48), make_cache(DIMS, True, BLOCKS, BLOCK_SIZE)
    keys = make_indexer_cache(INDEXER.dims, BLOCKS, BLOCK_SIZE)
    call = prolog.bind(*inputs, cache, indexer_cache=keys)
    inputs.cache_index[...] = np.arange(T)[::-1]
    inputs.x[...] = inputs.x[::-1].copy()
    want, of_indexer = expect_indexer(WEIGHTS, INDEXER, inputs, cache, keys)
    out = prolog.run(call)
    assert_none(check_output(out, cache, want))
    assert_as_reference(out.indexer, keys, of_indexer)
    with pytest.raises(
        ValueError, match=r"^call: expected one that a prolog with indexer None bound, got one with Ind"
    ):
        mla.MlaProlog(WEIGHTS).run(call)
    with pytest.raises(ValueError, match=r"^call: expected one that a prolog with indexer Ind.* bound, got .* None"):
        prolog.run(mla.MlaProlog(WEIGHTS).bind(*inputs, cache))


def test_a_prolog_and_its_indexer_start_from_files(tmp_path):
    WEIGHTS.pack().save(tmp_path / "layer.mla")
    INDEXER.pack().save(tmp_path / "indexer.mla")
    packed = mla.PackedIndexer.load(tmp_path / "indexer.mla")
    prolog = mla.MlaProlog.load(tmp_path / "layer.mla", indexer=packed)
    assert prolog.indexer is packed
    assert "indexer=(" in repr(prolog)
    inputs, cache = make_inputs(DIMS, T, 48), make_cache(DIMS, True, BLOCKS, BLOCK_SIZE)
    keys = make_indexer_cache(INDEXER.dims, BLOCKS, BLOCK_SIZE)
    want, of_indexer = expect_indexer(WEIGHTS, INDEXER, inputs, cache, keys)
    out = prolog(*inputs, cache, indexer_cache=keys)
    assert_none(check_output(out, cache, want))
    assert_as_reference(out.indexer, keys, of_indexer)


def test_the_trace_has_the_indexers_phases():
    indexer = make_indexer(mla.MlaDims(512, 4, 192, 64, 32, 16), 8, 64)
    dims = mla.MlaDims(512, 4, 192, 64, 32, 16)
    prolog = mla.MlaProlog(make_weights(dims, "b"), indexer=indexer)
    inputs, cache = make_inputs(dims, 40, 64), make_cache(dims, True, 4, 16)
    keys = make_indexer_cache(indexer.dims, 4, 16)
    _, trace = prolog.profile(*inputs, cache, indexer_cache=keys)
    plan = prolog.plan(40).tile_plans[0]
    done = {}
    for span in trace.tiles[0].spans:
        done[span.phase] = done.get(span.phase, 0) + span.n_tasks
    index = plan.indexer
    rows = -(-40 // index.rows_k)
    assert [done[name] for name in ("index_pack", "index_down", "index_key", "index_heads")] == [
        0, index.down.n_tasks, rows, index.heads.n_tasks,
    ]  # fmt: skip
    assert "index_heads" in trace._repr_html_()
    assert sum(trace.busy_s("index_heads")) > 0
    assert sum(trace.seconds.values()) == pytest.approx(trace.total_s)
    assert set(trace.tiles[0].products_of("index_down")) == {"Matmul_indexK", "Matmul_indexWeights"}
    _, plain = mla.MlaProlog(make_weights(dims, "b")).profile(*inputs, cache)
    assert "index_heads" not in plain._repr_html_()


def test_the_plan_counts_what_the_indexer_adds():
    dims, of_indexer = mla.MlaDims.deepseek_v32(), mla.IndexerDims.deepseek_v32()
    with_it, without = (Plans(dims, "b", PlanSettings("decode", None, None), i).plan(8, 2) for i in (of_indexer, None))
    added = with_it.work.total_bytes - without.work.total_bytes
    n_weights = 7168 * (128 + 64) * 2 + 1536 * 8192 + 2 * 128 * 128 * 2
    outputs = 8 * (64 * (128 + 2 + 2) + 128 + 2)
    assert 0 <= added - n_weights - outputs < 0.02 * n_weights  # scales and padding
    assert with_it.work.flops - without.work.flops == 2 * 8 * (7168 * 192 + 65 * 128 * 128)
    assert with_it.work.int8_ops - without.work.int8_ops == 2 * 8 * 1536 * 8192
    for name, work in without.sweep_work.items():
        assert with_it.sweep_work[name].total_bytes > work.total_bytes
    for text in (str(with_it), with_it.explain(), with_it._repr_html_()):
        assert "QuantMatmul_indexQ" in text
        assert "Matmul_indexK" in text
    assert "indexer" not in without.explain()
    assert type(with_it).from_json(with_it.to_json()) == with_it
    alone = mla.IndexerProlog(INDEXER).plan(700)
    assert type(alone).from_json(alone.to_json()) == alone
    assert "QuantMatmul_indexQ" in alone.explain()


def test_outputs_of_bf16_type_are_not_fp16():
    case = Alone()
    wrong = case.arguments["out"]._replace(weights=np.zeros((T, 3), BF16))
    case.refuses(TypeError, r"^out\.weights: expected dtype float16, got bfloat16", out=wrong)
