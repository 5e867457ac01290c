"""The journal of a sweep: it goes on where it stopped, and no line of another shape is read."""

import json
from dataclasses import asdict, replace

import pytest
from helpers.sweep_rows import RATES, row

from mla_numba.tuning.journal import Journal
from mla_numba.tuning.space import Candidate
from mla_numba.tuning.study import Job

FACTS = {"rates_exact": {"bandwidth_bytes_s": 1e10, "flops_s": 1e10, "ops_s": 1e10, "bf16_flops_s": None}}


def test_a_journal_is_gone_on_from(tmp_path):
    path, asked = tmp_path / "journal.jsonl", []

    def facts():
        asked.append(1)
        return FACTS | {"threads": (1, 2)}

    jobs = [Job(i, 8, "b", Candidate((), None)) for i in range(6)]
    journal = Journal(path, {"tokens": (8,)}, facts)
    order = [job.number for job in journal.left(jobs, 3)]
    assert sorted(order) == list(range(6)) != order
    for number in (4, 1):
        journal.add(row(number, down_mc=number))
    with path.open("a") as file:
        file.write('{"number": 5, "t": 8, "qu')  # cut off in the middle
    again = Journal(path, {"tokens": (8,)}, facts)
    assert again.rows == journal.rows
    assert (again.facts, asked) == (FACTS | {"threads": [1, 2]}, [1])
    assert again.rates == RATES
    assert {job.number for job in again.left(jobs, 3)} == {0, 2, 3, 5}
    again.add(replace(row(1, down_mc=1), final_ratio=0.7))
    again.change_facts({"threads": [3]})
    last = Journal(path, {"tokens": (8,)}, facts)
    assert last.rows[1].final_ratio == 0.7
    assert last.facts["threads"] == [3]
    with pytest.raises(ValueError, match=r"journal\.jsonl: expected the journal of this sweep, got that of another"):
        Journal(path, {"tokens": (9,)}, facts)


HEADER = {"spec": {"jobs": [[0, 8, "b"], [1, 8, "b"], [2, 8, "b"]]}, "facts": FACTS}
LINES = [HEADER, asdict(row(0)), asdict(row(1, ratio=None, status="refused"))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": None}, "expected min_ms, .* where a plan was timed, and there only"),
        ({"status": "refused"}, "expected min_ms, .* where a plan was timed, and there only"),
        ({"quant": "c"}, "quant: expected one of none, a, b, ab, got 'c'"),
        ({"quant": 1}, "quant: expected str, got 1"),
        ({"status": "made"}, "status: expected one of done, stopped, wrong, same, refused, got 'made'"),
        ({"status": 1}, "status: expected str, got 1"),
        ({"median_ms": 0}, "median_ms: expected a number > 0, got 0"),
        ({"median_ms": "1"}, "median_ms: expected float | None, got 1"),
        ({"ratio": -1.0}, r"ratio: expected float \| None, got -1.0"),
        ({"ratio": 1e300}, r"ratio: expected float \| None, got 1e\+300"),
        ({"flops": 10**30}, r"flops: expected int \| None, got 1000"),
        ({"flops": True}, r"flops: expected int \| None, got True"),
        ({"n_pairs": None}, "n_pairs: expected int, got None"),
        ({"settings": [1]}, r"settings: expected dict\[str, Any\], got \[1\]"),
        ({"number": 5}, "expected a job of this sweep, got number 5, t 8"),
        ({"t": 9}, "expected a job of this sweep, got number 0, t 9"),
        ({"reason": "\ud800"}, "expected text that can be written, got a lone surrogate"),
        ({"beside": 1}, "expected the fields of a row, got none or another of 'beside'"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, dict) else "",
)
def test_a_row_that_no_sweep_wrote_is_refused_with_its_line(changes, message, tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, LINES[2], LINES[1] | changes)))
    with pytest.raises(ValueError, match=rf"journal\.jsonl, line 3: {message}"):
        Journal(path, HEADER["spec"], dict)


@pytest.mark.parametrize(
    ("number", "text", "message"),
    [
        (2, '{"number": 0, "t"', "line 2: expected JSON, got "),
        (3, "null", "line 3: expected a JSON object, got NoneType"),
        (3, "[" * 100_000, "line 3: expected a JSON object, got one that is nested too deeply"),
        (3, '{"ratio": NaN}', "line 3: expected JSON, got the number NaN"),
        (3, '{"number": 0}', "line 3: expected the fields of a row, got none or another of 'quant'"),
        (3, json.dumps(LINES[2] | {"status": "same", "reason": "x"}), "line 3: reason: expected the number of another"),
        (1, "no journal", "line 1: expected JSON, got "),
        (1, '{"spec": 1}', r"line 1: expected the header of a journal, spec and facts, got \['spec'\]"),
        (1, json.dumps(HEADER | {"facts": {}}), "line 1: expected the rates of a machine as rates_exact, got "),
        (1, json.dumps(HEADER | {"facts": {"rates_exact": [1]}}), "line 1: expected the rates of a machine"),
        (1, json.dumps(HEADER | {"facts": {"rates_exact": {"ops_s": 1}}}), "line 1: expected the rates of a machine"),
    ],
    ids=range(11),
)
def test_a_line_of_another_shape_is_refused_with_its_number(number, text, message, tmp_path):
    path = tmp_path / "journal.jsonl"
    lines = [json.dumps(line) for line in LINES]
    lines[number - 1] = text
    kept = "".join(line + "\n" for line in lines)
    path.write_text(kept)
    with pytest.raises(ValueError, match=f"journal.jsonl, {message}"):
        Journal(path, HEADER["spec"], dict)
    assert path.read_text() == kept


def test_a_journal_that_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="expected a regular file, got another kind"):
        Journal(tmp_path, {}, dict)


def test_rows_that_were_timed_at_a_busy_time_are_timed_again(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", {}, lambda: FACTS)
    jobs = [Job(i, 8, "b", Candidate((), None)) for i in range(3)]
    journal.add(replace(row(0), busy=True))
    journal.add(row(1))
    assert {job.number for job in journal.left(jobs, 0, lambda row: row.busy)} == {0, 2}
    assert {job.number for job in journal.left(jobs, 0)} == {2}
