"""What a command says while it works: a clock on a terminal, plain lines on a pipe."""

import io
import logging
import re
import subprocess
import sys
import time

import pytest
from helpers import python_environment, run_python
from helpers.cli import run_cli

from mla_numba.cli import progress
from mla_numba.cli.compiling import (
    counting_kernels,
    parts_behind_the_prolog,
    parts_of_a_call,
    parts_of_a_step,
    parts_of_all,
)
from mla_numba.cli.progress import Steps, progress_bar, seconds_text
from mla_numba.cli.ticker import ticking

SMALL = ["--dims", "64,2,32,32,16,16", "--tokens", "3"]
LOG = logging.getLogger("mla_numba")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        return [ESCAPE.sub("", line).rstrip() for line in re.split(r"[\r\n]+", self.getvalue())]


def on_terminal(monkeypatch):
    """Standard error as a terminal, from here on: pytest sets its own when a test begins."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def wait_for(text, terminal):
    end = time.monotonic() + 60
    while not any(text in line for line in terminal.lines()):
        assert time.monotonic() < end, terminal.lines()
        time.sleep(0.01)


def test_a_clock_runs_while_a_step_does(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with Steps() as steps, steps.step("packing weights [b]"):
        wait_for("1 s", terminal)
    assert re.fullmatch(r"packing weights \[b\] \S+ +\d+\.\d\d s", terminal.lines()[-2].strip())
    assert steps.seconds["packing weights [b]"] >= 0.5


def test_time_left_where_parts_are_counted(monkeypatch):
    on_terminal(monkeypatch)
    now = 1000.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Steps() as steps, steps.step("reading", 10, timed=True) as advance:
        now += 20
        advance(4)
        assert steps._progress.tasks[0].fields["expected"] == 50
        now += 25
        advance()
        advance(by=5)
        assert steps._progress.tasks[0].fields["expected"] == 0
    assert steps.seconds == {"reading": 45}


def test_time_left_is_shown(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with Steps() as steps, steps.step("reading", 1000) as advance:
        wait_for(" 1 s", terminal)
        advance()
        wait_for("left", terminal)
    assert any(re.search(r"\d s, about \d+ min \d\d s left", line) for line in terminal.lines())


def test_a_step_that_times_is_drawn_between_its_calls_only(monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(progress, "ticking", None)
    with Steps() as steps, steps.step("timing", 3, timed=True) as advance:
        for _ in range(3):
            advance()
    assert "timing" in terminal.lines()[-2]


def test_what_the_library_says_stands_beside_the_step(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with Steps() as steps, steps.step("first call"):
        LOG.warning("compiling kernels for this CPU (once, up to a minute)")
    assert terminal.lines()[-2].endswith(" s; compiling kernels for this CPU")


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "TERM": "xterm"}, {"TTY_COMPATIBLE": "1"}], ids=str)
def test_on_a_pipe_there_are_plain_lines(environment, tmp_path):
    status, _, err = run_cli("dump", str(tmp_path / "a"), *SMALL, env=environment)
    assert status == 0
    assert re.fullmatch(r"computing the reference: \d+\.\d\d s\nwriting files: \d+\.\d\d s\n", err)


def test_a_terminal_that_cannot_be_drawn_on_gets_plain_lines(monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with Steps() as steps, steps.step("reading"):
        LOG.warning("something else (of no interest)")
    assert re.fullmatch(r"something else\nreading: \d\.\d\d s\n", terminal.getvalue())


def test_a_bar_on_a_pipe_is_a_line_at_its_end(capsys):
    with progress_bar("sweep", 3) as advance:
        advance("note", 1)
        advance("", 1)
    assert capsys.readouterr().err == "sweep: 2 of 3, 0 s\n"


def test_the_clock_of_a_bar_runs_while_something_is_prepared(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with progress_bar("sweep", 3) as bar:
        with bar.busy("making weights"):
            wait_for("0:00:01", terminal)
        assert any("making weights" in line for line in terminal.lines())
        before = terminal.getvalue()
        time.sleep(0.5)
        assert terminal.getvalue() == before
        bar("T 8: 0.99", 1)
    assert bar.done == 1


def test_the_report_is_alone_on_standard_output(tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mla_numba", "dump", str(tmp_path / "a"), *SMALL]
    done = subprocess.run(command, env=python_environment(), stdout=subprocess.PIPE, stderr=theirs, text=True)
    assert re.fullmatch(r"\S+: 23 files, \d+\.\d\d MB; mla-numba check \S+\n", done.stdout)
    with open(ours, "rb", buffering=0) as drawn:
        assert b"writing files" in drawn.read(100_000)


def test_all_kernels_are_as_many_parts_as_are_counted():
    """Up to a few small ones, which not every instruction set has."""
    code = """
from contextlib import contextmanager
from mla_numba.cli.warmup import compile_all

class Counting:
    @contextmanager
    def step(self, name, total):
        parts = []
        yield lambda by=1: parts.append(by)
        print(total, sum(parts), len(parts))

compile_all(1, Counting())
"""
    total, found, n = map(int, run_python("-c", code).split())
    assert total == parts_of_all(1)
    assert n >= 14
    assert abs(found - total) <= 0.05 * total


def test_warmup_with_an_indexer_has_all_that_a_step_takes():
    code = """
import logging, sys
from contextlib import contextmanager
from click.testing import CliRunner
from mla_numba.cli.main import main
from mla_numba.cli.warmup import compile_all, compile_behind_the_prolog

class Steps:
    @contextmanager
    def step(self, name, total):
        parts = []
        yield lambda by=1: parts.append(by)
        print(total, sum(parts))

class Kernels(logging.Handler):
    def emit(self, record):
        names.append(getattr(record, "kernel", ""))

names = []
log = logging.getLogger("mla_numba")
log.addHandler(Kernels())
log.setLevel(logging.DEBUG)
compile_all(1, Steps())
compile_behind_the_prolog(1, Steps())
names.clear()
step = "attend --dims 256,4,64,64,32,16 --context 64 --indexer-heads 4 --indexer-head-dim 32 --threads 1 --repeats 1"
done = CliRunner().invoke(main, [*step.split(), "--quant", "ab"])
assert done.exit_code == 0, done.output
print(*[name for name in names if name not in ("", "kernels.read_stream", "kernels.fma_peak", "kernels.dot_peak")])
"""
    _, behind, *compiled = run_python("-c", code).splitlines()
    total, found = map(int, behind.split())
    assert total == parts_behind_the_prolog()
    assert abs(found - total) <= 0.05 * total
    assert [
        name
        for name in " ".join(compiled).split()
        if "tile" in name or "outlined" in name or "attend" in name or "launch" in name
    ] == []


def test_parts_come_from_the_log():
    parts = []
    level = LOG.level
    with counting_kernels(parts.append):
        LOG.debug("kernel", extra={"kernel": "outlined.heads"})
        LOG.info("kernel", extra={"kernel": "kernels.pack_panels"})
        LOG.info("no kernel")
    LOG.debug("kernel", extra={"kernel": "outlined.heads"})
    assert parts == [9, 1]
    assert LOG.level == level
    assert parts_of_a_call(1) < parts_of_a_call(2) < parts_of_all(1) < parts_of_all(2)
    assert parts_of_a_call(1) < parts_of_a_call(1, with_indexer=True) < parts_of_a_step(1)


def test_the_ticker_ends_with_its_block_and_is_no_other_thread():
    import threading

    ticks, before = [], threading.active_count()
    with ticking(lambda: ticks.append(threading.active_count() - before), 0.001):
        while len(ticks) < 3:
            time.sleep(0.001)
    n = len(ticks)
    time.sleep(0.02)
    assert len(ticks) == n
    assert set(ticks) == {0}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "62 min 05 s")]
)
def test_seconds_as_text(seconds, text):
    assert seconds_text(seconds) == text
