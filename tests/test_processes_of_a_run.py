"""How a run of the tests is shared among processes: see `conftest.py`."""

import subprocess
import sys

import pytest
from conftest import LONGEST
from helpers.processes import TESTS

pytest.importorskip("xdist")

FILE = """
import os, threading

def test_it():
    assert threading.current_thread() is threading.main_thread()
    assert "PYTEST_XDIST_WORKER" not in os.environ
    print("process", os.getpid())
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite of two files with our conftest."""
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)  # for which it would look into bench/
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").symlink_to(TESTS / "conftest.py")
    for name in ("test_a.py", LONGEST[0]):
        (tests / name).write_text(FILE)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\naddopts = -p no:cacheprovider\n")
    return tmp_path


def run(suite, *arguments):
    """The files in the order of their results, and the processes they ran in."""
    command = [sys.executable, "-m", "pytest", "-rP", "--color=no", *arguments]
    done = subprocess.run(command, cwd=suite, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("process ")]


def test_files_are_there():
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []


def test_a_whole_run_has_several_processes_and_a_named_file_one(suite, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "2")
    assert len({*run(suite)}) == 2
    for arguments in (("-n", "0"), ("-p", "no:xdist"), ("tests",)):
        assert len({*run(suite, *arguments)}) == 1


def test_the_longest_comes_first(suite):
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q"], cwd=suite, capture_output=True, text=True, check=True
    ).stdout
    assert [line.partition("::")[0] for line in said.splitlines()[:2]] == [f"tests/{LONGEST[0]}", "tests/test_a.py"]
