"""Ctrl-C at several moments of a command: one line, status 130, and no file that is not whole."""

import signal
import subprocess
import sys
import threading

import pytest
from helpers import python_environment
from helpers.checkpoint_maker import make_checkpoint
from helpers.cli import run_cli

from mla_numba import MlaDims, MlaProlog
from mla_numba.cli.interrupts import Interrupted, interruptible
from mla_numba.cli.shown import folder_size

DIMS = "64,2,32,32,16,16"

# Sends itself SIGINT when it touches a file below a folder for the n-th time, before that happens.
TOUCHING = """
import signal, sys
folder, n, *arguments = sys.argv[1:]
sys.argv = ["mla-numba", *arguments]
count = 0
def hook(event, given):
    global count
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(given[0]).startswith(folder):
        count += 1
        if count == int(n):
            signal.raise_signal(signal.SIGINT)
sys.addaudithook(hook)
from mla_numba.__main__ import main
main()
"""


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=python_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else ignored where tests run under nohup
    )


def interrupted_at(folder, n, *arguments, **environment):
    """The last line of a command that is interrupted when it touches the folder for the n-th time."""
    process = start("-c", TOUCHING, folder, n, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    return err.splitlines()[-1]


@pytest.fixture
def model(tmp_path):
    make_checkpoint(tmp_path / "model", MlaDims(130, 3, 50, 68, 33, 34))
    return tmp_path / "model"


@pytest.mark.parametrize(("n", "doing"), [(1, "writing the file"), (2, "writing the file"), (3, "verifying the file")])
def test_pack_leaves_the_older_file_or_the_new_one(n, doing, model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_bytes(b"older")
    said = interrupted_at(out, n, "pack", model, "--layer", "0", "--out", out / "file", "--threads", "1")
    assert said == f"interrupted: {doing}"
    assert [path.name for path in out.iterdir()] == ["file"]
    if n < 3:
        assert (out / "file").read_bytes() == b"older"
    else:
        MlaProlog.load(out / "file", verify=True)


def test_pack_while_it_reads(model, tmp_path):
    said = interrupted_at(model, 4, "pack", model, "--layer", "0", "--out", tmp_path / "file")
    assert said.startswith("interrupted")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(("n", "doing"), [(1, "computing the reference"), (9, "writing files"), (26, "writing files")])
def test_dump_leaves_no_files_and_can_be_given_again(n, doing, tmp_path):
    folder = tmp_path / "new" / "folder"
    said = interrupted_at(tmp_path / "new", n, "dump", folder, "--dims", DIMS, "--tokens", "3")
    assert said == f"interrupted: {doing}"
    assert [*tmp_path.iterdir()] == []


def test_dump_leaves_what_was_in_the_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    interrupted_at(tmp_path, 9, "dump", tmp_path, "--dims", DIMS, "--tokens", "3")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_check_and_run(tmp_path):
    folder = tmp_path / "dump"
    process = start("-m", "mla_numba", "dump", folder, "--dims", DIMS, "--tokens", "3")
    assert process.communicate(timeout=300)[1].startswith("computing the reference: ")
    assert interrupted_at(folder, 5, "check", folder) == "interrupted: reading files"
    trace = tmp_path / "trace"
    trace.mkdir()
    interrupted_at(trace, 1, "run", "--dims", DIMS, "--no-check", "--threads", "1", "--trace", trace / "file")
    assert [*trace.iterdir()] == []


def test_a_signal_from_outside_ends_the_step_in_hand():
    process = start("-m", "mla_numba", "run", "--dims", DIMS, "--threads", "1", "--repeats", 10**9)
    for line in process.stderr:
        if line.startswith("first call: "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err in ("interrupted: timing 1000000000 calls\n", "interrupted\n")  # the latter between two steps


def test_warmup_keeps_what_is_whole_and_goes_on_until_nothing_is_left_to_compile(tmp_path):
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert interrupted_at(tmp_path, 60, "warmup", "--threads", "1", **env) == "interrupted: compiling kernels"
    assert not [*tmp_path.rglob("*.part")]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert kept
    status, out, err = run_cli("warmup", "--threads", "1", env=env)
    assert status == 0, err
    assert out.startswith("ready after ")
    assert str(tmp_path) in out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    n_bytes, n_files = folder_size(tmp_path)
    assert n_bytes > 0
    for quant in ("none", "a", "b", "ab"):
        small = ("--dims", DIMS, "--tokens", "5", "--repeats", "3", "--threads", "1")
        status, _, err = run_cli("run", *small, "--no-check", "--quant", quant, env=env)
        assert status == 0, err
        assert "compiling" not in err
    assert folder_size(tmp_path)[1] == n_files


@pytest.fixture
def pythons_own_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_handler")
def test_an_interrupt_waits_where_it_would_be_lost():
    class Thing:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            passed.append("whole")

    @interruptible()
    def work():
        thing = Thing()
        del thing
        threading.Event().wait(60)
        passed.append("waited in vain")

    passed = []
    with pytest.raises(Interrupted, match=r"^interrupted$"):
        work()
    assert passed == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("pythons_own_handler")
def test_a_second_interrupt_does_not_disturb_what_is_cleaned_up():
    @interruptible()
    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            passed.append("cleaned up")

    passed = []
    with pytest.raises(Interrupted):
        work()
    assert passed == ["cleaned up"]


def test_who_takes_care_of_the_signal_goes_on_to_do_so():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *given: seen.append(given))
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
        assert len(seen) == 1
    finally:
        signal.signal(signal.SIGINT, before)
