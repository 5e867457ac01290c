"""`mla-numba bench`: run the suite of a checkout, and write what it found as one page."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ...base.extras import how_to_install
from ...base.output_file import is_stream, write_text
from ...base.output_path import fault_of_file
from .html_report import make_page
from .parts import PAGE, PARTS
from .results import Results
from .run import Outcome, run_suite
from .summary import summary

__all__ = ["bench"]

_ROOT = Path(__file__).parents[3]
_NOTHING_RAN = 5  # pytest's exit status
_INTERRUPTED = 130
_FOR_PAGE = {"matplotlib": "matplotlib", "jinja2": "Jinja2"}


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The command's options."""

    tokens: tuple[int, ...] | None
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

    @property
    def json(self) -> Path:
        """Where results are kept: beside the page if nothing else is said."""
        return self.save or self._beside(".json")

    @property
    def log(self) -> Path:
        """Where pytest's output goes."""
        return self._beside(".log")

    def _beside(self, ending: str) -> Path:
        page = PAGE if is_stream(self.output) else self.output
        return page.with_name(page.name.removesuffix(page.suffix) + ending)

    def check(self) -> None:
        """Refuses, before anything runs, a page that cannot be made and files of the same name."""
        for module, name in _FOR_PAGE.items():
            if find_spec(module) is None:
                how = how_to_install("plot", name)
                raise click.ClickException(f"{name}: expected for the page, got none; {how}")
        files = {"--output": self.output}
        files |= {"--json": self.json, "the log": self.log} if self.saved is None else {"--from": self.saved}
        for name, path in files.items():
            if name not in ("--output", "--from") and (fault := fault_of_file(path, streams=True)):
                raise click.UsageError(f"{name}: {fault}")
            others = [n for n, other in files.items() if n != name and other.resolve() == path.resolve()]
            if others and not is_stream(path):
                raise click.UsageError(f"{name}: expected another file than that of {others[0]}, got {path}")

    def of_pytest(self) -> list[str]:
        """Those that the suite takes."""
        options = ["--tokens", ",".join(map(str, self.tokens))] if self.tokens else []
        options += ["--weights", self.weights] if self.weights else []
        flags = (("no-peers", self.no_peers), ("slow", self.slow), ("tiny", self.tiny))
        options += [f"--{name}" for name, given in flags if given]
        return [*options, f"--benchmark-max-time={self.seconds}"]


def bench(ctx: click.Context, **given: Any) -> None:
    """Runs the suite, or reads results of one, and writes the page."""
    options = BenchOptions(**given)
    options.check()
    if options.saved is not None:
        _write(options.output, _page(_read(options.saved), f"mla-numba bench --from {options.saved}"))
        click.echo(f"wrote {options.output}", err=is_stream(options.output))
        return
    outcome = run_suite(find_suite(), options.only or PARTS, options.of_pytest(), options.threads, options.log)
    with _uninterrupted():
        status = _report(outcome, options)
    ctx.exit(status)


def _report(outcome: Outcome, options: BenchOptions) -> int:
    """Writes results and page, and says where they are; the exit status of the command."""
    if outcome.status == _NOTHING_RAN and not outcome.planned:
        raise click.UsageError("expected options that leave a bench, got none")
    files, found = [options.log], None
    if outcome.benches:
        _write(options.json, json.dumps(outcome.raw(), indent=1) + "\n")
        found = Results.of(outcome.raw(), str(options.json))
        _write(options.output, _page(found, shlex.join(["mla-numba", *sys.argv[1:]])))
        files = [options.output, options.json, options.log]
    wrote = ", ".join(map(str, files))
    counted = f"{len(outcome.done)} of {len(outcome.planned)} benches are done" if outcome.done else "no bench is done"
    if outcome.interrupted:
        click.echo(f"interrupted: {counted}{' and kept' if outcome.done else ''}; wrote {wrote}", err=True)
        return _INTERRUPTED
    quiet = is_stream(options.output) or is_stream(options.json)
    if found is not None and summary(found):
        click.echo(summary(found), err=quiet)
    for name, reason in outcome.failed.items():
        click.echo(f"failed: {name.rpartition('::')[2]}: {_last_line(reason)}", err=True)
    if not outcome.is_whole or not outcome.planned:
        click.echo(f"the suite ended early, with exit status {outcome.status}: {counted}; see {options.log}", err=True)
    click.echo(f"wrote {wrote}", err=quiet)
    return int(bool(outcome.failed) or not outcome.is_whole or not outcome.planned or outcome.status != 0)


def _last_line(text: str) -> str:
    """What an error of pytest says, in a line: the first that it marks, or the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (marked or lines[-1:] or [""])[0]


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
        how = how_to_install("bench", "pytest-benchmark")
        raise click.ClickException(f"pytest-benchmark: expected to run the suite, got none; {how}")
    return root / "bench" / "suite"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets the results be written whole: Ctrl-C has no effect for these seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _read(path: Path) -> Results:
    try:
        return Results.read(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _page(results: Results, command: str) -> str:
    # Names of others may hold lone surrogates.
    return make_page(results, command).encode("utf-8", "xmlcharrefreplace").decode()


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
