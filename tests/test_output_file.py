"""Files are written whole or not at all, and what is no regular file is never replaced."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest
from helpers import make_weights, python_environment, run_python
from helpers.cli import invoke

from mla_numba import MlaDims
from mla_numba.base.output_file import output_file, write_text
from mla_numba.call.trace import Trace
from mla_numba.tuning.journal import Journal
from mla_numba.weights.mapped_file import write_arrays

DIMS = MlaDims(64, 2, 32, 32, 16, 8)
KINDS = ("FIFO", "socket", "folder")


def make(kind, path):
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))


def device(path):
    """A node of the null device of one's own, which only root can make."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes device nodes")


def write_half(path, error):
    with output_file(path) as file:
        file.write(b"half")
        raise error


@pytest.fixture
def packed():
    return make_weights(DIMS, "b").pack(1)


@pytest.fixture(autouse=True)
def no_part_is_left(tmp_path):
    yield
    assert not list(tmp_path.rglob("*.part"))


class TestRegular:
    def test_a_new_file_has_the_mode_of_any(self, tmp_path):
        write_text(tmp_path / "new", "ä\n")
        (tmp_path / "other").write_text("")
        assert (tmp_path / "new").read_bytes() == b"\xc3\xa4\n"
        assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode

    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o777])
    def test_an_older_one_is_replaced_and_keeps_its_mode(self, tmp_path, mode, packed):
        path = tmp_path / "old"
        path.write_text("old")
        path.chmod(mode)
        with path.open() as old:
            write_text(path, "new")
            assert old.read() == "old"
        assert path.read_text() == "new"
        packed.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def test_one_that_is_read_only_is_respected(self, tmp_path, monkeypatch):
        path = tmp_path / "old"
        path.write_text("old")
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write whatever the mode says
        with pytest.raises(PermissionError, match="old"):
            write_text(path, "new")
        assert path.read_text() == "old"

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_an_error_leaves_what_was_there(self, tmp_path, error):
        for name in ("old", "new"):
            path = tmp_path / name
            if name == "old":
                path.write_text("old")
            with pytest.raises(error if isinstance(error, type) else OSError) as caught:
                write_half(path, error)
            if isinstance(error, OSError):
                assert str(caught.value) == f"[Errno 28] No space left on device: '{path}'"
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "old"}

    def test_errors_name_the_file_that_was_asked_for(self, tmp_path):
        path = tmp_path / "no" / "file"
        with pytest.raises(FileNotFoundError, match=rf"'{path}'$"):
            write_text(path, "")

    def test_a_name_as_long_as_names_can_be(self, tmp_path):
        write_text(tmp_path / ("n" * 255), "long")
        assert (tmp_path / ("n" * 255)).read_text() == "long"


class TestLinks:
    def test_what_a_link_names_is_replaced(self, tmp_path, packed):
        folder, target, link = tmp_path / "folder", tmp_path / "folder" / "target", tmp_path / "link"
        folder.mkdir()
        target.write_text("old")
        link.symlink_to(target)
        write_text(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
        packed.save(link)
        assert link.is_symlink()
        assert not target.is_symlink()
        assert type(packed).load(link, verify=True).dims == DIMS

    def test_what_a_link_names_is_made(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "target")
        write_text(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_text() == "new"

    def test_a_circle_is_an_error(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "link")
        with pytest.raises(OSError, match="link"):
            write_text(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()

    def test_a_link_to_a_fifo_counts_as_one(self, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to(tmp_path / "fifo")
        with pytest.raises(ValueError, match=r"link: expected a regular file or none, which is then made, got a FIFO$"):
            write_arrays(tmp_path / "link", {}, {})


class TestOtherKinds:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("through_link", [False, True])
    def test_binary_files_refuse_them(self, tmp_path, kind, through_link, packed):
        path = tmp_path / "it"
        make(kind, path)
        before = path.stat().st_mode
        if through_link:
            (tmp_path / "link").symlink_to(path)
            path = tmp_path / "link"
        error = (IsADirectoryError, ValueError) if kind == "folder" else ValueError
        for write in (packed.save, lambda p: write_arrays(p, {}, {}), lambda p: Journal(p, {}, dict)):
            with pytest.raises(error, match=str(path)):
                write(path)
        assert path.stat().st_mode == before

    def test_a_device_stays_one(self, tmp_path, packed):
        path = tmp_path / "null"
        device(path)
        with pytest.raises(ValueError, match=r"null: expected a regular file .*, got a character device$"):
            packed.save(path)
        write_text(path, "into it")
        Trace().to_chrome(path)
        assert stat.S_ISCHR(path.lstat().st_mode)

    def test_the_command_says_so_before_it_reads_a_layer(self, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "config.json").write_text("{}")
        result = invoke("pack", str(tmp_path), "--layer", "0", "--out", str(tmp_path / "fifo"))
        assert result.exit_code == 2
        assert "got the stream" in result.output
        assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)

    def test_a_text_goes_into_a_fifo(self, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        got = []
        reader = threading.Thread(target=lambda: got.append(path.read_text()))
        reader.start()
        write_text(path, "through")
        reader.join()
        assert got == ["through"]
        assert stat.S_ISFIFO(path.stat().st_mode)

    def test_a_text_refuses_a_socket(self, tmp_path):
        make("socket", tmp_path / "it")
        with pytest.raises(ValueError, match=r"it: expected .*, got a socket$"):
            write_text(tmp_path / "it", "")

    def test_a_trace_into_a_folder_or_socket_is_refused_at_once(self, tmp_path):
        make("socket", tmp_path / "it")
        result = invoke("run", "--dims", "64,2,32,32,16,8", "--trace", str(tmp_path / "it"))
        assert result.exit_code == 2
        assert "which is of another kind" in result.output


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there is no /dev/stdout")
class TestStandardOutput:
    CODE = "\n".join(
        [
            "from mla_numba.base.output_file import write_text as w",
            "print('first')",
            "w('/dev/stdout', 'text\\n')",
            "print('last')",
        ]
    )

    def test_a_pipe(self):
        assert run_python("-c", self.CODE).split() == ["first", "text", "last"]

    def test_a_file_is_written_on(self, tmp_path):
        with (tmp_path / "out").open("w") as out:
            subprocess.run([sys.executable, "-c", self.CODE], stdout=out, env=python_environment(), check=True)
        assert (tmp_path / "out").read_text().split() == ["first", "text", "last"]

    def test_a_binary_file_refuses_it(self, tmp_path):
        code = (
            "from mla_numba.weights.mapped_file import write_arrays\n"
            "try: write_arrays('/dev/stdout', {}, {})\n"
            "except ValueError as error: print(error)"
        )
        with (tmp_path / "out").open("w") as out:
            subprocess.run([sys.executable, "-c", code], stdout=out, env=python_environment(), check=True)
        said = (tmp_path / "out").read_text()
        assert "got a regular file that this process writes its output to" in said
