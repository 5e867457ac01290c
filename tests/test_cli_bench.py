"""`mla-numba bench`: what it refuses, follows, keeps and says."""

import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from helpers import ROOT
from helpers.bench_results import words
from helpers.cli import invoke

from mla_numba.cli.bench import command as cli_bench
from mla_numba.cli.bench import run
from mla_numba.cli.bench.progress import Progress, seconds_left
from mla_numba.cli.bench.results import Results
from mla_numba.cli.bench.run import Outcome

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

OUTPUTS = [
    ("none/x", "expected a file in a folder that exists, got "), (".", "expected a file, got the folder "),
    ("socket", "expected a regular file or a new one, got "),
]  # fmt: skip


@pytest.mark.parametrize("option", ["--output", "--json"])
@pytest.mark.parametrize(("name", "said"), OUTPUTS, ids=["missing", "folder", "socket"])
def test_a_file_that_cannot_be_written_is_refused_before_the_benches(option, name, said, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: pytest.fail("ran"))
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    result = invoke("bench", option, str(tmp_path / name))
    assert result.exit_code == 2
    assert f"'{option}': {said}" in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "a", "--json", "./a"], "--output: expected another file than that of --json, got a"),
        (["--output", "a.html", "--json", "a.log"], "--json: expected another file than that of the log, got a.log"),
        (["--output", "a.log"], "--output: expected another file than that of the log, got a.log"),
        (["--output", "taken.html"], "the log: expected a file, got the folder 'taken.log'"),
    ],
)
def test_files_that_cannot_be_together_are_refused_before_the_benches(options, said, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: pytest.fail("ran"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.log").mkdir()
    result = invoke("bench", *options)
    assert result.exit_code == 2
    assert said in result.output


SWEEPS = ["bench", "--tiny", "--only", "sweeps", "--weights", "cold", "--threads", "1", "--seconds", "0.01"]


def test_command_runs_the_suite_at_any_number_of_tokens(tmp_path):
    page = tmp_path / "page.html"
    result = invoke(*SWEEPS, "--tokens", "7", "--output", str(page))
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "page.json", "page.log"}
    assert "7 tokens" in words(page.read_text())
    read = Results.read(tmp_path / "page.json")
    assert [row.name for row in read.groups[0].rows][-1] in ("mla_numba: down", "mla_numba: heads")
    assert read.groups[0].baseline is read.unfinished is None
    assert result.output.splitlines() == [f"wrote {page}, {tmp_path / 'page.json'}, {tmp_path / 'page.log'}"]
    log = (tmp_path / "page.log").read_text()
    assert "test_sweep[T7-down-cold] PASSED" in log
    assert "mla-numba bench: {" not in log


def suite_of(tmp_path, text):
    """A folder like bench/ with the suite's hooks and one file of benches."""
    bench = tmp_path / "bench"
    bench.mkdir()
    for name in ("conftest.py", "pytest.ini", "shared", "cold_start.py"):
        (bench / name).symlink_to(ROOT / "bench" / name)
    shutil.copytree(ROOT / "bench" / "suite", bench / "suite", ignore=shutil.ignore_patterns("bench_*", "__pycache__"))
    (bench / "suite" / "bench_prolog.py").write_text(text)
    return bench / "suite"


HURT = """
import os, signal, time
import pytest

@pytest.mark.parametrize("implementation", ["mla_numba-b", "numpy", "torch-P1", "torch-P2", "onnxruntime"])
def test_prolog(benchmark, suite, implementation):
    suite.describe(benchmark, "prolog, T = 8", implementation, made_of="sleep", verified="not")
    if implementation == "numpy":
        os.kill(os.getpid(), signal.SIGSEGV)
    assert implementation != "torch-P2", "wrong"
    if implementation == "onnxruntime":
        pytest.skip("onnxruntime left out: it is Thursday")
    benchmark.pedantic(lambda: time.sleep(0.001), rounds=3)
"""


def test_a_bench_that_takes_the_process_with_it_ends_nothing(tmp_path, monkeypatch):
    suite = suite_of(tmp_path, HURT)
    monkeypatch.setattr(cli_bench, "find_suite", lambda: suite)
    result = invoke("bench", "--only", "prolog", "--output", str(tmp_path / "page.html"))
    assert result.exit_code == 1
    read = Results.read(tmp_path / "page.json")
    assert [row.name for group in read.groups for row in group.rows].sort() == ["mla_numba-b", "torch-P1"].sort()
    assert read.left_out == (
        "test_prolog[numpy] left out: its process ended by SIGSEGV", "onnxruntime left out: it is Thursday",
    )  # fmt: skip
    assert [name.rpartition("::")[2] for name in read.failed] == ["test_prolog[torch-P2]"]
    assert "failed: test_prolog[torch-P2]: AssertionError: wrong" in result.output
    page = words((tmp_path / "page.html").read_text())
    assert "its process ended by SIGSEGV" in page
    assert "it is Thursday" in page
    assert "Failed: " in page


@pytest.mark.parametrize("wait", ["nothing", "first", "page", "terminated"])
def test_interrupt_keeps_what_was_done(wait, tmp_path):
    """Ctrl-C before anything is done, after the first bench, and again while the page is written; and SIGTERM."""
    page, log = tmp_path / "page.html", tmp_path / "page.log"
    command = [*SWEEPS, "--tokens", "1,2,3,4,5,6,7,8", "--output", str(page)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mla_numba", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: log.exists() and (wait == "nothing" or "PASSED" in log.read_text()), process)
        process.send_signal(signal.SIGTERM if wait == "terminated" else signal.SIGINT)
        while wait == "page" and not page.exists() and process.poll() is None:  # an impatient hand
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    # An impatient hand may reach the process behind all that it has to do; then Python itself may say so, too.
    assert process.returncode in ((130, -signal.SIGINT) if wait == "page" else (130,)), err
    assert out == ""
    compare = re.match if wait == "page" else re.fullmatch
    said = compare(r"interrupted: (\d+) of (\d+) benches are done and kept; wrote (.*)\n", err)
    if wait == "nothing":
        assert err == f"interrupted: no bench is done; wrote {log}\n"
        assert not page.exists()
    else:
        assert said, err
        results = Results.read(tmp_path / "page.json")
        assert sum(len(group.rows) for group in results.groups) == int(said[1]) >= 1
        assert results.unfinished == (int(said[1]), 24)
        assert said[3] == f"{page}, {tmp_path / 'page.json'}, {log}"
        assert f"Not complete: {said[1]} of 24 benches" in words(page.read_text())


def test_interrupt_before_the_bar_is_drawn(tmp_path, monkeypatch):
    """The log is there by then, and is named."""

    class Interrupted(Progress):
        def __enter__(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "Progress", Interrupted)
    result = invoke(*SWEEPS, "--output", str(tmp_path / "page.html"))
    assert result.exit_code == 130
    assert result.output == f"interrupted: no bench is done; wrote {tmp_path / 'page.log'}\n"


def until(holds, process):
    for _ in range(1200):
        if holds():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail("waited for a minute")


def test_the_bar_goes_by_expected_seconds():
    """Half of the benches are done, in a tenth of the time that all may take."""
    bar = Progress()
    bar.show({"a": 1.0, "b": 9.0}, [], "suite/x.py::a[T1-mla_numba-b]")
    bar.show({"a": 1.0, "b": 9.0}, ["a"], "suite/x.py::b[T1-mla_numba-b]")
    (task,) = bar._bars.tasks
    assert (task.completed, task.total, task.fields["count"]) == (1.0, 10.0, "1/2")
    assert task.fields["note"] == "x.py::b[T1-mla_numba-b]"
    assert re.fullmatch(r"left 0:00:\d\d", task.fields["left"])


def test_the_time_left_goes_by_the_pace_so_far():
    planned = {"a": 2.0, "b": 10.0, "c": 8.0}
    assert seconds_left(planned, {}, 0.0) == 20.0
    assert seconds_left(planned, {}, 1.5) == 18.5
    assert seconds_left(planned, {"a": 3.0}, 0.0) == 27.0  # half as slow again as expected
    assert seconds_left(planned, {"a": 3.0, "b": 9.0}, 6.0) == 2.0
    assert seconds_left(planned, {"a": 1.0, "b": 5.0}, 60.0) == 0.0


def test_nothing_is_drawn_while_a_bench_is_timed(tmp_path, monkeypatch):
    """The clock goes on while a bench is prepared; from "timing" to "done" there is not one redraw."""
    child = (
        "import json, time\n"
        "def say(end='\\n', **event):\n"
        f"    print({run._PREFIX!r} + json.dumps(event), end=end, flush=True)\n"
        "say(start='x'); time.sleep(0.3); say(timing=True); time.sleep(0.3); say(done='x', suite={}); print('log')\n"
        "say(end='', done='cut')\n"
    )
    monkeypatch.setattr(run, "_REDRAW_S", 0.02)
    outcome, log, drawn = Outcome(), io.StringIO(), []
    bar = SimpleNamespace(redraw=lambda: drawn.append((outcome.running, outcome.is_timed)), show=lambda *_: None)
    assert run._follow([sys.executable, "-c", child], tmp_path, 1, outcome, log, bar) == 0
    assert outcome.done == ["x"]
    assert drawn.count(("x", False)) > 1
    assert not any(timed for _, timed in drawn)
    assert log.getvalue() == "log\n"


def test_what_a_bench_may_take_goes_by_what_it_prepares():
    pytest.importorskip("pytest_benchmark")
    from suite.expected import expected_seconds

    def of(name):
        return expected_seconds(f"bench/suite/bench_prolog.py::test_prolog[{name}]", 0.5)

    assert of("T8-torch-P3w-cold") > of("T8-numpy-cold") > of("T8-numpy-warm") > 0.5
    assert of("T512-numpy-cold") > of("T8-numpy-cold")
    assert of("T512-numpy-warm") == of("T8-numpy-warm")


def test_wrong_tokens_are_refused_before_the_benches(tmp_path):
    result = invoke("bench", "--tokens", "0", "--output", str(tmp_path / "page.html"))
    assert result.exit_code == 2
    assert "0 is not in the range" in result.output
    assert not list(tmp_path.iterdir())


def test_options_that_leave_nothing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: Outcome(status=5))
    result = invoke("bench", "--output", str(tmp_path / "page.html"))
    assert result.exit_code == 2
    assert "expected options that leave a bench, got none" in result.output


def test_a_suite_that_does_not_begin_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: Outcome(status=4))
    result = invoke("bench", "--output", str(tmp_path / "page.html"))
    assert result.exit_code == 1
    assert f"the suite ended early, with exit status 4: no bench is done; see {tmp_path / 'page.log'}" in (
        result.output
    )


def test_outside_a_checkout_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = invoke("bench")
    assert result.exit_code == 1
    assert "bench: expected a checkout of mla_numba" in result.output
    assert "--from" in result.output


@pytest.mark.parametrize(
    ("package", "extra"), [("matplotlib", "plot"), ("jinja2", "plot"), ("pytest_benchmark", "bench")]
)
def test_a_missing_extra_is_named(package, extra, monkeypatch):
    find = cli_bench.find_spec
    monkeypatch.setattr(cli_bench, "find_spec", lambda name: None if name == package else find(name))
    result = invoke("bench")
    assert result.exit_code == 1
    assert f"[{extra}]" in result.output


def test_the_environment_limits_every_library(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "mine")
    env = run.environment(3)
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert [env[name] for name in names] == ["3"] * 4
    assert env["GLIBC_TUNABLES"] == "mine"
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert "glibc.malloc.hugetlb=1" in run.environment(3)["GLIBC_TUNABLES"]
