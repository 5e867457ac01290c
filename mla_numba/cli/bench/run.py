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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
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
        if "benches" in event:
            self.head = self.head or event["head"]
            self.planned |= {name: seconds for name, seconds in event["benches"].items() if name not in self.done}
        elif "start" in event:
            self.running = event["start"]
        elif "done" in event:
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
    keeps what was done.
    """
    outcome = Outcome()
    files = [str(suite / f"bench_{part}.py") for part in parts]
    command = [sys.executable, "-m", "pytest", *files, "-v", "--color=no", "--benchmark-only", "--events", *arguments]
    with log.open("w", encoding="utf-8", buffering=1) as written, Progress() as progress:
        try:
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


def _follow(command: list[str], folder: Path, n_threads: int, outcome: Outcome, log: TextIO, progress: Progress) -> int:
    """One process of the suite from beginning to end; its exit status."""
    # A session of its own: Ctrl-C in a terminal reaches this process alone, which then ends that one.
    process = subprocess.Popen(
        command, cwd=folder, env=environment(n_threads), text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        for event in _events(process, log, progress):
            outcome.take(event)
            progress.show(outcome.planned, outcome.done, outcome.running)
        return process.wait()
    finally:
        _end(process)


def _events(process: subprocess.Popen[str], log: TextIO, progress: Progress) -> Iterator[dict[str, Any]]:
    """What the suite says; all else that it writes goes to the log. The bar moves while nothing is timed."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    is_timed = False
    while True:
        try:
            line = lines.get(timeout=None if is_timed else _REDRAW_S)
        except queue.Empty:
            progress.redraw()
            continue
        if line is None:
            return
        if not line.startswith(_PREFIX):
            log.write(line)
            continue
        event = json.loads(line.removeprefix(_PREFIX))
        is_timed = "timing" in event
        yield event


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the process and all that it started, if it still runs."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_S)
    if process.stdout is not None:
        process.stdout.close()


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment(n_threads: int) -> dict[str, str]:
    """What libraries have to find when they load: their number of threads, and memory that is kept."""
    threads = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())
    return {"GLIBC_TUNABLES": tunables} | os.environ | dict.fromkeys(threads, str(n_threads)) | {"PYTHONPATH": path}
