import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from html import unescape
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from helpers import ROOT

from mla_numba.cli.bench import command as cli_bench
from mla_numba.cli.bench import run
from mla_numba.cli.bench.names import full_name
from mla_numba.cli.bench.progress import Progress
from mla_numba.cli.bench.results import Group, Results, Timing
from mla_numba.cli.bench.run import Outcome
from mla_numba.cli.bench.summary import summary
from mla_numba.cli.main import main
from mla_numba.cli.shown import BEYOND_LIMIT

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from mla_numba.cli.bench.charts import lines
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
    assert "PyTorch held to" not in results.facts


def test_the_page_names_limits_that_pytorch_was_held_to(tmp_path):
    path, limits = tmp_path / "results.json", "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
    path.write_text(json.dumps(RAW | {"machine_info": RAW["machine_info"] | {"torch_limits": limits}}))
    assert Results.read(path).facts["PyTorch held to"] == limits
    assert limits in words(make_page(Results.read(path), ""))


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


def words(page):
    """The text of a page, as a reader sees it."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_page_says_first_how_much_faster_than_what_and_where(saved):
    page = make_page(Results.read(saved), "mla-numba bench --tokens 8,32")
    assert re.search(r"<h1>(.*?)</h1>", page)[1] == "mla_numba is 4.00 times as fast as the fastest alternative"
    said = words(page)
    for text in ("a CPU, 2 threads, other dimensions than a model's (hidden_size 7168), weights cold",
                 "fastest alternative times as long 8 tokens 1.00 ms 40% NumPy 4.00 32 tokens",
                 "32 tokens 2.00 ms 40%", "NumPy 4.00"):  # fmt: skip
        assert text in said
    assert said.index("times as fast") < said.index("Left out") < said.index("Whole calls") < said.index("Packing")
    assert "torch-P1" not in said


def test_page_holds_all_it_shows(saved):
    page = make_page(Results.read(saved), "mla-numba bench --tokens 8,32")
    said = words(page)
    for text in ("mla-numba bench --tokens 8,32", "a CPU", "prolog, weights cold", "plan <1>", "PASSIVE"):
        assert text in said
    assert "<1>" not in page
    targets = re.findall(r'(?:src|href)="([^"]*)"', re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    assert set(targets) == {"#part0", "#part1", "#run"}
    assert all(f'id="{target[1:]}"' in page for target in targets)
    assert page.count("<svg") == 1  # over both numbers of tokens
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert page.count("var(--ink") > 5
    cells = re.findall(r"<tr><td>NumPy</td>(.*?)</tr>", page)[0]
    # median, bar, times ours in mode b, min, IQR, rounds, GB/s, Gop/s, share, the machine's GB/s
    found = re.findall("<td[^>]*>(.*?)</td>", cells)
    assert [re.sub("<.*?>", "", cell) for cell in found] == [
        "4.00", "", "4.00", "2.00", "0.500", "7", "0.750", "1.50", "40%", "93.2",
    ]  # fmt: skip


def test_numbers_of_a_slow_peer_are_plain_and_hide_nothing(saved):
    """A peer of two seconds a call beside one of two milliseconds: 1,980 and not 1.98e+03, on a logarithmic scale."""
    slow = [entry("prolog, T = 8, weights cold", name, s, **WORK)
            for name, s in (("mla_numba-b", 1e-3), ("torch-P3w", 1.2e-3), ("torch-P1", 1.98))]  # fmt: skip
    saved.write_text(json.dumps(RAW | {"benchmarks": slow}))
    page = make_page(Results.read(saved), "")
    assert "1,980" in page
    assert "e+0" not in page
    assert "PyTorch compiled, prepacked weights" in page
    places = [float(at) for at in re.findall(r'<i class="c\d" style="left:([\d.]+)%', page)]
    one = float(re.search(r'class="one" style="left:([\d.]+)%', page)[1])
    assert len(places) == 2
    assert 0 < one < places[0] < places[1] < 100
    assert places[0] - one > 1


def test_without_peers_or_calls_there_is_a_page_too(saved):
    alone = [entry("prolog, T = 8, weights warm", "mla_numba-b", 1e-3, **WORK)]
    saved.write_text(json.dumps(RAW | {"benchmarks": alone}))
    page = make_page(Results.read(saved), "")
    assert "<h1>A call of mla_numba takes 1.00 ms</h1>" in page
    assert 'class="dots"' not in page
    saved.write_text(json.dumps(RAW | {"benchmarks": [entry("packing", "mla_numba-b", 0.05)]}))
    page = make_page(Results.read(saved), "")
    assert "<h1>Benches of mla_numba</h1>" in page
    assert "50.0" in words(page)


def test_a_share_above_the_limit_is_marked_and_explained(saved):
    plain = make_page(Results.read(saved), "")
    assert "(!)" not in plain
    raw = RAW | {"benchmarks": [entry("sweeps", "mla_numba: heads", 1e-3, **(WORK | {"share_of_roofline": 49.42}))]}
    saved.write_text(json.dumps(raw))
    page = make_page(Results.read(saved), "")
    assert "<td>(!)</td>" in page
    assert "4942" not in page
    assert page.count(BEYOND_LIMIT) == 1


def test_every_implementation_of_the_suite_has_a_name():
    pytest.importorskip("pytest_benchmark")
    from suite.product_cases import PRODUCTS
    from suite.prolog_cases import MODES, PEERS

    names = {
        *PEERS,
        *(f"mla_numba-{mode}" for mode in MODES),
        *(n for of in PRODUCTS.values() for n in of),
        "torch-onednn",
    }
    assert [name for name in sorted(names - {"mla_numba"}) if full_name(name) == name] == []
    assert full_name("another") == "another"


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
    result = CliRunner().invoke(main, ["bench", *options])
    assert result.exit_code == 2
    assert said in result.output


def test_page_and_command_say_what_was_left_out(saved, tmp_path):
    assert "Nothing: every implementation ran here" in make_page(Results.read(saved), "mla-numba bench")
    reasons = [f"torch-P1 left out: its int8 products saturate: <{i}> of 2" for i in range(5)]
    reasons += ["onnxruntime is not installed"]
    suite = RAW["mla_numba"] | {"left_out": reasons, "benches_done": 5, "benches_planned": 9, "failed": ["x::y"]}
    saved.write_text(json.dumps(RAW | {"mla_numba": suite}))
    page = make_page(Results.read(saved), "")
    said = words(page)
    assert "PyTorch eager, weights as they come : its int8 products saturate: <0> of 2; " in said
    assert "and 2 reasons of this kind more" in said
    assert "ONNX Runtime : is not installed" in said
    assert "Not complete: 5 of 9 benches were done" in said
    assert "Failed: x::y" in said
    assert "<0>" not in page
    assert [f"left out: {reason}" for reason in reasons] == summary(Results.read(saved)).splitlines()[-6:]
    result = CliRunner().invoke(main, ["bench", "--from", str(saved), "--output", str(tmp_path / "x.html")])
    assert result.exit_code == 0
    assert "its int8 products saturate" in (tmp_path / "x.html").read_text()


def test_the_summary_has_a_line_for_each_number_of_tokens(saved):
    first, *rest = summary(Results.read(saved)).splitlines()
    assert first.startswith("mla_numba is 4.00 times as fast as the fastest alternative: a CPU, 2 threads")
    assert [line.strip() for line in rest] == [
        "8 tokens: 1.00 ms; NumPy takes 4.00 times as long",
        "32 tokens: 2.00 ms",
    ]


def test_charts_are_svg(saved):
    svg = lines(Results.read(saved).groups[:2], "time <of> calls")
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    assert root.get("aria-label") == "time <of> calls"
    assert root.get("width") == "720pt"  # 1000 px at 100 a inch
    said = ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"mla_numba, mode b: 2.00", "mla_numba, mode ab: 0.500", "NumPy: 4.00", "8", "32"} <= set(said)


def test_groups_of_parts_have_no_baseline():
    rows = [Timing.of(entry("", f"mla_numba: {name}", 1e-3, **WORK | {"bytes": n})) for n, name in ((1, "a"), (2, "b"))]
    group = Group.of("sweeps, T = 1, weights warm", rows)
    assert group.baseline is group.least is None


SWEEPS = ["bench", "--tiny", "--only", "sweeps", "--weights", "cold", "--threads", "1", "--seconds", "0.01"]


def test_command_runs_the_suite_at_any_number_of_tokens(tmp_path):
    page = tmp_path / "page.html"
    result = CliRunner().invoke(main, [*SWEEPS, "--tokens", "7", "--output", str(page)])
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
    result = CliRunner().invoke(main, ["bench", "--only", "prolog", "--output", str(tmp_path / "page.html")])
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


@pytest.mark.parametrize("wait", ["nothing", "first", "page"])
def test_interrupt_keeps_what_was_done(wait, tmp_path):
    """Ctrl-C before anything is done, after the first bench, and again while the page is written."""
    page, log = tmp_path / "page.html", tmp_path / "page.log"
    command = [*SWEEPS, "--tokens", "1,2,3,4,5,6,7,8", "--output", str(page)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mla_numba", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: log.exists() and (wait == "nothing" or "PASSED" in log.read_text()), process)
        process.send_signal(signal.SIGINT)
        while wait == "page" and not page.exists() and process.poll() is None:  # an impatient hand
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    # An impatient hand may reach the process behind all that it has to do.
    assert process.returncode in ((130, -signal.SIGINT) if wait == "page" else (130,)), err
    assert out == ""
    said = re.fullmatch(r"interrupted: (\d+) of (\d+) benches are done and kept; wrote (.*)\n", err)
    assert said, err
    if wait == "nothing":
        assert said.groups() == ("0", said[2], str(log))
        assert not page.exists()
    else:
        results = Results.read(tmp_path / "page.json")
        assert sum(len(group.rows) for group in results.groups) == int(said[1]) >= 1
        assert results.unfinished == (int(said[1]), 24)
        assert said[3] == f"{page}, {tmp_path / 'page.json'}, {log}"
        assert f"Not complete: {said[1]} of 24 benches" in words(page.read_text())


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
    bar.show({"a": 1.0, "b": 9.0}, ["a"], "x::b")
    (task,) = bar._bars.tasks
    assert (task.completed, task.total, task.fields["count"], task.fields["note"]) == (1.0, 10.0, "1/2", "b")


def test_nothing_is_drawn_while_a_bench_is_timed(monkeypatch):
    """The clock goes on while a bench is prepared; from "timing" to "done" there is not one redraw."""
    child = (
        "import json, time\n"
        "def say(**event):\n"
        f"    print({run._PREFIX!r} + json.dumps(event), flush=True)\n"
        "say(start='x'); time.sleep(0.3); say(timing=True); time.sleep(0.3); say(done='x', suite={}); print('log')\n"
    )
    monkeypatch.setattr(run, "_REDRAW_S", 0.02)
    drawn, log, seen = [], io.StringIO(), []
    bar = SimpleNamespace(redraw=lambda: drawn.append(list(seen)))
    process = subprocess.Popen([sys.executable, "-c", child], text=True, stdout=subprocess.PIPE)
    for event in run._events(process, log, bar):
        seen.append(next(iter(event)))
    process.wait()
    process.stdout.close()
    assert seen == ["start", "timing", "done"]
    assert drawn.count(["start"]) > 1
    assert drawn.count(["start", "timing"]) == 0
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
    result = CliRunner().invoke(main, ["bench", "--tokens", "0", "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 2
    assert "0 is not in the range" in result.output
    assert not list(tmp_path.iterdir())


def test_options_that_leave_nothing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: Outcome(status=5))
    result = CliRunner().invoke(main, ["bench", "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 2
    assert "expected options that leave a bench, got none" in result.output


def test_a_suite_that_does_not_begin_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "run_suite", lambda *_: Outcome(status=4))
    result = CliRunner().invoke(main, ["bench", "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 1
    assert f"the suite ended early, with exit status 4: 0 of 0 benches are done; see {tmp_path / 'page.log'}" in (
        result.output
    )


def test_outside_a_checkout_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_bench, "_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["bench"])
    assert result.exit_code == 1
    assert "bench: expected a checkout of mla_numba" in result.output
    assert "--from" in result.output


@pytest.mark.parametrize(
    ("package", "extra"), [("matplotlib", "plot"), ("jinja2", "plot"), ("pytest_benchmark", "bench")]
)
def test_a_missing_extra_is_named(package, extra, monkeypatch):
    find = cli_bench.find_spec
    monkeypatch.setattr(cli_bench, "find_spec", lambda name: None if name == package else find(name))
    result = CliRunner().invoke(main, ["bench"])
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
