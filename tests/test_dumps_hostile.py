"""Files in a folder of dumps that are broken, of another kind, or made to do harm."""

import json
import os
import re
from dataclasses import asdict

import numpy as np
import pytest

from mla_numba import MlaDims
from mla_numba.dumps import DumpSettings, dump_settings, read_dump, write_dump

DIMS = MlaDims(70, 3, 50, 64, 18, 32)
T = 5
SMALL = DumpSettings(dims=DIMS, block_size=4)


@pytest.fixture
def folder(tmp_path):
    write_dump(tmp_path / "dump", T, settings=SMALL)
    return tmp_path / "dump"


def npy(header):
    """A `.npy` of version 1 with this header and 64 bytes of elements."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


def an_archive(path):
    np.savez(path.with_suffix(".npz"), cos=np.zeros(3))
    os.replace(path.with_suffix(".npz"), path)


FORM = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    "make",
    [
        an_archive,
        lambda path: np.save(path, np.array([{"a": 1}], object), allow_pickle=True),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(npy(FORM % ("<f4", "(5, 2)"))[:40]),
        lambda path: path.write_bytes(npy(FORM % ("<f4", "(1099511627776, 32)"))),
        lambda path: path.write_bytes(npy(FORM % ("<f4", "(-5, 32)"))),
        lambda path: path.write_bytes(npy(FORM % ("<f4", f"({10**30},)"))),
        lambda path: path.write_bytes(npy(FORM % ("<f4", "None"))),
        lambda path: path.write_bytes(npy(FORM % ("no type", "(5, 32)"))),
        lambda path: path.write_bytes(npy("(" * 100)),
        lambda path: path.write_bytes(npy("{}")),
    ],
)
def test_a_npy_that_is_none(folder, make):
    make(folder / "cos.npy")
    with pytest.raises((TypeError, ValueError), match=r"^cos \(cos\.npy\): expected a \.npy of numbers, got "):
        read_dump(folder)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("/nowhere/at/all"),
    ],
)
@pytest.mark.parametrize("name", ["cos.npy", "x.bin", "q_norm_out.pt"])
def test_what_is_no_regular_file_is_not_opened(folder, name, make):
    for there in ("cos.npy", "token_x.npy"):
        (folder / there).unlink()
    make(folder / name)
    with pytest.raises(ValueError, match=rf"\({re.escape(name)}\): expected a regular file, got another kind"):
        read_dump(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in (*asdict(DIMS), "block_size", "cache_mode", "nz", "numerics", "epsilon_cq")
        for value in (None, -1, 10**30, 10**400, 1.5, "x", [], {}, True)
        if (name, str(value)) not in {("nz", "True"), ("epsilon_cq", "1.5"), ("epsilon_cq", str(10**30))}
    ],
)
def test_settings_of_a_stranger(folder, name, value):
    content = json.loads((folder / "dims.json").read_text()) | {name: value}
    (folder / "dims.json").write_text(json.dumps(content))
    with pytest.raises((TypeError, ValueError), match=rf"dims\.json: .*{name}: expected"):
        dump_settings(folder)


def test_a_block_size_beyond_the_file(folder):
    write_dump(folder / "b", T, settings=SMALL, file_format="bin")
    with pytest.raises(ValueError, match=r"kv_cache \(kv_cache\.bin\): expected a multiple of \d+ bytes"):
        read_dump(folder / "b", DumpSettings(dims=DIMS, block_size=2**31 - 1))


def test_dims_that_ask_for_terabytes(folder):
    """Sizes of files are compared before anything is allocated."""
    huge = DumpSettings(dims=MlaDims(2**31 - 1, 2**20, 2**31 - 1, 2**31 - 1, 2**20, 2**20), block_size=4)
    for kind, text in (("npy", "expected shape"), ("bin", r"expected \d+ bytes")):
        path = folder / kind
        write_dump(path, T, settings=SMALL, file_format=kind)
        (path / "dims.json").unlink()
        with pytest.raises(ValueError, match=rf"dequant_scale \(dequant_scale\.{kind}\): {text}"):
            read_dump(path, huge)


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": NaN}', "[" * 100_000])
@pytest.mark.parametrize("name", ["dims.json", "config.json"])
def test_settings_that_are_no_json(folder, name, content):
    (folder / "dims.json").unlink()
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: expected (a )?JSON"):
        dump_settings(folder)


def test_settings_that_are_no_file(folder):
    (folder / "dims.json").unlink()
    os.mkfifo(folder / "dims.json")
    with pytest.raises(ValueError, match=r"dims\.json: expected a regular file"):
        dump_settings(folder)


def test_a_dump_goes_through_no_link(tmp_path):
    """What is there, a link to nowhere too, is not written to."""
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "sin.npy").symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(FileExistsError, match=r"sin\.npy: expected no such file, got one"):
        write_dump(tmp_path / "dump", T, settings=SMALL)
    assert not (tmp_path / "elsewhere.npy").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file: expected a folder"):
        write_dump(tmp_path / "file", T, settings=SMALL)
