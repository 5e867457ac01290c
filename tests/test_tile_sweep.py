"""What a sweep varies, its journal, its reports and pictures; and the contest that times it."""

import csv
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from mla_numba import CpuTiling, MlaDims, MlaTileConfig
from mla_numba.cli.shown import beyond_limit, share_text
from mla_numba.cli.study.closing import closing, counted
from mla_numba.cli.study.found import Found
from mla_numba.cli.study.t4 import write_t4
from mla_numba.cli.study.tables import (
    show_rows,
    write_csv,
    write_json,
)
from mla_numba.tuning.contest import Arena, ExactnessError, Pairs
from mla_numba.tuning.interval import Interval
from mla_numba.tuning.journal import Journal
from mla_numba.tuning.line import line_of
from mla_numba.tuning.results import best_rows, read_sweep
from mla_numba.tuning.space import (
    Candidate,
    Grid,
    check_restriction,
    holds,
    parse_values,
)
from mla_numba.tuning.study import (
    Effort,
    Job,
    Row,
    finals,
    reasons_of,
    run_job,
    with_limits,
)
from mla_numba.tuning.verdict import Control, controls_in, findings, is_faster
from tiling import Rates, preset

DIMS = MlaDims(64, 2, 32, 32, 16, 16)
RATES = Rates(1e10, 1e10, 1e10, None)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("12", [12]),
        ("1,2, 2,3", [1, 2, 3]),
        ("12:36:12", [12, 24, 36]),
        ("12:35:12, 3", [12, 24, 3]),
        ("3:5", [3, 4, 5]),
        ("64:300:*2", [64, 128, 256]),
        ("[8,4,2],[1], None", [[8, 4, 2], [1], None]),
        ("{-1: 4},{0:1, 3: 2}", [{-1: 4}, {0: 1, 3: 2}]),
    ],
)
def test_values(text, values):
    assert parse_values(text) == values


@pytest.mark.parametrize("text", ["", "5:1", "1:9:0", "8:64:*1", "0:8:*2", "a", "1 2", "__import__('os')", "f(1)"])
def test_values_that_are_none(text):
    with pytest.raises(ValueError, match=r"^values: expected "):
        parse_values(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:1000000000000", "at most 100000, got more in '1:1000000000000'"),
        ("1:90000,1:90000", "at most 100000, got more in '1:90000'"),
        ("0:999999999999999999:2", "at most 100000, got more in "),
        ("1" * 99_999, "integers, ranges, lists, mappings or None, got '111"),
        ("1" * 5000 + ":2", "integers, ranges, lists, mappings or None, got '111"),
        ("1," * 60_000, "at most 100000 characters, got 120000"),
        ("[" * 90_000, "integers, ranges, lists, mappings or None, got "),
        ("-" * 90_000 + "1", "integers, ranges, lists, mappings or None, got "),
        ("9**9**9", "integers, ranges, lists, mappings or None, got "),
        ("{[]: 1}", "integers, ranges, lists, mappings or None, got "),
    ],
    ids=range(10),
)
def test_values_without_end_are_refused_at_once(text, message):
    with pytest.raises(ValueError, match=f"^values: expected {re.escape(message)}"):
        parse_values(text)


def test_as_many_values_as_there_may_be():
    assert parse_values("1:99998, 5, True") == [*range(1, 99_999), True]


def test_a_grid_is_every_combination():
    grid = Grid({"down_mc": [1, 2], "unroll_list": [[8], [4, 2]]}, Grid.base_of(["down_mc", "unroll_list"]))
    assert [candidate.config for candidate in grid.candidates()] == [
        CpuTiling(down_mc=mc, unroll_list=tiles) for mc in (1, 2) for tiles in ((8,), (4, 2))
    ]
    assert str(next(grid.candidates())) == "down_mc 1, unroll_list [8]"


def test_cube_tiles_are_varied_by_entry_and_refused_with_a_reason():
    names = ["cube_qb_tile.k_l1", "m_tile"]
    grid = Grid({names[0]: [256, 300, 512], names[1]: [8]}, Grid.base_of(names))
    found = list(grid.candidates())
    assert found[0].config == MlaTileConfig(m_tile=8)
    assert found[2].config.cube_qb_tile.k_l1 == 512
    assert (found[1].config, found[1].refused) == (
        None, "cube_qb_tile.k_l1: expected a multiple of k_l0 = 256, got 300"
    )  # fmt: skip


def test_fields_of_two_kinds_or_of_none_are_refused():
    with pytest.raises(
        ValueError, match=r"down_mc: expected one of tile_b, .*, got a field of CpuTiling beside those of"
    ):
        Grid({"down_mc": [1], "m_tile": [2]}, Grid.base_of(["down_mc", "m_tile"]))
    every = r"a field of CpuTiling \(unroll_list, .*\) or of MlaTileConfig \(tile_b, .*\)"
    for base in (CpuTiling(), MlaTileConfig()):
        with pytest.raises(ValueError, match=f"nothing: expected {every}, got none"):
            Grid({"nothing": [1]}, base)


@pytest.mark.parametrize(
    ("name", "near"), [("down_kk", "down_kc"), ("m_tiles", "m_tile"), ("cube_qb_tile.kl1", "cube_qb_tile.k_l1")]
)
def test_a_wrong_field_gets_the_near_ones_of_both_kinds(name, near):
    for base in (CpuTiling(), MlaTileConfig()):
        with pytest.raises(ValueError, match=f"{name}: expected a field of .*, got none; near it: {near}(,|$)"):
            Grid({name: [1]}, base)


def test_bounds_of_a_grid():
    with pytest.raises(ValueError, match="values: expected at most 100000 combinations, got 1000000"):
        Grid(dict.fromkeys(("down_mc", "down_kc", "qb_mc"), range(100)), CpuTiling())


def test_restrictions():
    candidate = Candidate((("down_mc", 24), ("unroll_list", [8, 4]), ("cube_qb_tile.k_l1", 512)), None)
    for text, met in (
        ("down_mc % 12 == 0", True),
        ("down_mc * 2 <= t", False),
        ("down_mc > t or cube_qb_tile.k_l1 == 2**9", True),
        ("unroll_list[0] == 8 and mr >= 1 and nr >= 1", True),
        ("8 in unroll_list", True),
        ("1 < down_mc < 24", False),
        ("(down_mc if t > 8 else 1) & 8 == 8 and not down_mc >> 1 == 1", True),
    ):
        assert check_restriction(text, ["down_mc", "unroll_list", "cube_qb_tile.k_l1"]) == text
        assert holds(text, candidate, 40) is met


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("down_kc == 1", "expected names of .*down_mc.*, got 'down_kc'"),
        ("__import__('os').system('true')", "expected no call"),
        ("down_mc %", "expected an expression such as"),
        ("t(1)", "expected no call"),
        ("f'{t:>999999999}' == 1", "expected arithmetic, comparisons and logic, got JoinedStr"),
        ("'%999999999d' % t", "expected numbers, got '%999999999d'"),
        ("[t] * 999999999", "expected arithmetic, comparisons and logic, got List"),
        ("[x for x in t]", "expected arithmetic, comparisons and logic, got ListComp"),
        ("t < 1" + "0" * 99, "expected integers of at most 256 bits"),
        ("t < " + "1" * 5000, "expected at most 1000 characters, got 5004"),
        ("(" * 900, "expected an expression such as"),
        ("t\0", "expected an expression such as"),
    ],
)
def test_restrictions_that_are_refused(text, message):
    with pytest.raises(ValueError, match=f"restriction: .*{message}"):
        check_restriction(text, ["down_mc"])


ENDLESS = [
    "9**9**9 > t",
    "4000000**4000000 > t",
    "2**(t*10**6) > t",
    "1 << 10**9 > t",
    "((9**80)**80)**80 > t",
    "2.0**9999",
]


@pytest.mark.parametrize(
    "text",
    ["down_mc / 0 == 1", "down_mc.__class__", "down_mc['a']", "unroll_list * 10**9", "not " * 249 + "t", *ENDLESS],
)
def test_restrictions_without_a_value(text):
    candidate = Candidate((("down_mc", 1), ("unroll_list", [1])), None)
    if text.startswith("not"):
        assert not holds(text, candidate, 8)
        return
    with pytest.raises(ValueError, match=r"restriction: expected .* to have a value for down_mc 1"):
        holds(text, candidate, 8)


def test_pairs_by_hand():
    pairs = Pairs((1.0, 3.0, 2.0), (2.0, 3.0, 1.0))
    assert (pairs.min_s, pairs.median_s, pairs.baseline_median_s) == (1.0, 2.0, 2.0)
    assert pairs.ratio == 1.0
    assert pairs.wins == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def arena():
    return Arena(DIMS, "b", (5, 130), n_threads=1, n_weight_sets=2)


@pytest.mark.parametrize("t", [5, 130])
def test_contenders_give_the_reference_bits(arena, t):
    assert arena.mismatches(arena.contender(t, CpuTiling(unroll_list=(3,), down_kc=16, qb_walk=1))) == []
    assert arena.mismatches(arena.contender(t, MlaTileConfig())) == []


def test_a_wrong_bit_is_found(arena, monkeypatch):
    contender = arena.contender(5)
    call = type(contender.prologs[0]).__call__

    def off_by_a_bit(self, *args):
        out = call(self, *args)
        if self is contender.prologs[1]:
            out.q_norm.view(np.uint8)[4, 3] ^= 1
        return out

    monkeypatch.setattr(type(contender.prologs[0]), "__call__", off_by_a_bit)
    (found,) = arena.mismatches(contender)
    assert (found.name, found.n_differ, found.first) == ("q_norm", 1, (4, 3))
    candidate = Candidate((("down_kc", 16),), CpuTiling(down_kc=16))
    monkeypatch.setattr(arena, "contender", lambda *args: contender)
    row = run_job(Job(0, 5, "b", candidate), arena, Effort())
    assert (row.status, row.exact, row.ratio) == ("wrong", False, None)
    assert "q_norm: 1 of 160 elements differ" in row.reason


def test_a_baseline_that_is_not_the_reference_is_an_error(monkeypatch):
    from mla_numba.tuning import contest

    def wrong(*args):
        output = REFERENCE(*args)
        output.query_rope.view("u2")[0, 0, 0] ^= 1
        return output

    REFERENCE = contest.reference_run
    monkeypatch.setattr(contest, "reference_run", wrong)
    with pytest.raises(ExactnessError, match="5 tokens: query_rope: 1 of"):
        Arena(DIMS, "b", (5,), n_threads=1)


def test_pairs_alternate_and_take_weight_sets_in_turn(arena, monkeypatch):
    contender, baseline = arena.contender(5), arena.baseline(5)
    called = []
    names = {id(p): (who, i) for who, c in (("ours", contender), ("own", baseline)) for i, p in enumerate(c.prologs)}
    monkeypatch.setattr(type(contender.prologs[0]), "__call__", lambda self, *args: called.append(names[id(self)]))
    pairs = arena.pairs(contender)
    for _ in range(4):
        last = next(pairs)
    assert len(last.ours_s) == len(last.baseline_s) == 4
    timed = called[4:]
    assert [who for who, _ in timed] == ["own", "ours", "ours", "own"] * 2
    assert [i for _, i in timed] == [0, 1] * 4


def row(number, t=8, status="done", ratio=1.0, **settings):
    if ratio is None:
        return Row(number, t, "b", settings, status)
    return Row(
        number, t, "b", settings, status, n_pairs=7, min_ms=ratio, median_ms=2 * ratio, baseline_ms=2.0, ratio=ratio,
        wins=0.5, exact=True, n_bytes=10**7, flops=4 * 10**6 * t, int8_ops=10**6 * t, gb_s=5.0, gop_s=2.5 * t / ratio,
        plan="line\nmore",
    )  # fmt: skip


def test_limits_and_rows_that_are_the_same():
    rows = {0: row(0, ratio=0.5, down_mc=4), 1: Row(1, 8, "b", {"down_mc": 8}, "same", "0"), 2: row(2, ratio=None)}
    first, same, refused = with_limits(rows, RATES, 99)
    computing = (4e6 * 8 + 1e6 * 8) / 1e10 * 1e3
    assert first.least_ms == pytest.approx(computing) == pytest.approx(4.0)
    assert (first.share, first.share_reason) == (None, "the machine was slower while its rates were measured")
    slower = with_limits({0: row(0, ratio=4.0)}, RATES, 99)[0]
    assert (slower.share, slower.share_reason) == (pytest.approx(0.5), "")
    assert (same.number, same.settings, same.status, same.ratio) == (1, {"down_mc": 8}, "same", 0.5)
    assert refused == rows[2]
    assert with_limits(rows, replace(RATES, bandwidth_bytes_s=1e9), 99)[0].least_ms == pytest.approx(10.0)  # moving
    assert best_rows([first, same, refused]) == [first]


def test_finals_are_the_best_of_each_t():
    ratios = {0: (8, 0.9), 1: (8, 0.8), 2: (8, 1.1), 3: (8, 0.95), 4: (8, 0.85), 5: (32, 0.99), 6: (32, None)}
    rows = {n: row(n, t, ratio=ratio) for n, (t, ratio) in ratios.items()}
    assert finals(rows) == [1, 4, 0, 5]


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


def test_reasons_against_candidates_are_counted():
    assert reasons_of([]) == []
    assert reasons_of(["a", "b", "b"]) == ["refused, 2 of 3: b", "refused, 1 of 3: a"]
    assert reasons_of([*"aab", *"cde"], 2) == ["refused, 2 of 6: a", "refused, 1 of 6: b", "and 3 reasons more"]


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


def test_the_line_to_paste_makes_the_same_config():
    names = ["cube_qb_tile.k_l1", "m_tile"]
    axes = {names[0]: [256, 512], names[1]: [8, 16]}
    known = {"CpuTiling": CpuTiling, "MlaTileConfig": MlaTileConfig, "preset": preset}
    tilings = Grid({"down_kc": [64], "unroll_list": [[8, 4]]}, CpuTiling())
    for base, npuarch, candidates in (
        (None, "DAV_3510", tilings.candidates()),
        (None, "DAV_3510", Grid(axes, MlaTileConfig()).candidates()),
        ("decode_b4_s2", "DAV_3510", Grid(axes, preset("decode_b4_s2")).candidates()),
        ("decode_b4_s2", "DAV_2201", Grid(axes, preset("decode_b4_s2", "DAV_2201")).candidates()),
        (None, "DAV_2201", [Candidate((("preset", "default"),), preset("default", "DAV_2201"))]),
    ):
        for candidate in candidates:
            assert eval(line_of(candidate, base, npuarch), known) == candidate.config
    assert line_of(next(tilings.candidates())) == "CpuTiling(unroll_list=(8, 4), down_kc=64)"
    assert line_of(Candidate((("down_kc", 0),), None, "refused")) == ""


CONTROL = Control(8, "b", Interval(1.0, 0.99, 1.01, 30), busy=False)
FASTER = {"final_ratio": 0.95, "final_low": 0.94, "final_high": 0.96, "final_wins": 1.0, "n_final_pairs": 30}


@pytest.mark.parametrize(
    ("ratio", "wins", "faster"),
    [
        (Interval(0.95, 0.94, 0.96, 30), 1.0, True),
        (Interval(0.95, 0.94, 0.96, 30), 0.69, False),
        (Interval(0.95, None, None, 5), 1.0, False),  # too few pairs
        (Interval(0.95, 0.90, 0.995, 30), 1.0, False),  # the own plan against itself went as low
        (Interval(0.95, 0.90, 1.001, 30), 1.0, False),
        (Interval(0.991, 0.985, 0.989, 30), 1.0, False),  # no noise, but not worth it
    ],
)
def test_faster_is_what_is_below_noise(ratio, wins, faster):
    assert is_faster(ratio, wins, CONTROL.ratio) == faster
    for unknown in (None, Interval(1.0, None, None, 5)):
        assert not is_faster(ratio, wins, unknown)


@pytest.mark.parametrize(
    ("final", "control", "is_busy", "verdict", "said"),
    [
        (FASTER, CONTROL, False, "faster",
         "down_kc 64 takes 0.950 (0.940 to 0.960) of the time of the planner's own plan, more than noise (the own plan "
         "against itself: 1.000 (0.990 to 1.010))\n    tile_config=CpuTiling(down_kc=64)"),
        (FASTER, CONTROL._replace(busy=True), False, "busy", "nothing can be said, since others took too much of the"),
        (FASTER | {"final_busy": True}, CONTROL, False, "busy", "nothing can be said, since others took too much of"),
        (FASTER, CONTROL, True, "busy", "nothing can be said, since others took too much of the machine; the best, "),
        (FASTER | {"final_high": 1.0}, CONTROL, False, "noise",
         "nothing is faster than the planner's own plan by more than noise; the best, down_kc 64, took 0.950 (0.9"),
        ({}, CONTROL, False, "noise", "nothing is faster than the planner's own plan by more than noise; the best, "),
        (FASTER, None, False, "open", "the finals were not run; the best, down_kc 64, took 0.950 (0.940 to 0.9"),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_sweep_closes_with_what_was_found(final, control, is_busy, verdict, said):
    rows = [replace(row(0, ratio=0.9, down_kc=64), **final), row(1, ratio=None, status="refused")]
    controls = [control] if control else []
    (found,) = findings(rows, controls, is_busy)
    assert (found.t, found.quant, found.best, found.verdict) == (8, "b", rows[0], verdict)
    assert closing(found, "CpuTiling(down_kc=64)").startswith(f"T 8, quant b: {said}")
    if control:
        assert controls_in([control.as_dict()]) == [control]


def test_finals_count_before_what_was_timed_briefly():
    rows = [replace(row(0, ratio=0.9), **FASTER), row(1, ratio=0.5), row(2, 32, ratio=1.2)]
    assert [(found.t, found.best.number) for found in findings(rows, [CONTROL], False)] == [(8, 0), (32, 2)]


def test_controls_of_another_form_are_refused():
    for kept in ([{"t": 8}], [8], [{}]):
        with pytest.raises(ValueError, match="controls: expected t, quant, busy, n_pairs, ratio, low and high, got"):
            controls_in(kept)


def test_what_ran_is_counted_without_what_did_not():
    rows = [row(0), row(1, status="stopped", ratio=2.0), row(2, ratio=None, status="refused")]
    rows += [replace(row(3, status="same"), reason="0"), replace(row(4, ratio=None, status="wrong"), exact=False)]
    rows[2], rows[4] = replace(rows[2], reason="too long"), replace(rows[4], reason="q_norm: 1 of 8")
    assert counted(rows, 9, 7).splitlines() == [
        "3 plans ran, 2 of them with every bit of the reference; 1 were stopped early",
        "13 candidates did not run: 1 refused, 1 the same plan as another, 4 left, 7 left out by --where",
        "refused, 1 of 1: too long",
        "wrong: {} at 8 tokens: q_norm: 1 of 8",
    ]


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


LEFT_OUT = [row(1, ratio=None, status="refused"), row(2, ratio=None, status="wrong")]


def test_rows_that_were_timed_at_a_busy_time_are_timed_again(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", {}, lambda: FACTS)
    jobs = [Job(i, 8, "b", Candidate((), None)) for i in range(3)]
    journal.add(replace(row(0), busy=True))
    journal.add(row(1))
    assert {job.number for job in journal.left(jobs, 0, lambda row: row.busy)} == {0, 2}
    assert {job.number for job in journal.left(jobs, 0)} == {2}


def test_figures_of_a_busy_time_are_marked():
    rows = [replace(row(0, ratio=0.25), busy=True), replace(row(1, 32, ratio=0.5), final_busy=True, **FASTER)]
    assert "0.250*" in shown(rows)
    assert "0.950 (0.940 to 0.960)*" in shown(rows)
    assert shown([row(0)]).count("*") == 1  # in the legend
