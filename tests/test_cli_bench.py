import json
import re
import socket

import pytest
from click.testing import CliRunner

from mla_numba.cli.bench import command as cli_bench
from mla_numba.cli.bench.results import Group, Results, Timing
from mla_numba.cli.main import main
from mla_numba.cli.shown import BEYOND_LIMIT

pytest.importorskip("matplotlib")
from mla_numba.cli.bench.charts import bars, lines
from mla_numba.cli.bench.html_report import make_page


def entry(group, implementation, median, **extra):
    extra = {"implementation": implementation, "made_of": "plan <1>", "verified": "bit for bit"} | extra
    return {
        "group": group,
        "extra_info": extra,
        "stats": {"min": median / 2, "median": median, "iqr": median / 8, "rounds": 7},
    }


RATES = {"read_gb_s": 93.25, "fma_gflop_s": 500.0, "dot_gop_s": 2000.0}
WORK = {
    "bytes": 3_000_000,
    "flops": 4_000_000,
    "int8_ops": 2_000_000,
    "least_seconds": 2e-4,
    "share_of_roofline": 0.4,
    "rates": RATES,
}
RAW = {
    "machine_info": {
        "machine": "a CPU", "system": "Linux", "threads": 2, "waiting": "PASSIVE", "malloc": "not set",
        "dims": "hidden_size 7168",
    },
    "mla_numba": {
        "versions": {"mla_numba": "0.1.0", "torch": "not installed"},
        "threading_layer": "omp",
    },
    "commit_info": {"id": "0123456789abcdef", "dirty": True},
    "datetime": "2026-01-02T03:04:05.678+00:00",
    "benchmarks": [
        entry("prolog, T = 8, weights cold", "numpy", 4e-3, **WORK),
        entry("prolog, T = 8, weights cold", "mla_numba-b", 1e-3, **WORK, weights="cold, 4 sets in turns"),
        entry("prolog, T = 8, weights cold", "mla_numba-ab", 5e-4, **(WORK | {"least_seconds": 1e-4, "bytes": 9})),
        entry("prolog, T = 32, weights cold", "mla_numba-b", 2e-3, **(WORK | {"rates": RATES | {"read_gb_s": 50.0}})),
        entry("packing", "mla_numba-b", 0.05),
    ],
}  # fmt: skip


WROTE = ": expected JSON that the bench suite wrote, with "
ONE = ": benchmarks[0]" + WROTE


def with_entry(**changes):
    """The results with a first entry that no suite wrote."""
    return json.dumps(RAW | {"benchmarks": [entry("packing", "mla_numba-b", 0.05) | changes]})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RAW))
    return path


def test_results_are_read(saved):
    results = Results.read(saved)
    assert list(results.families) == [("prolog", "cold"), ("packing", "")]
    first, second, packing = results.groups
    assert (first.t, first.state, second.t, packing.t) == (8, "cold", 32, None)
    assert [row.name for row in first.rows] == ["mla_numba-ab", "mla_numba-b", "numpy"]
    row = first.rows[1]
    assert row is first.baseline
    assert (row.min_s, row.median_s, row.iqr_s, row.rounds) == (5e-4, 1e-3, 1.25e-4, 7)
    assert (row.gb_per_s, row.gop_per_s, row.share) == (pytest.approx(3), pytest.approx(6), 0.4)
    assert (first.least, second.least, packing.least) == ((2e-4, False), (2e-4, True), None)
    assert packing.rows[0].gb_per_s is packing.rows[0].least_s is packing.rows[0].share is None
    assert results.facts["rates"] == (
        "read 50 to 93 GB/s, fp32 multiply-adds 500 to 500 GFLOP/s, int8 dot products 2000 to 2000 GOP/s"
    )
    assert results.facts["commit"] == "0123456789ab, with changes"
    assert results.facts["run"] == "2026-01-02 03:04:05 UTC"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", ": expected JSON, got "),
        ("[]", ": expected a JSON object, got list"),
        ("[" * 100_000, ": expected a JSON object, got one that is nested too deeply"),
        ('{"benchmarks": []}', WROTE + "machine_info: an object, got none"),
        (json.dumps(RAW | {"benchmarks": []}), ": expected at least one result, got none"),
        (json.dumps(RAW | {"benchmarks": None}), WROTE + "benchmarks: a list, got None"),
        (json.dumps(RAW | {"benchmarks": [1]}), ONE + "an object, got 1"),
        (json.dumps(RAW | {"datetime": 5}), WROTE + "datetime: a string, got 5"),
        (json.dumps(RAW | {"machine_info": RAW["machine_info"] | {"machine": None}}), WROTE + "machine: a string, got"),
        (json.dumps(RAW).replace("93.25", "NaN"), ": expected JSON, got the number NaN"),
        (with_entry(group=[1]), ONE + "group: a string, got [1]"),
        (with_entry(stats=None), ONE + "stats: an object, got None"),
        (with_entry(stats={"min": 1, "median": 0, "iqr": 1, "rounds": 1}), ONE + "median: seconds, got 0"),
        (with_entry(stats={"min": "1"}), ONE + "min: a number from 0 to 2**63, got '1'"),
        (
            with_entry(extra_info={"implementation": "a", "flops": 10**30}),
            ONE + "flops: a number from 0 to 2**63, got 1",
        ),
        (with_entry(extra_info={"implementation": "a", "rates": 3}), ONE + "rates: an object, got 3"),
        (with_entry(extra_info={"implementation": None}), ONE + "implementation: a string, got None"),
    ],
    ids=range(17),
)
def test_what_are_no_results_is_refused(text, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        Results.read(path)
    result = CliRunner().invoke(main, ["bench", "--from", str(path), "--output", str(tmp_path / "x.html")])
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "x.html").exists()


def test_page_holds_all_it_shows(saved):
    page = make_page(Results.read(saved), "mla-numba bench --tokens 8,32")
    for text in ("mla-numba bench --tokens 8,32", "a CPU", "prolog, T = 32, weights cold", "plan &lt;1&gt;", "PASSIVE"):
        assert text in page
    assert "<1>" not in page
    assert set(re.findall(r'(?:src|href)="([^",]*)', page)) == {"data:image/svg+xml;base64", "#f0", "#f1"}
    assert page.count("<img") == 3 + 1  # a bar chart a group, and one over both numbers of tokens
    cells = re.findall(r"<tr><td class=\"text\">numpy</td>(.*?)</tr>", page)[0]
    # min, median, IQR, rounds, times ours in mode b, GB/s, Gop/s, share, the machine's GB/s
    assert re.findall("<td>(.*?)</td>", cells) == ["2.0000", "4.0000", "0.5000", "7", "4.00", "0.8", "1.5", "40%", "93"]


def test_a_share_above_the_limit_is_marked_and_explained(saved):
    plain = make_page(Results.read(saved), "")
    assert "(!)" not in plain
    raw = RAW | {"benchmarks": [entry("sweeps", "mla_numba: heads", 1e-3, **(WORK | {"share_of_roofline": 49.42}))]}
    saved.write_text(json.dumps(raw))
    page = make_page(Results.read(saved), "")
    assert "<td>(!)</td>" in page
    assert "4942" not in page
    assert page.count(BEYOND_LIMIT) == 1


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
    result = CliRunner().invoke(main, ["bench", option, str(tmp_path / name)])
    assert result.exit_code == 2
    assert f"'{option}': {said}" in result.output


def test_one_file_for_two_results_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: pytest.fail("ran"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["bench", "--output", "a", "--json", str(tmp_path / "a")])
    assert result.exit_code == 2
    assert "--output: expected another file than that of --json, got a" in result.output


def test_page_and_command_say_what_was_left_out(tmp_path):
    facts = {"machine": "a CPU"}
    assert "Left out" not in make_page(Results(facts, ()), "mla-numba bench")
    reason = "torch-P1 left out: its int8 products saturate: <1> of 2"
    page = make_page(Results(facts, (), (reason,)), "mla-numba bench")
    assert "<p>Left out:</p><ul><li>torch-P1 left out: its int8 products saturate: &lt;1&gt; of 2</li></ul>" in page
    saved, output = tmp_path / "results.json", tmp_path / "x.html"
    saved.write_text(json.dumps(RAW | {"mla_numba": RAW["mla_numba"] | {"left_out": [reason]}}))
    result = CliRunner().invoke(main, ["bench", "--from", str(saved), "--output", str(output)])
    assert result.exit_code == 0
    assert reason in result.stderr.splitlines()
    assert "torch-P1 left out" in output.read_text()


def test_charts_are_svg(saved):
    results = Results.read(saved)
    for svg in (*map(bars, results.groups), lines(results.groups[:2])):
        assert "<svg" in svg
        assert 'width="720pt"' in svg  # 1000 px at 100 a inch


def test_groups_of_parts_have_no_baseline():
    rows = [Timing.of(entry("", f"mla_numba: {name}", 1e-3, **WORK | {"bytes": n})) for n, name in ((1, "a"), (2, "b"))]
    group = Group.of("sweeps, T = 1, weights warm", rows)
    assert group.baseline is group.least is None


def test_command_runs_the_suite(tmp_path):
    page, saved = tmp_path / "page.html", tmp_path / "saved.json"
    arguments = ["bench", "--tiny", "--only", "sweeps", "--tokens", "1", "--weights", "cold", "--threads", "1"]
    result = CliRunner().invoke(main, [*arguments, "--seconds", "0.01", "--output", str(page), "--json", str(saved)])
    assert result.exit_code == 0, result.output
    assert "sweeps, T = 1, weights cold" in page.read_text()
    assert [row.name for row in Results.read(saved).groups[0].rows][-1] in ("mla_numba: down", "mla_numba: heads")
    assert Results.read(saved).groups[0].baseline is None


def test_a_failure_shows_what_pytest_wrote(tmp_path):
    arguments = ["bench", "--tiny", "--tokens", "7", "--output", str(tmp_path / "page.html")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "--tokens: expected some of (1, 8, 32, 128, 512), got [7]" in result.output
    assert not (tmp_path / "page.html").exists()


def test_options_that_leave_nothing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: 5)
    result = CliRunner().invoke(main, ["bench", "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 2
    assert "expected options that leave a bench, got none" in result.output


def test_outside_a_checkout_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["bench"])
    assert result.exit_code == 1
    assert "bench: expected a checkout of mla_numba" in result.output
    assert "--from" in result.output


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "plot"), ("pytest_benchmark", "bench")])
def test_a_missing_extra_is_named(package, extra, monkeypatch):
    find = cli_bench.find_spec
    monkeypatch.setattr(cli_bench, "find_spec", lambda name: None if name == package else find(name))
    result = CliRunner().invoke(main, ["bench"])
    assert result.exit_code == 1
    assert f"[{extra}]" in result.output


def test_the_environment_limits_every_library(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "mine")
    env = cli_bench.environment(3)
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert [env[name] for name in names] == ["3"] * 4
    assert env["GLIBC_TUNABLES"] == "mine"
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert "glibc.malloc.hugetlb=1" in cli_bench.environment(3)["GLIBC_TUNABLES"]
