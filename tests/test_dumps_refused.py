"""What is said of dumped files that do not fit."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers.dump_folders import DIMS, SMALL, as_bf16, folder_of, rewrite

from mla_numba.dumps import DumpSettings, dump_settings, read_dump


def test_missing_inputs_are_listed_with_their_names(tmp_path):
    folder = folder_of(tmp_path)
    for name in ("token_x", "k_scale_cache"):
        (folder / f"{name}.npy").unlink()
    with pytest.raises(ValueError, match="missing are") as caught:
        read_dump(folder)
    assert str(caught.value).splitlines()[1:] == [
        "  token_x, or x, input_0",
        "  k_scale_cache, or kv_quant_scale_cache, input_13",
    ]
    (folder / "dequant_scale.npy").unlink()  # then no scales of the cache are wanted
    with pytest.raises(ValueError, match=r"missing are\n  token_x, or x, input_0$"):
        read_dump(folder)
    with pytest.raises(FileNotFoundError, match="expected a folder, got none"):
        read_dump(tmp_path / "none")
    with pytest.raises(ValueError, match=r"got none of them; missing are\n  token_x"):
        read_dump(tmp_path)


def test_two_files_for_one_input(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "x.bin").touch()
    with pytest.raises(ValueError, match=r"token_x: expected one file, got token_x\.npy and x\.bin"):
        read_dump(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("token_x", "token_x (token_x.bin): expected a multiple of 140 bytes, (any, 70) bfloat16, got 699 bytes"),
        ("w_dq", "w_dq (w_dq.bin): expected 7000 bytes, (70, 50) bfloat16, got 6999 bytes"),
        ("w_uq_qr", "w_uq_qr (w_uq_qr.bin): expected 7500 bytes, (50, 150) int8, got 7499 bytes"),
        ("cos", "cos (cos.bin): expected 320 bytes, (5, 32) bfloat16, got 319 bytes"),
        (
            "cache_index",
            "cache_index (cache_index.bin): expected 40 bytes, (5) int64 or 20 bytes, (5) int32, got 39 bytes",
        ),
        ("kv_cache", "kv_cache (kv_cache.bin): expected a multiple of 256 bytes, (any, 4, 1, 64) int8, got 767 bytes"),
        ("kr_cache", "kr_cache (kr_cache.bin): expected 768 bytes, (3, 4, 1, 32) bfloat16, got 767 bytes"),
        ("query_nope_golden", "query_nope_out (query_nope_golden.bin): expected 1920 bytes, (5, 3, 64) bfloat16"),
        ("q_norm_golden", "q_norm_out (q_norm_golden.bin): expected 250 bytes, (5, 50) int8, got 249 bytes"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, name, text):
    folder = folder_of(tmp_path, file_format="bin")
    path = folder / f"{name}.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=re.escape(text)):
        read_dump(folder)


@pytest.mark.parametrize(
    ("name", "change", "error", "text"),
    [
        ("token_x", lambda a: a[:, :-1], ValueError, "token_x (token_x.npy): expected shape (any, 70), got (5, 69)"),
        ("w_dq", lambda a: a.T, ValueError, "w_dq (w_dq.npy): expected shape (70, 50) or (4, 5, 16, 16), got (50, 70)"),
        ("w_uk", lambda a: a[0], ValueError, "w_uk (w_uk.npy): expected shape (3, 18, 64), got (18, 64)"),
        ("sin", lambda a: a[:-1], ValueError, "sin (sin.npy): expected shape (5, 32), got (4, 32)"),
        ("kr_cache", lambda a: a[:-1], ValueError, "kr_cache (kr_cache.npy): expected shape (3, 4, 1, 32), got (2,"),
        ("query_rope_golden", lambda a: a.swapaxes(0, 1), ValueError, "expected shape (5, 3, 32), got (3, 5, 32)"),
        ("kv_cache_golden", lambda a: a[:2], ValueError, "expected shape (3, 4, 1, 64), got (2, 4, 1, 64)"),
        (
            "token_x",
            lambda a: as_bf16(a).astype(np.float16),
            TypeError,
            "token_x (token_x.npy): expected bfloat16 (|V2, its bits as uint16 or int16, or float32 that bf16 holds), "
            "got float16",
        ),
        ("w_uq_qr", lambda a: a.astype(np.int16), TypeError, "w_uq_qr (w_uq_qr.npy): expected int8, got int16"),
        ("dequant_scale", lambda a: a.astype(np.float64), TypeError, "expected float32 or float16, got float64"),
        ("cache_index", lambda a: a.astype(np.float32), TypeError, "expected int64 or int32, got float32"),
        ("k_scale_cache_golden", lambda a: a.astype(np.float16), TypeError, "expected float32, got float16"),
        ("q_norm_golden", lambda a: a.astype(">f4"), TypeError, "expected int8, got >f4 in byte order '>'"),
        ("cache_index", lambda a: a + 12, ValueError, "a slot below the capacity 12, got"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, name, change, error, text):
    folder = folder_of(tmp_path)
    rewrite(folder, name, change)
    with pytest.raises(error, match=re.escape(text)):
        read_dump(folder)


def test_float32_that_bf16_does_not_hold(tmp_path):
    folder = folder_of(tmp_path)

    def change(array):
        wide = as_bf16(array).astype(np.float32)
        wide[2, 7] = 1.001
        wide[0, 0] = np.nan  # which bf16 has
        return wide

    rewrite(folder, "token_x", change)
    with pytest.raises(ValueError, match=r"float32 values that bf16 holds, got 1\.001[0-9]* at \[2, 7\]"):
        read_dump(folder)


def test_fractals_with_something_in_their_padding(tmp_path):
    folder = folder_of(tmp_path, settings=replace(SMALL, nz=True))
    rewrite(folder, "w_dq", lambda a: np.full_like(a.view(np.uint16), 0x3F80))
    with pytest.raises(ValueError, match=r"w_dq \(w_dq\.npy\): expected zeros beyond row 70 and column 50"):
        read_dump(folder)


def test_a_broken_npy(tmp_path):
    folder = folder_of(tmp_path)
    for content in (b"", b"\x93NUMPY broken"):
        (folder / "cos.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"cos \(cos\.npy\): expected a \.npy of numbers, got one that fails"):
            read_dump(folder)


def test_more_tokens_than_rows(tmp_path):
    folder = folder_of(tmp_path, settings=replace(SMALL, cache_mode="TND"), file_format="bin")
    for name, row in (("kv_cache", 64), ("kr_cache", 64), ("k_scale_cache", 16)):
        path = folder / f"{name}.bin"
        path.write_bytes(path.read_bytes()[: 4 * row])
    with pytest.raises(ValueError, match="token_x: expected at most 4 tokens, the rows of kv_cache, got 5"):
        read_dump(folder)


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        ("{", ValueError, "dims.json: expected JSON, got Expecting property name"),
        ("[]", ValueError, "dims.json: expected a JSON object, got list"),
        ('{"hidden_size": 4}', ValueError, "dims.json: config.num_attention_heads: expected an int, got none"),
        (
            {"cache_mode": "NZ"},
            ValueError,
            "dims.json: cache_mode: expected one of PA_BSND, PA_NZ, BSND, TND, got",
        ),
        ({"nz": 1}, TypeError, "dims.json: nz: expected bool, got int"),
        ({"block_size": 0}, ValueError, "dims.json: block_size: expected at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, content, error, text):
    if isinstance(content, dict):
        content = json.dumps(asdict(DIMS) | content)
    (tmp_path / "dims.json").write_text(content)
    with pytest.raises(error, match=re.escape(text)):
        dump_settings(tmp_path)


def test_dims_are_dims():
    with pytest.raises(TypeError, match="dims: expected MlaDims or None, got dict"):
        DumpSettings(dims={})
    with pytest.raises(ValueError, match="epsilon_cq: expected a number of at least 0"):
        DumpSettings(epsilon_cq=-1)
