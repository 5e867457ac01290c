"""The suite in a process of its own, followed by what it says: results so far, progress, and what pytest wrote."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from .progress import Progress

__all__ = ["Outcome", "environment", "run_suite"]

_ROOT = Path(__file__).parents[3]
_PREFIX = "mla-numba bench: "  # of bench/suite/events.py
_REDRAW_S = 1.0  # while a bench is prepared; while one is timed nothing is drawn
_PATIENCE_S = 3.0  # for a process that was asked to end
_TUNABLES = {
    "hugetlb": 1,  # huge pages for weights
    "mmap_max": 0,  # keep freed outputs: page faults would otherwise dominate at many tokens
    "trim_threshold": 1 << 40,
}


@dataclass
class Outcome:
    """What came of the suite so far: `raw` as pytest-benchmark's JSON has it, the last names first none."""

    planned: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    running: str = ""
    is_timed: bool = False
    head: dict[str, Any] = field(default_factory=dict)
    suite: dict[str, Any] = field(default_factory=dict)
    benches: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    status: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every bench had its turn."""
        return len(self.done) >= len(self.planned)

    def raw(self) -> dict[str, Any]:
        """The results, for a file and for the page."""
        suite = {**self.suite, "left_out": list(self.left_out), "failed": list(self.failed)}
        suite |= {"benches_done": len(self.done), "benches_planned": len(self.planned)}
        return {**self.head, "benchmarks": self.benches, "mla_numba": suite}

    def take(self, event: Mapping[str, Any]) -> None:
        """Adds what the suite said."""
        self.is_timed = "timing" in event
        if "benches" in event:
            self.head = self.head or event["head"]
            self.planned |= {name: seconds for name, seconds in event["benches"].items() if name not in self.done}
        elif "start" in event:
            self.running = event["start"]
        elif "done" in event:
            if event["done"] not in self.done:  # a bench whose clean-up fails comes twice
                self.done.append(event["done"])
            self.running = ""
            self.suite = event["suite"]
            if event.get("bench"):
                self.benches.append(event["bench"])
            if event.get("outcome") == "skipped":
                self.left_out[event["reason"]] = None
            if event.get("outcome") == "failed":
                self.failed[event["done"]] = event["reason"]

    def give_up_running(self, why: str) -> None:
        """The bench that ran when the process ended counts as left out."""
        name = self.running.rpartition("::")[2]
        self.done.append(self.running)
        self.running = ""
        self.left_out[f"{name} left out: {why}"] = None


def run_suite(suite: Path, parts: Sequence[str], arguments: Sequence[str], n_threads: int, log: Path) -> Outcome:
    """Runs pytest behind a progress bar. What it writes goes to `log`.

    A bench that takes the process with it is left out, and the suite goes on behind it. Ctrl-C ends the suite and
    keeps what was done, and so does SIGTERM, which `timeout` and batch systems send.
    """
    outcome = Outcome()
    files = [str(suite / f"bench_{part}.py") for part in parts]
    command = [sys.executable, "-m", "pytest", *files, "-v", "--color=no", "--benchmark-only", "--events", *arguments]
    try:  # around the log and the bar too: an interrupt may come before the suite has begun
        with log.open("w", encoding="utf-8", buffering=1) as written, Progress() as progress, _terminable():
            while True:
                after = [f"--after={outcome.done[-1]}"] if outcome.done else []
                outcome.status = _follow([*command, *after], suite.parents[1], n_threads, outcome, written, progress)
                if outcome.status >= 0 or not outcome.running:
                    break
                outcome.give_up_running(f"its process ended by {_name_of_signal(-outcome.status)}")
                if outcome.is_whole:
                    break
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what runs inside like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow(command: list[str], folder: Path, n_threads: int, outcome: Outcome, log: TextIO, progress: Progress) -> int:
    """One process of the suite from beginning to end; its exit status."""
    # A session of its own: Ctrl-C in a terminal reaches this process alone, which then ends that one.
    process = subprocess.Popen(
        command, cwd=folder, env=environment(n_threads), text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    said = _Said(process, log)
    try:
        while True:
            try:
                event = said.next(None if outcome.is_timed else _REDRAW_S)
            except queue.Empty:
                progress.redraw()
                continue
            if event is None:
                return process.wait()
            outcome.take(event)
            progress.show(outcome.planned, outcome.done, outcome.running)
    finally:
        _end(process)
        with suppress(queue.Empty):  # what it said before it ended
            while event := said.next(_PATIENCE_S):
                outcome.take(event)


class _Said:
    """What the process of the suite says, event by event; all else that it writes goes to the log."""

    def __init__(self, process: subprocess.Popen[str], log: TextIO) -> None:
        self._log = log
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def next(self, timeout: float | None) -> dict[str, Any] | None:
        """The next event, or None at the end. Raises `queue.Empty` where none comes for `timeout` seconds."""
        while True:
            line = self._lines.get(timeout=timeout)
            if line is None:
                self._lines.put(None)  # put back, so that every later call finds the end, too
                return None
            if not line.startswith(_PREFIX):
                self._log.write(line)
            elif line.endswith("\n"):  # otherwise a line that was cut off, since the process was ended while it wrote
                event: dict[str, Any] = json.loads(line.removeprefix(_PREFIX))
                return event


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the process and all that it started, if it still runs."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_S)


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment(n_threads: int) -> dict[str, str]:
    """Variables that libraries read when they load: their number of threads, and that malloc keeps its memory."""
    threads = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())
    return {"GLIBC_TUNABLES": tunables} | os.environ | dict.fromkeys(threads, str(n_threads)) | {"PYTHONPATH": path}
