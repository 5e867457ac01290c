"""The page of the benches: what is read from their results, and what it says first."""

import json
import re
from xml.etree import ElementTree

import pytest
from helpers.bench_results import RAW, WORK, entry, words
from helpers.cli import invoke

from mla_numba.cli.bench.names import full_name
from mla_numba.cli.bench.results import Group, Results, Timing
from mla_numba.cli.bench.summary import summary
from mla_numba.cli.shown import BEYOND_LIMIT

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from mla_numba.cli.bench.charts import lines
from mla_numba.cli.bench.html_report import make_page

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
    result = invoke("bench", "--from", str(path), "--output", str(tmp_path / "x.html"))
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "x.html").exists()


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
    assert [*reasons[:5], f"left out: {reasons[5]}"] == summary(Results.read(saved)).splitlines()[-6:]
    result = invoke("bench", "--from", str(saved), "--output", str(tmp_path / "x.html"))
    assert result.exit_code == 0
    assert "its int8 products saturate" in (tmp_path / "x.html").read_text()
