"""Folders of dumped arguments: their files, what is said of those that don't fit, and the verdict on the others."""

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import MODES, assert_none
from helpers.dump_folders import DIMS, SMALL, T, folder_of, rewrite

from mla_numba import MlaProlog, MlaWeights
from mla_numba.dump_names import OUTPUTS, STYLES
from mla_numba.dumps import DumpSettings, check_dump, read_dump
from mla_numba.layouts import pa_bsnd_to_pa_nz
from mla_numba.oracle.bits import check_output


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
    assert not (tmp_path / "dump").exists()


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


def test_a_folder_that_holds_a_dump_is_refused_before_weights_are_made(tmp_path, monkeypatch):
    folder_of(tmp_path)
    (tmp_path / "dump" / "token_x.npy").unlink()
    monkeypatch.setattr(MlaWeights, "random", None)
    with pytest.raises(FileExistsError, match=r"w_dq\.npy: expected no such file, got one"):
        folder_of(tmp_path)
    for path in (tmp_path / "dump").glob("*.npy"):
        path.unlink()
    with pytest.raises(FileExistsError, match=r"dims\.json: expected no such file, got one"):
        folder_of(tmp_path)
