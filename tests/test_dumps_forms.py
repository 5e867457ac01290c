"""In how many forms one dump may come: types, shapes, file names, folders."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers import BF16
from helpers.dump_folders import DIMS, SMALL, T, as_bf16, folder_of, rewrite

from mla_numba.dump_names import OUTPUTS
from mla_numba.dumps import DumpSettings, check_dump, dump_settings, read_dump
from mla_numba.layouts import to_fractal_nz
from mla_numba.oracle.bits import compare_bits


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
