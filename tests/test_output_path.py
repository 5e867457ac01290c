"""Whether something can be written is known before the work, and asking changes nothing."""

import os
import socket

import pytest

from mla_numba.output_path import check_output_folder, check_output_path

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
    assert check_output_path("path", place / name) == place / name
    assert check_output_path("path", str(place / name)) == place / name
    assert (sorted(place.rglob("*")), (place / "file").read_text()) == (before, "kept")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/x", "expected a file in a folder that exists, got '{}'"),
        ("file/x", "expected a file in a folder that exists, got '{}'"),
        ("to_nowhere", "expected a file in a folder that exists, got '{}'"),
        ("folder", "expected a file, got the folder '{}'"),
        ("pipe", "expected a regular file or a new one, got '{}', which is of another kind"),
        ("to_pipe", "expected a regular file or a new one, got '{}', which is of another kind"),
        ("/dev/null", "expected a regular file or a new one, got '/dev/null', which is of another kind"),
        ("loop", "expected a path that can be written, got '{}' (Symlink loop"),
        ("x" * 300, "expected a path that can be written, got '"),
        ("a\0b", "expected a path that can be written, got '"),
    ],
    ids=lambda value: value[:10].replace("\0", "0") if value[:8] != "expected" else "",
)
def test_a_file_that_cannot_be_written(name, said, place):
    with pytest.raises(ValueError, match="out: expected ") as caught:
        check_output_path("out", place / name)
    assert str(caught.value).startswith("out: " + said.format(place / name))


def test_a_socket_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # addresses are short
    with socket.socket(socket.AF_UNIX) as held:
        held.bind("s")
        with pytest.raises(ValueError, match="out: expected a regular file or a new one"):
            check_output_path("out", "s")


@pytest.mark.skipif(IS_ROOT, reason="root writes everywhere")
def test_what_may_not_be_written(place):
    (place / "file").chmod(0o444)
    with pytest.raises(ValueError, match="out: expected a file that can be written, got "):
        check_output_path("out", place / "file")
    (place / "folder").chmod(0o555)
    with pytest.raises(ValueError, match="out: expected a file in a folder that can be written, got "):
        check_output_path("out", place / "folder" / "x")
    for name in ("folder", "folder/new"):
        with pytest.raises(ValueError, match="out: expected a folder that can be written, got "):
            check_output_folder("out", place / name)


def test_a_folder_may_have_to_be_made(place):
    for name in ("folder", "new", "new/a/b", "folder/new"):
        assert check_output_folder("out", place / name) == place / name
    assert not (place / "new").exists()
    for name in ("file", "file/x/y", "pipe"):
        with pytest.raises(ValueError, match="out: expected a folder, got "):
            check_output_folder("out", place / name)
    for name in ("x" * 300, "a\0b", "loop"):
        with pytest.raises(ValueError, match="out: expected a folder"):
            check_output_folder("out", place / name)
