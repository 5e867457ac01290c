"""The reference's operators behind the prolog, by their names and order of arguments."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.attention_calls import random_call
from helpers.calls import BF16, make_inputs
from helpers.indexer_calls import make_indexer, make_indexer_cache, make_indexer_output

import mla_numba as mla
from mla_numba import pypto
from mla_numba.layouts import to_fractal_nz
from mla_numba.oracle.bits import check_indexer_output, compare_bits
from mla_numba.oracle.indexer import indexer_prolog_reference
from mla_numba.oracle.lightning_index import lightning_index_reference
from mla_numba.oracle.sparse_attention import sparse_attention_reference

DIMS = mla.MlaDims(64, 2, 32, 32, 16, 16)
T = 4
ARGUMENTS = {
    "lightning_indexer_prolog_quant": "x_in q_norm_in q_norm_scale_in w_qb_in w_qb_scale_in wk_in w_proj_in "
    "ln_gamma_k_in ln_beta_k_in cos_idx_rope_in sin_idx_rope_in hadamard_q_in hadamard_k_in k_int8_in k_scale_in "
    "k_cache_index_in q_int8_out q_scale_out k_int8_out k_scale_out weights_out configs attrs",
    "lightning_indexer_decode": "idx_query idx_query_scale idx_key_cache idx_key_scale idx_weight act_seq_key "
    "block_table topk_res unroll_list configs selected_count",
    "sparse_flash_attention_quant_d": "query_nope query_rope key_nope_2d key_rope_2d k_nope_scales topk_indices "
    "block_table kv_act_seqs attention_out nq n_kv softmax_scale topk block_size max_blocknum_perbatch tile_config",
}
ARGUMENTS["sparse_flash_attention_quant_compute_flash"] = ARGUMENTS["sparse_flash_attention_quant_d"]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_order_of_arguments(name):
    assert list(inspect.signature(getattr(pypto, name)).parameters) == ARGUMENTS[name].split()


def prolog_call(fractal=False, epsilon=1e-6):
    """The inputs of a call in their order, the cache, outputs, and what the reference makes of them."""
    indexer = make_indexer(DIMS, 4, 32, epsilon=epsilon)
    x, cos, sin, slots = make_inputs(DIMS, T, 32, 0)
    rng = np.random.default_rng(5)
    q_norm = rng.integers(-128, 128, (T, DIMS.q_lora_rank), np.int8)
    q_norm_scale = rng.uniform(0.01, 0.02, (T, 1)).astype(np.float32)
    cache = make_indexer_cache(indexer.dims, 2, 16)
    want = indexer_prolog_reference(indexer, x, q_norm, q_norm_scale, cos, sin, slots, cache)
    of_layout = to_fractal_nz if fractal else np.copy
    w = indexer
    inputs = [
        x, q_norm, q_norm_scale, of_layout(w.w_qb), w.w_qb_scale.reshape(-1, 1), of_layout(w.wk), of_layout(w.w_proj),
        w.ln_gamma_k, w.ln_beta_k, cos, sin, w.hadamard_q, w.hadamard_k, cache.k, cache.k_scale, slots,
    ]  # fmt: skip
    return inputs, cache, make_indexer_output(indexer.dims, T), want


@pytest.mark.parametrize("fractal", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_prolog_equals_the_reference(fractal, in_place):
    inputs, cache, out, want = prolog_call(fractal, epsilon=1e-5)
    after = cache if in_place else make_indexer_cache(mla.IndexerDims(64, 32, 4, 32, 16), 2, 16, seed=9)
    before = cache.copy()
    attrs = pypto.IndexerPrologQuantAttr(eps=1e-5)
    pypto.lightning_indexer_prolog_quant(
        *inputs, out.query, out.query_scale, after.k, after.k_scale, out.weights, None, attrs
    )
    assert check_indexer_output(out, after, want) == []
    if not in_place:
        assert compare_bits("k_int8_in", cache.k, before.k) is None


def test_the_prolog_refuses_by_the_names_of_its_arguments():
    inputs, cache, out, _ = prolog_call()
    outputs = [out.query, out.query_scale, cache.k, cache.k_scale, out.weights]
    for place, value, said in (
        (1, inputs[1][:, :8], "q_norm_in: expected shape"),
        (15, np.array([0, 1, 2, 99]), r"k_cache_index_in\[3\]: expected"),
        (9, inputs[9][:2], "cos_idx_rope_in: expected shape"),
        (16, out.query[:2], "q_int8_out: expected shape"),
        (18, cache.k[:1], "k_scale_out: expected"),
    ):
        given = [*inputs, *outputs]
        given[place] = np.ascontiguousarray(value)
        with pytest.raises(ValueError, match=said):
            pypto.lightning_indexer_prolog_quant(*given)
    with pytest.raises(TypeError, match="attrs: expected IndexerPrologQuantAttr"):
        pypto.lightning_indexer_prolog_quant(*inputs, *outputs, None, 1e-6)
    with pytest.raises(ValueError, match="layerout_key"):
        pypto.IndexerPrologQuantAttr(layerout_key="BSND")


def index_call():
    """The arguments of `lightning_indexer_decode` by name, but for those of an NPU."""
    dims = mla.IndexerDims(64, 32, 4, 32, 16)
    rng = np.random.default_rng(6)
    cache = mla.IndexerCache(
        rng.integers(-128, 128, (4, 8, 1, 32), np.int8), rng.uniform(0.01, 0.02, (4, 8, 1, 1)).astype(np.float16)
    )
    query = rng.integers(-128, 128, (T, dims.n_heads, 32), np.int8)
    scale, weights = (rng.standard_normal((T, dims.n_heads)).astype(np.float16) for _ in range(2))
    table, act_seq = np.array([[3, 0], [1, 2]], np.int32), np.array([16, 5], np.int32)
    return {
        "idx_query": query, "idx_query_scale": scale, "idx_key_cache": cache.k, "idx_key_scale": cache.k_scale[..., 0],
        "idx_weight": weights, "act_seq_key": act_seq, "block_table": table,
        "topk_res": np.full((T, 1, 7), -9, np.int32), "selected_count": 7,
    }  # fmt: skip


def test_the_index_equals_the_reference():
    call = index_call()
    pypto.lightning_indexer_decode(**call, unroll_list=[1], configs=None)
    out = mla.IndexerOutput(call["idx_query"], call["idx_query_scale"][..., None], call["idx_weight"])
    cache = mla.IndexerCache(call["idx_key_cache"], call["idx_key_scale"][..., None])
    want = lightning_index_reference(out, cache, call["block_table"], call["act_seq_key"], 7)
    assert compare_bits("topk_res", call["topk_res"][:, 0], want) is None
    with pytest.raises(ValueError, match="topk_res: expected shape"):
        pypto.lightning_indexer_decode(**call | {"selected_count": 8})
    with pytest.raises(ValueError, match=r"^selected_count: expected at most 4096, got 4097"):
        pypto.lightning_indexer_decode(**call | {"selected_count": 4097})


def attention_call(kind="int8"):
    """The arguments of `sparse_flash_attention_quant_d` by name, and the call that they are of."""
    call = random_call(np.random.default_rng(7), kind=kind)
    t, n_heads, latent = call.out.query_nope.shape
    n_seq, n_blocks, size = len(call.act_seq), *call.cache.kv.shape[:2]
    scales = call.cache.k_scale
    index = call.index.astype(np.int32)
    return call, {
        "query_nope": call.out.query_nope.reshape(t * n_heads, -1),
        "query_rope": call.out.query_rope.reshape(t * n_heads, -1),
        "key_nope_2d": call.cache.kv.reshape(n_blocks * size, -1),
        "key_rope_2d": call.cache.kr.reshape(n_blocks * size, -1),
        "k_nope_scales": None if scales is None else scales.reshape(n_blocks * size, 4),
        "topk_indices": index, "block_table": call.block_table, "kv_act_seqs": call.act_seq,
        "attention_out": np.full((n_seq, t // n_seq, n_heads, latent), np.nan, BF16), "nq": n_heads, "n_kv": 1,
        "softmax_scale": call.softmax_scale, "topk": index.shape[1], "block_size": size,
        "max_blocknum_perbatch": call.block_table.shape[1],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["int8", "bf16"])
@pytest.mark.parametrize("phase", ["d", "p", "compute_flash"])
def test_attention_equals_the_reference(kind, phase):
    call, arguments = attention_call(kind)
    run = getattr(pypto, f"sparse_flash_attention_quant_{phase}")
    tile = 3 if phase == "compute_flash" else None
    run(**arguments | ({} if tile is None else {"tile_config": SimpleNamespace(s_kv_tile=tile)}))
    want = sparse_attention_reference(
        call.out, call.cache, arguments["topk_indices"], call.block_table, call.act_seq, call.softmax_scale,
        flash_tile=tile,
    )  # fmt: skip
    got = arguments["attention_out"]
    assert compare_bits("attention_out", got.reshape(want.shape), want) is None
    for name, value, said in (
        ("attention_out", got[:, :1], "attention_out: expected"),
        ("nq", 3, "query_nope: expected a multiple of 3 rows"),
        ("n_kv", 2, "n_kv: expected"),
        ("topk", arguments["topk"] + 1, "topk_indices: expected shape"),
        ("max_blocknum_perbatch", 99, "block_table: expected shape"),
        ("softmax_scale", np.nan, "softmax_scale: expected a number that is finite"),
    ):
        with pytest.raises(ValueError, match=said):
            run(**arguments | {name: value})
    for name in ("nq", "n_kv", "topk", "block_size", "max_blocknum_perbatch"):
        for value in (None, 1.0, "1", True):
            with pytest.raises(TypeError, match=f"^{name}: expected int, got {type(value).__name__}"):
                run(**arguments | {name: value})


def call_of(name):
    """A function, and arguments that it takes."""
    if name == "lightning_indexer_prolog_quant":
        inputs, cache, out, _ = prolog_call()
        after = cache.copy()
        values = [*inputs, out.query, out.query_scale, after.k, after.k_scale, out.weights]
        arguments = dict(zip(ARGUMENTS[name].split(), values, strict=False))
    else:
        arguments = index_call() if name == "lightning_indexer_decode" else attention_call()[1]
    return getattr(pypto, name), arguments


WRITTEN = {
    "lightning_indexer_prolog_quant": ("q_int8_out", "q_scale_out", "k_int8_out", "k_scale_out", "weights_out"),
    "lightning_indexer_decode": ("topk_res",),
    "sparse_flash_attention_quant_d": ("attention_out",),
}


def no_longer_contiguous(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


@pytest.mark.parametrize("name", WRITTEN)
def test_each_argument_is_refused_by_its_name_and_nothing_is_written(name):
    run, arguments = call_of(name)
    arrays = {argument: value for argument, value in arguments.items() if isinstance(value, np.ndarray)}
    before = {argument: arrays[argument].copy() for argument in WRITTEN[name]}
    for argument, array in arrays.items():
        wrong = [
            (TypeError, array.tolist()),
            (TypeError, None),
            (TypeError, array.astype(np.float64)),
            (TypeError, np.ma.masked_array(array)),
            (ValueError, array[..., None, None, None]),
            (ValueError, array[:-1] if argument not in ("x_in", "key_rope_2d", "query_nope") else array[0]),
        ]
        if array.ndim > 1 and array.shape[-1] > 1 and argument not in ("topk_indices", "block_table"):
            wrong.append((ValueError, no_longer_contiguous(array)))
        if argument in WRITTEN[name]:
            wrong.append((ValueError, read_only(array)))
        for error, value in wrong:
            with pytest.raises(error) as caught:
                run(**arguments | {argument: value})
            said = str(caught.value)
            # Where two shapes do not fit each other, the other one may be named.
            assert said.split(":")[0].split("[")[0] in ({argument} if error is TypeError else arguments), said
            assert " expected " in said, said
    for argument, values in before.items():
        assert compare_bits(argument, arrays[argument], values) is None


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize("name", WRITTEN)
def test_outputs_that_overlap_are_refused(name):
    """With each argument that is read while they are written; weights are packed before."""
    run, arguments = call_of(name)
    for written in WRITTEN[name]:
        array, tried = arguments[written], 0
        for argument, other in arguments.items():
            if argument == written or not isinstance(other, np.ndarray) or other.dtype.itemsize > array.itemsize:
                continue
            if argument.startswith(("w_", "wk_", "ln_", "hadamard_")):
                continue
            if {argument, written} in ({"k_int8_in", "k_int8_out"}, {"k_scale_in", "k_scale_out"}):
                continue  # which is how a cache is written in place
            whole = np.zeros(max(array.nbytes, other.nbytes), np.uint8)
            ours, theirs = (whole[: a.nbytes].view(a.dtype).reshape(a.shape) for a in (array, other))
            theirs[...] = other
            before = whole.copy()
            with pytest.raises(ValueError, match=": expected memory of its own, got an overlap with ") as caught:
                run(**arguments | {written: ours, argument: theirs})
            said = str(caught.value)
            assert {said.partition(":")[0], said.rpartition(" ")[2]} == {written, argument}
            assert (whole == before).all()
            tried += 1
        assert tried


def test_a_fault_of_the_cache_that_is_read_is_named_so():
    run, arguments = call_of("lightning_indexer_prolog_quant")
    with pytest.raises(TypeError, match=r"^k_int8_in: expected dtype int8, got uint8"):
        run(**arguments | {"k_int8_in": arguments["k_int8_in"].view(np.uint8)})
    with pytest.raises(ValueError, match=r"^k_int8_out: expected shape \(2, 16, 1, 32\), got \(1, 16, 1, 32\)"):
        run(**arguments | {"k_int8_out": arguments["k_int8_out"][:1], "k_scale_out": arguments["k_scale_out"][:1]})
