"""Folders of dumped arguments: their files, what is said of those that don't fit, and the verdict on the others."""

import json
import re
from dataclasses import asdict, replace

import ml_dtypes
import numpy as np
import pytest
from helpers import MODES, assert_none

from mla_numba import MlaDims, MlaProlog
from mla_numba.dump_names import OUTPUTS, STYLES
from mla_numba.dumps import DumpSettings, check_dump, dump_settings, read_dump, write_dump
from mla_numba.layouts import pa_bsnd_to_pa_nz, to_fractal_nz
from mla_numba.oracle.bits import check_output, compare_bits

BF16 = np.dtype(ml_dtypes.bfloat16)
DIMS = MlaDims(70, 3, 50, 64, 18, 32)  # no weight fills its fractals
T = 5
SMALL = DumpSettings(dims=DIMS, block_size=4)


def folder_of(tmp_path, mode="b", settings=SMALL, **how):
    quant, _, smooth = mode.partition(" ")
    write_dump(tmp_path / "dump", T, quant, settings=settings, smooth=bool(smooth), **how)
    return tmp_path / "dump"


def rewrite(folder, name, change):
    """Saves what `change` makes of an array under the same name."""
    np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


def as_bf16(array):
    return array.view(BF16)


# Folders


@pytest.mark.parametrize("file_format", ["npy", "bin"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_written_is_read_and_exact(tmp_path, mode, style, file_format):
    folder = folder_of(tmp_path, mode, style=style, file_format=file_format)
    dump = read_dump(folder)
    assert dump.weights.dims == DIMS
    assert (dump.weights.quant + " smooth" * (dump.weights.smooth_scales_cq is not None)) == mode
    assert len(dump.x) == T
    assert dump.cache.capacity == 12
    report = check_dump(dump, exact=True)
    assert [found.name for found in report] == [
        name for name in OUTPUTS if "b" in mode or name not in ("q_norm_scale_out", "k_scale_cache_out")
    ]
    assert all(found.exact and found.passed for found in report)
    assert (dump.missing, dump.unread, dump.goldens_left_out) == ((), (), ())


@pytest.mark.parametrize("mode", ["b smooth", "none"])
@pytest.mark.parametrize("cache_mode", ["PA_NZ", "BSND", "TND"])
@pytest.mark.parametrize("file_format", ["npy", "bin"])
def test_caches_and_fractals(tmp_path, mode, cache_mode, file_format):
    settings = replace(SMALL, cache_mode=cache_mode, nz=True, numerics="cann", epsilon_cq=1e-3, epsilon_ckv=1e-2)
    scales = "float16" if "b" in mode else "float32"
    folder = folder_of(tmp_path, mode, settings, file_format=file_format, scale_dtype=scales)
    dump = read_dump(folder)
    assert dump.settings == settings
    assert dump.cache.k_scale is None or dump.cache.k_scale.dtype == np.float16
    assert all(found.exact for found in check_dump(dump, exact=True))
    # Each setting is one that counts.
    for other in (
        {"numerics": "pypto"} if "b" in mode else {"epsilon_cq": 1e-5},
        {"epsilon_cq": 1e-5},
        {"epsilon_ckv": 1e-5},
    ):
        assert not all(found.exact for found in check_dump(read_dump(folder, replace(settings, **other))))


def test_the_kernels_outputs_pass(tmp_path):
    """A folder's inputs are those of a call of the library."""
    dump = read_dump(folder_of(tmp_path))
    want = dump.reference()
    cache = dump.cache.copy()
    out = MlaProlog(dump.weights)(dump.x, dump.cos, dump.sin, dump.cache_index, cache)
    assert_none(check_output(out, cache, want))


def test_written_folders_are_alike(tmp_path):
    first, second = (folder_of(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3)))
    other = folder_of(tmp_path / "c", seed=4)
    for path in sorted(first.glob("*")):
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert (first / "token_x.npy").read_bytes() != (other / "token_x.npy").read_bytes()


def test_nothing_is_overwritten(tmp_path):
    folder = folder_of(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*")}
    with pytest.raises(FileExistsError, match=r"token_x\.npy: expected no such file, got one"):
        folder_of(tmp_path)
    with pytest.raises(FileExistsError, match=r"dims\.json"):
        folder_of(tmp_path, file_format="bin")
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*")} == before


@pytest.mark.parametrize("file_format", ["npy", "bin"])
def test_a_dump_that_cannot_be_written_leaves_no_file(tmp_path, file_format):
    resource = pytest.importorskip("resource")
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "mine.txt").write_text("kept")
    finished = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for token_x, not for w_dq.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"requested and \d+ written"):
            folder_of(tmp_path, file_format=file_format, finished=finished.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert finished == ["token_x"]
    assert [path.name for path in (tmp_path / "dump").iterdir()] == ["mine.txt"]


def test_a_dump_that_is_interrupted_leaves_no_file(tmp_path):
    def interrupt(name):
        if name == "w_uk":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder_of(tmp_path, finished=interrupt)
    assert not list((tmp_path / "dump").iterdir())


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"style": "torch"}, ValueError, "style: expected one of reference, pypto, numbers, got 'torch'"),
        ({"file_format": "npz"}, ValueError, "file_format: expected one of npy, bin, pt, got 'npz'"),
        ({"n_blocks": 1}, ValueError, "n_blocks: expected at least 2, got 1"),
        ({"scale_dtype": "bfloat16"}, ValueError, "scale_dtype: expected one of float32, float16"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"settings": DumpSettings(DIMS, 4, "PA_NZ"), "mode": "fp8"}, ValueError, "quant: expected one of"),
    ],
)
def test_what_cannot_be_written(tmp_path, how, error, text):
    with pytest.raises(error, match=re.escape(text)):
        folder_of(tmp_path, **how)
    assert not (tmp_path / "dump").exists()


# Elements and shapes of .npy files


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a.view(np.uint16),
        lambda a: a.view(np.int16),
        lambda a: as_bf16(a).astype(np.float32),
        lambda a: np.asfortranarray(a.view(np.uint16)),
        lambda a: a.reshape(1, T, *a.shape[1:]),
    ],
)
@pytest.mark.parametrize("name", ["token_x", "query_rope_golden"])
def test_forms_of_bf16(tmp_path, name, change):
    folder = folder_of(tmp_path)
    assert np.load(folder / f"{name}.npy").dtype == np.dtype("V2")
    rewrite(folder, name, change)
    assert all(found.exact for found in check_dump(read_dump(folder)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dequant_scale", lambda a: a.reshape(1, -1)),
        ("dequant_scale", lambda a: a.reshape(-1)),
        ("cache_index", lambda a: a.astype(np.int32)),
        ("cache_index", lambda a: a.reshape(T, 1)),
        ("q_norm_scale_golden", lambda a: a.reshape(T)),
        ("kv_cache", lambda a: a.reshape(-1, 64)),
        ("kr_cache", lambda a: a.reshape(3, 4, 32)),
        ("kv_cache_golden", lambda a: a.reshape(-1, 64)),
        ("k_scale_cache_golden", lambda a: a.reshape(12, 4)),
        ("gamma_cq", lambda a: a.reshape(1, -1)),
        ("w_dq", lambda a: to_fractal_nz(as_bf16(a))),
        ("w_dkv_kr", lambda a: to_fractal_nz(as_bf16(a)).reshape(6, 80, 16)),
    ],
)
def test_shapes_that_mean_the_same(tmp_path, name, change):
    folder = folder_of(tmp_path)
    rewrite(folder, name, change)
    assert all(found.exact for found in check_dump(read_dump(folder)))


def test_float16_scales_are_rounded_before_they_are_compared(tmp_path):
    folder = folder_of(tmp_path)
    rewrite(folder, "q_norm_scale_golden", lambda a: a.astype(np.float16))
    (found,) = check_dump(read_dump(folder))  # whoever replaced a golden is the operator
    assert (found.name, found.exact) == ("q_norm_scale_out", True)
    rewrite(folder, "dequant_scale", lambda a: a.astype(np.float16))
    assert read_dump(folder).weights.dequant_scale_w_uq_qr.dtype == np.float32


def test_caches_of_four_axes_in_nz(tmp_path):
    folder = folder_of(tmp_path, settings=replace(SMALL, cache_mode="PA_NZ"))
    rewrite(folder, "kv_cache", lambda a: a.reshape(3, 2, 4, 32))
    rewrite(folder, "kv_cache_golden", lambda a: a.reshape(3, 2, 4, 32))
    assert all(found.exact for found in check_dump(read_dump(folder)))


def test_npy_files_tell_dimensions_and_blocks(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "dims.json").unlink()
    dump = read_dump(folder)
    assert dump.settings == DumpSettings(dims=DIMS)
    assert dump.cache.block_size == 4
    assert all(found.exact for found in check_dump(dump))


def test_bin_files_need_dimensions(tmp_path):
    folder = folder_of(tmp_path, file_format="bin")
    (folder / "dims.json").unlink()
    with pytest.raises(ValueError, match=r"w_qb_scale|dequant_scale \(dequant_scale\.bin\): expected 98304 bytes"):
        read_dump(folder)
    (folder / "config.json").write_text(json.dumps(asdict(DIMS)))
    assert dump_settings(folder) == dump_settings(folder, dims=None) == DumpSettings(dims=DIMS)
    assert all(found.exact for found in check_dump(read_dump(folder, dump_settings(folder, block_size=4))))


def test_an_empty_scale_means_bf16(tmp_path):
    """So the reference operator's test says that there is no scale."""
    for file_format in ("npy", "bin"):
        folder = folder_of(tmp_path / file_format, "none", file_format=file_format)
        if file_format == "npy":
            np.save(folder / "dequant_scale.npy", np.zeros((0,), np.float32))
            np.save(folder / "k_scale_cache.npy", np.zeros((3, 4, 1, 4), np.float32))
        else:
            (folder / "dequant_scale.bin").touch()
        dump = read_dump(folder)
        assert dump.weights.quant == "none"
        assert all(found.exact for found in check_dump(dump))
        assert dump.missing == (("k_scale_cache_out",) if file_format == "npy" else ())


def test_subfolders(tmp_path):
    folder = folder_of(tmp_path, style="numbers", file_format="bin")
    (folder / "input").mkdir()
    (folder / "output").mkdir()
    for path in folder.glob("*.bin"):
        kind, number = path.stem.split("_")
        path.rename(folder / {"input": "input", "golden": "output"}[kind] / f"{number}.bin")
    report = check_dump(read_dump(folder))
    assert [found.file for found in report] == [f"output/{i}.bin" for i in range(7)]
    assert all(found.exact for found in report)


def test_a_weight_in_both_layouts(tmp_path):
    folder = folder_of(tmp_path, file_format="bin", style="pypto")
    fractals = to_fractal_nz(np.fromfile(folder / "wDq.bin", BF16).reshape(70, 50))
    fractals.tofile(folder / "nz_wDq.bin")
    dump = read_dump(folder)
    assert dump.unread == ("nz_wDq.bin",)
    (folder / "wDq.bin").unlink()
    again = read_dump(folder)
    assert again.unread == ()
    assert compare_bits("w_dq", again.weights.w_dq, dump.weights.w_dq) is None


def test_goldens_are_left_out_beside_outputs(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "q_norm_out.npy").write_bytes((folder / "q_norm_golden.npy").read_bytes())
    (folder / "notes.npy").write_bytes(b"")
    dump = read_dump(folder)
    assert [output.file for output in dump.outputs] == ["q_norm_out.npy"]
    assert len(dump.goldens_left_out) == 7
    assert dump.missing == tuple(OUTPUTS)[1:]
    assert dump.unread == ("notes.npy",)


def test_several_files_of_one_output_are_all_checked(tmp_path):
    folder = folder_of(tmp_path)
    for name in ("q_norm_out", "output_0"):
        (folder / f"{name}.npy").write_bytes((folder / "q_norm_golden.npy").read_bytes())
    assert [found.file for found in check_dump(read_dump(folder))] == ["output_0.npy", "q_norm_out.npy"]


# What does not fit


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


# Verdicts


def test_rows_that_no_token_names_are_compared_by_their_bits(tmp_path):
    folder = folder_of(tmp_path)
    dump = read_dump(folder)
    slot = min(set(range(12)) - set(dump.cache_index.tolist()))

    def flip(array):
        bits = array.view(np.uint32).reshape(12, 4)
        bits[slot, 2] ^= 1  # far within the tolerance
        return array

    rewrite(folder, "k_scale_cache_golden", flip)
    found = check_dump(read_dump(folder))[-1]
    assert (found.n_beyond, found.n_changed, found.first_changed, found.passed) == (0, 1, slot, False)
    named = int(dump.cache_index[0])

    def flip_named(array):
        bits = array.view(np.uint32).reshape(12, 4)
        bits[slot, 2] ^= 1
        bits[named, 1] ^= 1
        return array

    rewrite(folder, "k_scale_cache_golden", flip_named)
    found = check_dump(read_dump(folder))[-1]
    assert (found.mismatch.n_differ, found.n_changed, found.passed) == (1, 0, True)
    assert found.mismatch.first == (named // 4, named % 4, 0, 1)


def test_places_in_nz_caches_are_blocks_and_slots(tmp_path):
    folder = folder_of(tmp_path, settings=replace(SMALL, cache_mode="PA_NZ"))
    plain = np.zeros((3, 4, 1, 64), np.int8)
    plain[1, 2, 0, 40] = 1
    rewrite(folder, "kv_cache_golden", lambda a: a ^ pa_bsnd_to_pa_nz(plain))
    found = next(f for f in check_dump(read_dump(folder)) if f.name == "kv_cache_out")
    assert (found.mismatch.n_differ, found.mismatch.first) == (1, (1, 2, 0, 40))
