"""What the names of dumped files say."""

import pytest

from mla_numba import dump_names
from mla_numba.dump_names import INPUTS, OUTPUTS, SCALES, STYLES, FileMeaning, meaning_of, name_in
from mla_numba.dumps.arguments import ARGUMENTS
from mla_numba.modes import DUMP_OPERATORS


@pytest.mark.parametrize(
    ("stem", "folder", "argument"),
    [
        ("token_x", "", "token_x"),
        ("x", "", "token_x"),
        ("tokenX", "", "token_x"),
        ("wUqQr", "", "w_uq_qr"),
        ("weightUqQr", "", "w_uq_qr"),
        ("w_qb_scale", "", "dequant_scale"),
        ("dequant_scale_w_uq_qr", "", "dequant_scale"),
        ("rmsnormGammaCkv", "", "gamma_ckv"),
        ("ropeSin", "", "sin"),
        ("kv_len", "", "cache_index"),
        ("kv_quant_scale_cache", "", "k_scale_cache"),
        ("smooth_cq", "", "smooth_scales_cq"),
        ("w_qa_scale", "", "dequant_scale_w_dq"),
        ("kv_cache", "", "kv_cache"),
        ("kv_cache", "output", "kv_cache_out"),
        ("kv_cache_out", "", "kv_cache_out"),
        ("output_kv_cache", "", "kv_cache_out"),
        ("q_norm", "", "q_norm_out"),
        ("qNormOut", "", "q_norm_out"),
        ("q_nope", "", "query_nope_out"),
        ("q_output", "", "query_nope_out"),
        ("0", "", "token_x"),
        ("arg_13", "", "k_scale_cache"),
        ("14", "", "q_norm_out"),
        ("20", "", "k_scale_cache_out"),
        ("03_dequant_scale", "", "dequant_scale"),
        ("7_w_uk", "", "w_uk"),
        ("input_0", "", "token_x"),
        ("input0", "", "token_x"),
        ("input_3_dequant_scale", "", "dequant_scale"),
        ("input_w_dq", "", "w_dq"),
        ("output_2", "", "query_nope_out"),
        ("2", "outputs", "query_nope_out"),
        ("2", "input", "w_uq_qr"),
        ("MlaProlog.mla_prolog.3.7.1700000000000000.input.11", "", "kv_cache"),
        ("MlaProlog.mla_prolog.3.7.1700000000000000.output.4.8x128x1x512", "", "kv_cache_out"),
    ],
)
def test_names_and_numbers(stem, folder, argument):
    assert meaning_of(stem, folder) == FileMeaning(argument)


@pytest.mark.parametrize(
    ("stem", "folder", "argument"),
    [
        ("q_golden", "", "query_nope_out"),
        ("q_rope_golden", "", "query_rope_out"),
        ("rms_norm_golden", "", "q_norm_out"),
        ("rms_norm_scale_golden", "", "q_norm_scale_out"),
        ("kv_cache_golden", "", "kv_cache_out"),
        ("kr_golden", "", "kr_cache_out"),
        ("kv_quant_scale_cache_golden", "", "k_scale_cache_out"),
        ("golden_6", "", "k_scale_cache_out"),
        ("q_norm_out_golden", "", "q_norm_out"),
        ("q_norm", "golden", "q_norm_out"),
        ("3", "golden", "query_rope_out"),
    ],
)
def test_goldens(stem, folder, argument):
    assert meaning_of(stem, folder) == FileMeaning(argument, is_golden=True)


@pytest.mark.parametrize("stem", ["nz_wDq", "w_dq_nz", "nz_wUqQr", "wDkvKr_nz"])
def test_fractal_weights_by_name(stem):
    assert meaning_of(stem).is_nz
    assert meaning_of(stem).argument in ("w_dq", "w_uq_qr", "w_dkv_kr")


@pytest.mark.parametrize(
    ("stem", "folder"),
    [
        ("hidden", ""),
        ("21", ""),
        ("input_14", ""),
        ("output_7", ""),
        ("nz_wUk", ""),
        ("token_x", "output"),
        ("q", "input"),
    ],
)
def test_what_is_no_argument(stem, folder):
    assert meaning_of(stem, folder) is None


@pytest.mark.parametrize("style", STYLES)
def test_every_name_that_is_written_is_understood(style):
    names = [name_in(style, argument) for argument in (*INPUTS, *SCALES, *OUTPUTS)]
    assert len(set(names)) == len(names)
    for argument in (*INPUTS, *SCALES, *OUTPUTS):
        assert meaning_of(name_in(style, argument)) == FileMeaning(argument, is_golden=argument in OUTPUTS)


@pytest.mark.parametrize(
    ("operator", "stem", "folder", "argument"),
    [
        ("lightning_indexer_prolog_quant", "w_qb", "", "w_qb_in"),
        ("lightning_indexer_prolog_quant", "token_x", "", "x_in"),
        ("lightning_indexer_prolog_quant", "idx_k_cache", "", "k_int8_in"),
        ("lightning_indexer_prolog_quant", "idx_k_cache_out", "", "k_int8_out"),
        ("lightning_indexer_prolog_quant", "q_int8", "", "q_int8_out"),
        ("lightning_indexer_prolog_quant", "20", "", "weights_out"),
        ("mla_indexer_prolog_quant", "wUqQr", "", "mla_w_uq_qr"),
        ("mla_indexer_prolog_quant", "w_qb_scale", "", "mla_dequant_scale"),
        ("mla_indexer_prolog_quant", "w_idx_qb_scale", "", "ip_w_qb_scale_in"),
        ("mla_indexer_prolog_quant", "q", "output", "mla_query_nope_out"),
        ("mla_indexer_prolog_quant", "query", "output", "ip_q_int8_out"),
        ("mla_indexer_prolog_quant", "kv_quant_scale_cache_out", "", "mla_k_scale_cache_out"),
        ("mla_indexer_prolog_quant", "output_9", "", "ip_weights_out"),
        ("mla_indexer_prolog_quant", "smooth_cq", "", "smooth_scales_cq"),
        ("lightning_indexer_quant", "weights", "", "idx_weight"),
        ("lightning_indexer_quant", "topk_res_out", "", "topk_res"),
        ("lightning_indexer_quant", "7", "", "topk_res"),
        ("sparse_flash_attention_quant", "atten_out", "", "attention_out"),
        ("sparse_flash_attention_quant", "actual_seq", "", "kv_act_seqs"),
        ("sparse_attention_antiquant", "input_2", "", "nope_cache"),
    ],
)
def test_names_of_other_operators(operator, stem, folder, argument):
    assert meaning_of(stem, folder, operator) == FileMeaning(argument)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("operator", DUMP_OPERATORS)
def test_every_name_of_every_operator_is_understood(operator, style):
    arguments = ARGUMENTS[operator]
    written = [name_in(style, name, operator) for name in arguments.by_name]
    assert len(set(written)) == len(written)
    for argument, name in zip(arguments.by_name.values(), written, strict=True):
        is_golden = argument in arguments.all_outputs
        assert meaning_of(name, "", operator) == FileMeaning(argument.name, is_golden)
        if argument.may_be_nz:
            assert meaning_of(f"{argument.others[0]}_nz", "", operator) == FileMeaning(argument.name, is_nz=True)
    assert len(arguments.by_key) == len(arguments.by_name) == len(arguments.all_inputs + arguments.all_outputs)


@pytest.mark.parametrize("operator", DUMP_OPERATORS)
def test_the_order_of_each_operator_is_said(operator):
    inputs, outputs = ([a.name for a in part] for part in (ARGUMENTS[operator].inputs, ARGUMENTS[operator].outputs))
    said = " ".join(dump_names.__doc__.split())
    assert f"- `{operator}`: {', '.join(inputs)}; outputs {', '.join(outputs)}." in said
