"""Whether something can be written is known before the work, and asking changes nothing."""

import os
import socket
from pathlib import Path

import pytest

from mla_numba.base.output_path import fault_of_file, fault_of_folder

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def place(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_file").symlink_to("file")
    (tmp_path / "to_new").symlink_to("new")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "to_nowhere").symlink_to("none/x")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize("name", ["file", "new", "to_file", "to_new", "folder/new"])
def test_a_file_that_can_be_written(name, place):
    before = sorted(place.rglob("*"))
    assert fault_of_file(place / name) == ""
    assert (sorted(place.rglob("*")), (place / "file").read_text()) == (before, "kept")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/x", "expected a file in a folder that exists, got '{}'"),
        ("file/x", "expected a file in a folder that exists, got '{}'"),
        ("to_nowhere", "expected a file in a folder that exists, got '{}'"),
        ("folder", "expected a file, got the folder '{}'"),
        ("pipe", "expected a regular file or a new one, got the stream '{}'"),
        ("to_pipe", "expected a regular file or a new one, got the stream '{}'"),
        ("/dev/null", "expected a regular file or a new one, got the stream '/dev/null'"),
        ("loop", "expected a path that can be written, got '{}' (Symlink loop"),
        ("x" * 300, "expected a path that can be written, got '"),
        ("a\0b", "expected a path that can be written, got '"),
    ],
    ids=lambda value: value[:10].replace("\0", "0") if value[:8] != "expected" else "",
)
def test_a_file_that_cannot_be_written(name, said, place):
    assert fault_of_file(place / name).startswith(said.format(place / name))


def test_a_socket_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # addresses are short
    with socket.socket(socket.AF_UNIX) as held:
        held.bind("s")
        assert fault_of_file(Path("s")).startswith("expected a regular file or a new one")
        assert fault_of_file(Path("s"), streams=True).startswith("expected a regular file or a new one")


@pytest.mark.parametrize("name", ["pipe", "to_pipe", "/dev/null"])
def test_a_text_may_go_into_a_stream(name, place):
    assert fault_of_file(place / name, streams=True) == ""


@pytest.mark.skipif(IS_ROOT, reason="root writes everywhere")
def test_what_may_not_be_written(place):
    (place / "file").chmod(0o444)
    assert fault_of_file(place / "file").startswith("expected a file that can be written, got ")
    (place / "folder").chmod(0o555)
    assert fault_of_file(place / "folder" / "x").startswith("expected a file in a folder that can be written, got ")
    for name in ("folder", "folder/new"):
        assert fault_of_folder(place / name).startswith("expected a folder that can be written, got ")


def test_a_folder_may_have_to_be_made(place):
    for name in ("folder", "new", "new/a/b", "folder/new"):
        assert fault_of_folder(place / name) == ""
    assert not (place / "new").exists()
    for name in ("file", "file/x/y", "pipe"):
        assert fault_of_folder(place / name).startswith("expected a folder, got ")
    for name in ("x" * 300, "a\0b", "loop"):
        assert fault_of_folder(place / name).startswith("expected a folder")
