"""The journal of a study: what is studied, and what came of each job so far, as JSON lines to go on from."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tiling import Rates

from ..base.checks import check_choice
from ..base.json_file import parse_object
from ..base.modes import QUANT_MODES
from ..base.output_file import output_file
from .study import Job, Row

__all__ = ["Journal", "row_in"]

_MAX_BYTES = 1 << 30
_MAX_LINE = 1 << 24  # the header lists all jobs
_MAX_NUMBER = 2.0**63
_TIMED = ("min_ms", "median_ms", "baseline_ms", "ratio", "wins", "n_bytes", "flops", "int8_ops", "gb_s", "gop_s")
_POSITIVE = ("min_ms", "median_ms", "baseline_ms", "ratio", "final_ratio", "n_bytes", "n_final_pairs")
_STATUSES = {"done": True, "stopped": True, "wrong": False, "same": False, "refused": False}  # whether it was timed


class Journal:
    """Results of a study as JSON lines: a header, then a row a line, each written whole as it comes.

    `spec` says what is studied, its "jobs", if any, as lists that begin with number, tokens and mode. `facts` are asked
    for where there is no journal yet; their "rates_exact" are the fields of `Rates`. A journal of the same spec
    is continued, its facts and rows kept. A last line that was cut off is dropped.

    Raises `ValueError` for a journal of another spec, and with the file and the line for one that is no JSON object, or
    none that a journal holds.
    """

    def __init__(self, path: Path, spec: Mapping[str, Any], facts: Callable[[], Mapping[str, Any]]) -> None:
        self._path = path
        self.rows: dict[int, Row] = {}
        self._spec = json.loads(json.dumps(spec))
        lines = _lines(path)
        header = next(lines, None)
        if header is None:
            self.facts: dict[str, Any] = json.loads(json.dumps(facts()))
        else:
            self.facts = self._read_header(*header)
            jobs = {job[0]: tuple(job[1:3]) for job in self._spec.get("jobs", [])}
            for where, line in lines:
                row = row_in(where, line)
                if jobs and jobs.get(row.number) != (row.t, row.quant):
                    raise ValueError(f"{where}: expected a job of this sweep, got number {row.number}, t {row.t}")
                self.rows[row.number] = row
        self._write()  # anew, so that nothing follows on a line that was cut off

    def _read_header(self, where: str, header: dict[str, Any]) -> dict[str, Any]:
        if set(header) != {"spec", "facts"} or not isinstance(header["facts"], dict):
            raise ValueError(f"{where}: expected the header of a journal, spec and facts, got {sorted(header)[:9]}")
        if header["spec"] != self._spec:
            raise ValueError(f"{self._path}: expected the journal of this sweep, got that of another")
        facts: dict[str, Any] = header["facts"]
        try:
            Rates(**facts.get("rates_exact", {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: expected the rates of a machine as rates_exact, got {error}") from None
        return facts

    @property
    def rates(self) -> Rates:
        """What the machine was measured to reach."""
        return Rates(**self.facts["rates_exact"])

    def _write(self) -> None:
        texts = [{"spec": self._spec, "facts": self.facts}, *map(asdict, self.rows.values())]
        with output_file(self._path) as file:
            file.write("".join(json.dumps(text) + "\n" for text in texts).encode())

    def change_facts(self, changes: Mapping[str, Any]) -> None:
        """Keeps other values of some facts."""
        self.facts |= json.loads(json.dumps(changes))
        self._write()

    def add(self, row: Row) -> None:
        """Keeps a row; one of the same number takes the place of the former."""
        self.rows[row.number] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def left(self, jobs: Sequence[Job], seed: int, again: Callable[[Row], bool] = lambda row: False) -> list[Job]:
        """The jobs without a row, or with one that is to be had `again`, in random order."""
        waiting = [job for job in jobs if job.number not in self.rows or again(self.rows[job.number])]
        return random.Random(seed).sample(waiting, len(waiting))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place, for errors, and its object; a last one behind the header that was cut off is left out."""
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path}: expected a regular file, got another kind")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: expected at most {_MAX_BYTES} bytes, got {path.stat().st_size}")
    with path.open("rb") as file:
        number = 0
        while text := file.readline(_MAX_LINE + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(text) > _MAX_LINE:
                raise ValueError(f"{where}: expected at most {_MAX_LINE} bytes, got more")
            try:
                line = parse_object(text, where)
            except ValueError:
                if number > 1 and not text.endswith(b"\n"):
                    return
                raise
            yield where, line


def row_in(where: str, line: dict[str, Any]) -> Row:
    """The row that a line holds, if each field has a value that a study gives it."""
    known = {f.name: "str" if f.name == "quant" else str(f.type) for f in fields(Row)}
    needed = {"number", "t", "quant", "settings", "status"}
    if not needed <= set(line) <= set(known):
        wrong = sorted(needed - set(line)) or sorted(set(line) - set(known))
        raise ValueError(f"{where}: expected the fields of a row, got none or another of {wrong[0][:80]!r}")
    try:
        json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: expected text that can be written, got a lone surrogate") from None
    for name, value in line.items():
        if not _fits(value, known[name]):
            raise ValueError(f"{where}: {name}: expected {known[name]}, got {str(value)[:80]}")
        if name in _POSITIVE and value is not None and value <= 0:
            raise ValueError(f"{where}: {name}: expected a number > 0, got {value}")
    if line["status"] not in _STATUSES:
        raise ValueError(f"{where}: status: expected one of {', '.join(_STATUSES)}, got {line['status'][:80]!r}")
    check_choice(f"{where}: quant", line["quant"], QUANT_MODES)
    row = Row(**line)
    if {getattr(row, name) is not None for name in _TIMED} != {_STATUSES[row.status]}:
        raise ValueError(f"{where}: expected {', '.join(_TIMED)} where a plan was timed, and there only")
    if row.status == "same" and not (row.reason.isascii() and row.reason.isdecimal() and len(row.reason) < 10):
        raise ValueError(f"{where}: reason: expected the number of another row, got {row.reason[:80]!r}")
    return row


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of the type that a field of `Row` is declared as; numbers are none below 0."""
    if value is None:
        return kind.endswith("| None")
    kind = kind.removesuffix(" | None")
    if kind == "list[float]":
        return isinstance(value, list) and all(_fits(each, "float") for each in value)
    if kind in ("int", "float"):
        is_number = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
        return is_number and 0 <= value <= _MAX_NUMBER and math.isfinite(value)
    return isinstance(value, {"bool": bool, "str": str, "dict[str, Any]": dict}[kind])
