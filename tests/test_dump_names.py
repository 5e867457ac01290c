"""What the names of dumped files say."""

import pytest

from mla_numba.dump_names import INPUTS, OUTPUTS, SCALES, STYLES, FileMeaning, meaning_of, name_in


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
