"""What a sweep leaves: its table, CSV and JSON, the form T4, and the results that are read back."""

import csv
import json
import re
from dataclasses import replace

import pytest
from helpers.sweep_rows import CONTROL, FASTER, RATES, row
from rich.console import Console

from mla_numba.cli.shown import beyond_limit, share_text
from mla_numba.cli.study.found import Found
from mla_numba.cli.study.t4 import write_t4
from mla_numba.cli.study.tables import show_rows, write_csv, write_json
from mla_numba.tuning.results import best_rows, read_sweep
from mla_numba.tuning.study import Row, with_limits
from mla_numba.tuning.verdict import findings

ROWS = [
    row(0, 8, ratio=0.9, down_kc=64, down_walk=1), row(1, 8, ratio=1.2, down_kc=64, down_walk=2),
    row(2, 32, ratio=1.0, down_kc=128, down_walk=1), row(3, 32, "stopped", 1.5, down_kc=128, down_walk=2),
    row(4, 8, ratio=1.1, unroll_list=[8]), row(5, 32, ratio=1.3, unroll_list=[8]),
    row(6, 8, ratio=1.4, unroll_list=[4, 2]), row(7, 32, "refused", None, unroll_list=[4, 2]),
]  # fmt: skip


def test_csv_and_json(tmp_path):
    write_csv(tmp_path / "x.csv", ROWS)
    with (tmp_path / "x.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert list(lines[0])[:6] == ["number", "t", "quant", "down_kc", "down_walk", "unroll_list"]
    assert (lines[1]["down_walk"], lines[1]["unroll_list"], lines[1]["ratio"]) == ("2", "", "1.2")
    assert (lines[6]["unroll_list"], lines[6]["plan"]) == ("[4, 2]", "line")
    assert (lines[7]["status"], lines[7]["median_ms"]) == ("refused", "")
    found = Found(ROWS, findings(ROWS, [CONTROL], False), None, {0: "CpuTiling(down_kc=64)", 2: "", 6: ""})
    write_json(tmp_path / "x.json", {"machine": {"isa": "x"}}, {"seed": 1}, found)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read["machine"] == {"isa": "x"}
    assert read["sweep"] == {"seed": 1}
    assert Row(**read["rows"][3]) == ROWS[3]
    assert read["findings"][0] == {
        "t": 8, "quant": "b", "verdict": "noise", "number": 0, "tile_config": "CpuTiling(down_kc=64)",
        "control": CONTROL.as_dict(),
    }  # fmt: skip


def test_results_are_read_back_and_shown_in_a_notebook(tmp_path):
    found = Found(ROWS, findings(ROWS, [CONTROL], False), None, {0: "CpuTiling(down_kc=64)", 2: "", 6: ""})
    write_json(tmp_path / "sweep.json", {"machine": {"isa": "x"}}, {"seed": 1}, found)
    for place in (tmp_path, tmp_path / "sweep.json"):
        results = read_sweep(place)
        assert results.rows == tuple(ROWS)
        assert results.facts == {"machine": {"isa": "x"}, "findings": found.as_dicts()}
        assert results.spec == {"seed": 1}
    assert results.best() == best_rows(ROWS)
    assert repr(results).startswith(f"<SweepResults: {len(ROWS)} rows, ")
    assert len(repr(results)) < 200
    page = results._repr_html_()
    header, *lines = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    names = list(dict.fromkeys(name for row in best_rows(ROWS) for name in row.settings))
    assert header == ["T", "quant", *names, "ms", "planner's ms", "ratio", "final, 95 %", "status"]
    assert [line[0] for line in lines] == [str(row.t) for row in best_rows(ROWS)]
    assert [float(line[header.index("ratio")]) for line in lines] == [row.ratio for row in best_rows(ROWS)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected the file of a sweep, with sweep and rows, got another"),
        ('{"sweep": {}, "rows": [1]}', "expected the file of a sweep, with sweep and rows, got another"),
        ('{"sweep": {}, "rows": [{}]}', "row 0: expected the fields of a row"),
        ("[]", "expected a JSON object"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, content, message):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sweep(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_sweep(tmp_path / "none")


def shown(rows):
    console = Console(width=200)
    with console.capture() as text:
        console.print(show_rows(rows))
    return " ".join(text.get().split())


def test_a_share_above_the_limit_is_marked_and_explained():
    rows = with_limits({0: row(0, ratio=0.5, down_mc=4)}, RATES, 1)  # four times as fast as the rates allow
    assert (share_text(1.0), share_text(1.004), share_text(0.954, 1), share_text(None)) == (
        "100%",
        "(!)",
        "95.4%",
        "(!)",
    )
    assert (rows[0].share, rows[0].share_reason) == (None, "weights came from caches in part")
    assert "400%" not in shown(rows)
    assert "(!) more than 100 %: faster than the rates measured beside it allow" in shown(rows)
    assert "limit: weights came from caches in part" in shown(rows)
    cold = with_limits({0: row(0, ratio=0.5)}, RATES, 99)
    assert "limit: the machine was slower while its rates were measured" in shown(cold)
    assert "down_mc [/x]" in shown([replace(rows[0], settings={"down_mc": "[/x]"})])
    assert "(!)" not in shown(with_limits({0: row(0, ratio=5.0)}, RATES, 99))
    assert beyond_limit([None, 1.0]) == "" != beyond_limit([None, 1.01])


def test_figures_of_a_busy_time_are_marked():
    rows = [replace(row(0, ratio=0.25), busy=True), replace(row(1, 32, ratio=0.5), final_busy=True, **FASTER)]
    assert "0.250*" in shown(rows)
    assert "0.950 (0.940 to 0.960)*" in shown(rows)
    assert shown([row(0)]).count("*") == 1  # in the legend


LEFT_OUT = [row(1, ratio=None, status="refused"), row(2, ratio=None, status="wrong")]


def test_t4_is_what_kernel_tuner_reads(tmp_path):
    rows = [replace(row(0, down_kc=64, unroll_list=[8]), times_ms=[1.0], own_times_ms=[2.0]), *LEFT_OUT]
    write_t4(tmp_path / "x.json", {"date": "2026-01-02"}, rows)
    read = json.loads((tmp_path / "x.json").read_text())
    assert [(r["invalidity"], r["correctness"]) for r in read["results"]] == [
        ("correct", 1), ("constraints", 0), ("correctness", 0)
    ]  # fmt: skip
    assert read["results"][0]["times"] == {
        "compilation": 0.0, "benchmark": 3.0, "framework": 0.0, "search_algorithm": 0.0, "validation": 0.0,
        "runtimes": [1.0],
    }  # fmt: skip
    jsonschema = pytest.importorskip("jsonschema")
    kernel_tuner = pytest.importorskip("kernel_tuner.file_utils")
    jsonschema.validate(read, kernel_tuner.output_file_schema("results")[1])
