"""`mla-numba bench`: run the suite of a checkout, and write what it found as one page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...base.output_file import write_text
from .html_report import make_page
from .results import Results

__all__ = ["bench"]

_ROOT = Path(__file__).parents[3]
_DONE = re.compile(r"::(?P<name>\S+) (?:PASSED|FAILED|SKIPPED|ERROR|XFAIL).*\[ *(?P<percent>\d+)%\]")
_NOTHING_RAN = 5  # pytest's exit status
_TUNABLES = {
    "hugetlb": 1,  # huge pages for weights
    "mmap_max": 0,  # keep freed outputs: page faults would otherwise dominate at many tokens
    "trim_threshold": 1 << 40,
}


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The command's options."""

    tokens: str | None
    weights: str | None
    only: tuple[str, ...]
    no_peers: bool
    slow: bool
    tiny: bool
    seconds: float
    threads: int
    output: Path
    save: Path | None
    saved: Path | None

    def check(self) -> None:
        """Refuses to begin where the page cannot be made, or would take the place of another file."""
        if find_spec("matplotlib") is None:
            raise click.ClickException("matplotlib: expected for the page, got none; pip install 'mla_numba[plot]'")
        for name, other in (("--json", self.save), ("--from", self.saved)):
            if other is not None and other.resolve() == self.output.resolve():
                raise click.UsageError(f"--output: expected another file than that of {name}, got {self.output}")

    def of_pytest(self) -> list[str]:
        """Those that the suite takes."""
        options = ["--tokens", self.tokens] if self.tokens else []
        options += ["--weights", self.weights] if self.weights else []
        flags = (("no-peers", self.no_peers), ("slow", self.slow), ("tiny", self.tiny))
        options += [f"--{name}" for name, given in flags if given]
        return [*options, f"--benchmark-max-time={self.seconds}"]


def bench(ctx: click.Context, **given: Any) -> None:
    """Runs the suite, or reads results of one, and writes the page."""
    options = BenchOptions(**given)
    options.check()
    if options.saved is not None:
        write_page(options.saved, f"mla-numba bench --from {options.saved}", options.output)
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.json"
        arguments = [*options.of_pytest(), f"--benchmark-json={results}"]
        status = run_suite(find_suite(), options.only, arguments, options.threads)
        if status == _NOTHING_RAN:
            raise click.UsageError("expected options that leave a bench, got none")
        if results.is_file() and results.stat().st_size:
            if options.save is not None:
                _write(options.save, results.read_text(encoding="utf-8"))
            write_page(results, shlex.join(["mla-numba", *sys.argv[1:]]), options.output)
    if status:
        ctx.exit(1)


def find_suite() -> Path:
    """The folder of the suite: beside the package, or in the working directory.

    Raises `click.ClickException` where there is none, or where pytest-benchmark is missing.
    """
    for root in (_ROOT, Path.cwd()):
        if (root / "bench" / "suite" / "bench_prolog.py").is_file():
            break
    else:
        raise click.ClickException(
            f"bench: expected a checkout of mla_numba, for its folder bench is not installed with it, found none in "
            f"{Path.cwd()}; run the command there, or with --from on results that were kept"
        )
    if find_spec("pytest_benchmark") is None:
        raise click.ClickException("pytest-benchmark: expected to run the suite, got none; pip install -e '.[bench]'")
    return root / "bench" / "suite"


def run_suite(suite: Path, only: Sequence[str], arguments: Sequence[str], n_threads: int) -> int:
    """Runs pytest behind a progress bar; its exit status, and on a failure what it wrote on stderr."""
    files = [str(suite / f"bench_{part}.py") for part in only] or [str(suite)]
    command = [sys.executable, "-m", "pytest", *files, "-v", "--color=no", "--benchmark-only", *arguments]
    console = Console(stderr=True)
    written = []
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=False))
    with (
        subprocess.Popen(
            command,
            cwd=suite.parents[1],
            env=environment(n_threads),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
        Progress(*columns, TextColumn("{task.description}"), console=console) as progress,
    ):
        task = progress.add_task("preparing", total=100)
        assert process.stdout is not None
        for line in process.stdout:
            written.append(line)
            done = _DONE.search(line)
            if done:
                progress.update(task, completed=int(done["percent"]), description=done["name"])
    status = process.returncode
    if status not in (0, _NOTHING_RAN):
        click.echo("".join(written), err=True)
    return status


def environment(n_threads: int) -> dict[str, str]:
    """What libraries have to find when they load: their number of threads, and memory that is kept."""
    threads = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())
    return {"GLIBC_TUNABLES": tunables} | os.environ | dict.fromkeys(threads, str(n_threads)) | {"PYTHONPATH": path}


def write_page(results: Path, command: str, output: Path) -> None:
    """Makes the page of results, and says on stderr what was left out.

    Raises `click.ClickException` where they are none, or the page can't be written.
    """
    try:
        read = Results.read(results)
        page = make_page(read, command)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    _write(output, page.encode("utf-8", "xmlcharrefreplace").decode())  # names of others may hold lone surrogates
    for reason in read.left_out:
        click.echo(reason, err=True)
    click.echo(f"wrote {output}")


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
