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


def test_the_index_equals_the_reference():
    dims = mla.IndexerDims(64, 32, 4, 32, 16)
    rng = np.random.default_rng(6)
    cache = mla.IndexerCache(
        rng.integers(-128, 128, (4, 8, 1, 32), np.int8), rng.uniform(0.01, 0.02, (4, 8, 1, 1)).astype(np.float16)
    )
    query = rng.integers(-128, 128, (T, dims.n_heads, 32), np.int8)
    scale, weights = (rng.standard_normal((T, dims.n_heads)).astype(np.float16) for _ in range(2))
    table, act_seq = np.array([[3, 0], [1, 2]], np.int32), np.array([16, 5], np.int32)
    got = np.full((T, 1, 7), -9, np.int32)
    pypto.lightning_indexer_decode(
        query, scale, cache.k, cache.k_scale[..., 0], weights, act_seq, table, got, [1], None, 7
    )
    out = mla.IndexerOutput(query, scale[..., None], weights)
    want = lightning_index_reference(out, cache, table, act_seq, 7)
    assert compare_bits("topk_res", got[:, 0], want) is None
    with pytest.raises(ValueError, match="topk_res: expected shape"):
        pypto.lightning_indexer_decode(
            query, scale, cache.k, cache.k_scale[..., 0], weights, act_seq, table, got, None, None, 8
        )


@pytest.mark.parametrize("kind", ["int8", "bf16"])
@pytest.mark.parametrize("phase", ["d", "p", "compute_flash"])
def test_attention_equals_the_reference(kind, phase):
    call = random_call(np.random.default_rng(7), kind=kind)
    t, n_heads, latent = call.out.query_nope.shape
    n_seq, n_blocks, size = len(call.act_seq), *call.cache.kv.shape[:2]
    flat = [None if a is None else a.reshape(n_blocks * size, -1) for a in (call.cache.kv, call.cache.kr)]
    scales = None if call.cache.k_scale is None else call.cache.k_scale.reshape(n_blocks * size, 4)
    got = np.full((n_seq, t // n_seq, n_heads, latent), np.nan, BF16)
    index = call.index.astype(np.int32)
    arguments = [
        call.out.query_nope.reshape(t * n_heads, -1), call.out.query_rope.reshape(t * n_heads, -1), *flat, scales,
        index, call.block_table, call.act_seq, got, n_heads, 1, call.softmax_scale, index.shape[1], size,
        call.block_table.shape[1],
    ]  # fmt: skip
    run = getattr(pypto, f"sparse_flash_attention_quant_{phase}")
    tile = 3 if phase == "compute_flash" else None
    run(*arguments, *[] if tile is None else [SimpleNamespace(s_kv_tile=tile)])
    want = sparse_attention_reference(
        call.out, call.cache, index, call.block_table, call.act_seq, call.softmax_scale, flash_tile=tile
    )
    assert compare_bits("attention_out", got.reshape(want.shape), want) is None
    for place, value, said in (
        (8, got[:, :1], "attention_out: expected"),
        (9, 3, "query_nope: expected a multiple of 3 rows"),
        (10, 2, "n_kv: expected"),
        (12, index.shape[1] + 1, "topk_indices: expected shape"),
        (14, 99, "block_table: expected shape"),
    ):
        wrong = [*arguments]
        wrong[place] = value
        with pytest.raises(ValueError, match=said):
            run(*wrong)
