"""The folder of compiled kernels: damaged, full, read-only, of other users, missing; and forks while it is filled."""

import ctypes
import os
import pickle
import shutil
import subprocess
import sys
from hashlib import sha256

import numba
import pytest
from helpers import ROOT, python_environment
from helpers.cli import invoke

from mla_numba.kernels import cache_folder
from mla_numba.kernels.jit import private_files

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no owners, modes or forks")
ROOT_ONLY = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
NOBODY = 65534
PACK = "import mla_numba as m; m.MlaWeights.random(m.MlaDims(64, 2, 32, 32, 16, 8)).pack(1)"


def run(folder, script=PACK, before=None, **environment):
    """What a process of its own wrote to standard error, line by line; it has to end well."""
    environment = python_environment(NUMBA_CACHE_DIR=str(folder), **environment)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment, preexec_fn=before, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def files_in(folder, pattern="*"):
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with the kernel that packs, made by a process that makes its files for everybody."""
    folder = tmp_path_factory.mktemp("filled")
    (line,) = run(folder, f"import os; os.umask(0); {PACK}")
    assert line.startswith("compiling kernels for this CPU")
    assert files_in(folder, "*.nbi")
    return folder


@pytest.fixture
def warm(filled, tmp_path):
    """A copy of it."""
    return shutil.copytree(filled, tmp_path / "kernels")


@POSIX
def test_files_are_for_their_owner_whatever_the_umask(filled):
    ours = {path: path.stat().st_mode & 0o777 for path in (filled / "mla_numba").rglob("*")}
    assert set(ours.values()) == {0o600, 0o700}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in ours.items())
    assert files_in(filled, "*.lock")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def with_a_hole(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64) if any(data[middle : middle + 64]) else b"\1" * 64
    path.write_bytes(data)


@pytest.mark.parametrize(("pattern", "damage"), [("*.nbi", half), ("*.nbc", with_a_hole), ("micro*.pickle", emptied)])
def test_a_damaged_file_is_made_anew(warm, pattern, damage):
    whole = files_in(warm)
    damaged = files_in(warm, pattern)
    for path in damaged:
        damage(path)
    said = run(warm)
    assert len(said) == len(damaged)
    for path, line in zip(damaged, sorted(said), strict=True):
        assert line.startswith(f"kernel cache: {path} is compiled anew, since it could not be loaded (")
    assert run(warm) == []
    assert files_in(warm) == whole


@POSIX
@pytest.mark.parametrize("lost", ["*", "*.nb?"])
def test_a_full_disk_costs_a_warning(warm, lost):
    for path in files_in(warm, lost):
        path.unlink()
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); {PACK}"
    said = run(warm, limit)
    assert said[-1].startswith("kernel cache: [Errno 27]"), said
    assert all(line.startswith("compiling kernels for this CPU") for line in said[:-1])
    assert not [path for path in files_in(warm) if path.suffix in (".part", ".nbc")]


def test_a_part_that_a_killed_process_left_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.with_name("file.part").write_bytes(b"half")
    private_files.write_file(path, b"whole")
    assert private_files.read_file(path) == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def without_roots_privilege():
    """Root is asked for modes like anybody else."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@POSIX
@pytest.mark.skipif(sys.platform != "linux", reason="takes root's privilege away as Linux does")
def test_a_folder_that_is_read_only_is_read(warm):
    def read_only():
        for path in sorted(warm.rglob("*")):
            if path.is_dir():
                path.chmod(0o500)
            elif path.suffix == ".lock":
                path.chmod(0o400)

    read_only()
    before = files_in(warm)
    assert run(warm, before=without_roots_privilege) == []
    assert files_in(warm) == before
    for path in files_in(warm, "*.nbc"):
        path.parent.chmod(0o700)
        path.unlink()
    read_only()
    before = files_in(warm)
    (line,) = run(warm, before=without_roots_privilege)
    assert line.startswith("kernel cache: [Errno 13] Permission denied")
    assert files_in(warm) == before


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def plant(path, marker):
    data = pickle.dumps(Evil(marker))
    path.write_bytes(sha256(data).digest() + data)


@ROOT_ONLY
def test_another_users_folder_is_not_trusted(warm, tmp_path):
    (folder,) = warm.rglob("kernels-*")
    for path in files_in(warm, "*.nb?"):
        plant(path, tmp_path / "ran")
    os.chown(folder, NOBODY, NOBODY)
    before = files_in(warm)
    (line,) = run(warm)
    assert line.startswith(f"kernel cache: expected files and folders of uid 0 or root, got {folder} of {NOBODY};")
    assert not (tmp_path / "ran").exists()
    assert files_in(warm) == before


@POSIX
def test_a_file_that_others_may_write_is_made_anew(warm, tmp_path):
    planted = files_in(warm, "*.nbi")
    for path in planted:
        plant(path, tmp_path / "ran")
        path.chmod(0o666)
    said = run(warm)
    assert len(said) == len(planted)
    for path, line in zip(planted, sorted(said), strict=True):
        assert line.startswith(f"kernel cache: {path} is compiled anew")
        assert "of mode 666" in line
    assert not (tmp_path / "ran").exists()
    assert run(warm) == []


def is_refused(folder, private_from=None):
    """Whether the folder is refused."""
    try:
        private_files.check_folder(folder, private_from or folder)
    except PermissionError:
        return True
    return False


@POSIX
def test_what_modes_a_folder_and_those_above_may_have(tmp_path):
    above = tmp_path / "above"
    folder = above / "kernels"
    private_files.make_folder(folder, folder)
    for mode, refused in ((0o755, False), (0o700, False), (0o775, True), (0o757, True), (0o1777, True)):
        folder.chmod(mode)
        assert is_refused(folder) is refused, oct(mode)
        assert is_refused(folder / "missing", folder) is refused, oct(mode)
    folder.chmod(0o700)
    for mode, refused in ((0o755, False), (0o1777, False), (0o777, True)):
        above.chmod(mode)
        assert is_refused(folder) is refused, oct(mode)


@POSIX
def test_a_group_may_write_above_where_it_is_the_users_own(tmp_path, monkeypatch):
    above = tmp_path / "above"
    folder = above / "kernels"
    private_files.make_folder(folder, folder)
    above.chmod(0o775)
    for own in (True, False):
        monkeypatch.setattr(private_files, "_is_own_group", lambda gid, own=own: own)
        assert is_refused(folder) is not own
    monkeypatch.undo()
    assert private_files._is_own_group(0)
    assert not private_files._is_own_group(2**31 - 5)


@POSIX
def test_links_are_followed_to_what_they_name(tmp_path):
    real = tmp_path / "real"
    folder = real / "kernels"
    private_files.make_folder(folder, folder)
    (tmp_path / "link").symlink_to("./other/../real")
    (tmp_path / "other").mkdir()
    linked = tmp_path / "link" / "kernels"
    assert not is_refused(linked)
    real.chmod(0o777)
    assert is_refused(linked)
    (tmp_path / "loop").symlink_to("loop")
    assert is_refused(tmp_path / "loop")


@ROOT_ONLY
def test_links_and_files_of_another_user_are_refused(tmp_path):
    folder = tmp_path / "kernels"
    private_files.make_folder(folder, folder)
    (tmp_path / "link").symlink_to(folder)
    assert not is_refused(tmp_path / "link")
    os.chown(folder, NOBODY, NOBODY)
    assert is_refused(folder)
    assert is_refused(tmp_path / "link")
    os.chown(folder, 0, 0)
    os.lchown(tmp_path / "link", NOBODY, NOBODY)
    assert is_refused(tmp_path / "link")
    private_files.write_file(folder / "file", b"content")
    os.chown(folder / "file", NOBODY, NOBODY)
    with pytest.raises(PermissionError, match=f"^expected files and folders of uid 0 or root, got .*file of {NOBODY}"):
        private_files.read_file(folder / "file")


@POSIX
def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"^expected a file, got p"):
        private_files.read_file(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(OSError, match="symbolic links"):
        private_files.read_file(tmp_path / "link")
    assert private_files.read_file(tmp_path / "nothing") is None


NO_HOME = """
import os, pwd
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
    os.environ.pop(name, None)
"""


@POSIX
def test_a_user_without_a_home(tmp_path):
    (line,) = run(tmp_path, NO_HOME + PACK)
    assert line.startswith("kernel cache: expected a home folder or NUMBA_CACHE_DIR, got neither;")


@POSIX
def test_the_command_line_without_a_home(monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr("mla_numba.kernels.jit.folder.user_cache_dir", no_home)
    assert cache_folder() is None
    info = invoke("info")
    assert "kernel cache     none: neither a home folder nor NUMBA_CACHE_DIR" in info.output
    assert '"folder": null' in invoke("info", "--json").output
    warmup = invoke("warmup")
    assert warmup.exit_code == 1
    assert "expected a folder that can be written, got expected a home folder" in warmup.output


def no_home(name):
    raise RuntimeError("could not determine the home directory")


def test_a_relative_folder_stays_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "kernels")
    monkeypatch.chdir(tmp_path)
    assert cache_folder().parent == tmp_path / "kernels" / "mla_numba"


@POSIX
@pytest.mark.parametrize("scenario", ["fork_while_compiling", "fork_amid_a_compilation", "imports_of_a_first_call"])
def test_forks_beside_a_first_call(scenario, warm, tmp_path):
    folder = tmp_path / "empty" if scenario == "fork_while_compiling" else warm
    run(folder, f"from scripts import fork_script; fork_script.{scenario}()")


@POSIX
def test_forks_at_many_moments_of_loading(warm):
    assert run(warm, "from scripts import fork_script; fork_script.fork_while_loading()") == []


WORKQUEUE = """
import threading
import mla_numba as m
done = threading.Event()
if {threads} > 1:
    threading.Thread(target=done.wait).start()
for _ in range(2):
    m.MlaWeights.random(m.MlaDims(64, 2, 32, 32, 16, 8)).pack(2)
done.set()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_workqueue_beside_other_threads_is_warned_of(threads):
    folder = os.environ.get("NUMBA_CACHE_DIR", "")
    script = WORKQUEUE.format(threads=threads)
    said = run(folder, script, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    warned = [line for line in said if line.startswith("threading layer: workqueue ends the process")]
    assert len(warned) == threads - 1


TWINS = """
import numpy as np
from mla_numba.kernels.launch import kernel


def of(module, add):
    def body(worker: int, words: object) -> None:
        words[0] = words[0] * 10 + add

    body.__name__, body.__module__ = "twin" if add else "other", module
    return kernel(body)


words = np.zeros(1, np.int64)
for module, add in (("first", 1), ("second", 2), ("second", 0)):
    of(module, add)(1, 1, words)
assert words[0] == 120, words
"""


def test_kernels_of_the_same_arguments_do_not_meet_in_the_folder(tmp_path):
    for _ in range(2):  # made, and then loaded
        run(tmp_path, TWINS)
