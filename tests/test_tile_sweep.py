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
from mla_numba.cli.study.plots import draw_all, heat_axes
from mla_numba.cli.study.tables import (
    best_rows,
    show_rows,
    write_csv,
    write_json,
)
from mla_numba.tuning.contest import Arena, ExactnessError, Pairs
from mla_numba.tuning.journal import Journal
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
from tiling import Rates

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
    with pytest.raises(ValueError, match=r"mc: expected one of .*, got no field"):
        Grid({"mc": [1]}, CpuTiling())
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
    first, same, refused = with_limits(rows, RATES)
    computing = (4e6 * 8 + 1e6 * 8) / 1e10 * 1e3
    assert first.least_ms == pytest.approx(computing) == pytest.approx(4.0)
    assert first.share == pytest.approx(4.0)
    assert (same.number, same.settings, same.status, same.ratio) == (1, {"down_mc": 8}, "same", 0.5)
    assert refused == rows[2]
    assert with_limits(rows, replace(RATES, bandwidth_bytes_s=1e9))[0].least_ms == pytest.approx(10.0)  # moving
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
    write_json(tmp_path / "x.json", {"machine": {"isa": "x"}}, {"seed": 1}, ROWS)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read["machine"] == {"isa": "x"}
    assert read["sweep"] == {"seed": 1}
    assert Row(**read["rows"][3]) == ROWS[3]


def shown(rows):
    console = Console(width=200)
    with console.capture() as text:
        console.print(show_rows(rows))
    return " ".join(text.get().split())


def test_a_share_above_the_limit_is_marked_and_explained():
    rows = with_limits({0: row(0, ratio=0.5, down_mc=4)}, RATES)  # four times as fast as the rates allow
    assert (share_text(1.0), share_text(1.004), share_text(0.954, 1)) == ("100%", "100% (!)", "95.4%")
    assert "400% (!)" in shown(rows)
    assert "down_mc [/x]" in shown([replace(rows[0], settings={"down_mc": "[/x]"})])
    assert "(!) more than 100 %: faster than the rates" in shown(rows)
    assert "(!)" not in shown(with_limits({0: row(0, ratio=5.0)}, RATES))
    assert beyond_limit([None, 1.0]) == "" != beyond_limit([None, 1.01])


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_pictures_have_labels_and_a_thousand_pixels(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    shown = []
    save = Figure.savefig

    def savefig(self, file, **settings):
        save(self, file, **settings)
        shown.append(texts(self))

    monkeypatch.setattr(Figure, "savefig", savefig)
    rates = {"read_gb_s": 10.0, "fma_gflop_s": 10.0, "dot_gop_s": 10.0}
    rows = with_limits({r.number: r for r in ROWS}, RATES)
    paths = draw_all(tmp_path, rows, rates, "made up, 2 threads")
    assert [path.name for path in paths] == ["heat_map.png", "unroll_lists.png", "roofline.png"]
    assert all(imread(path).shape[1] == 1000 for path in paths)
    heat, lists, roof = shown
    for wanted in ("down_kc, elements of k", "down_walk, panels", "T = 8 tokens", "T = 32 tokens", "0.90", "1.50"):
        assert wanted in heat
    assert "time / time of the planner's own plan" in heat
    for wanted in ("T, tokens a call", "time of a call, ms", "4, 2", "the planner's own tiles"):
        assert wanted in lists
    for wanted in ("operations by byte of weights, inputs and outputs, op/byte", "operations by time, Gop/s"):
        assert wanted in roof
    assert any(text.startswith("T = 8: best ") and "(!) of the limit" in text for text in roof)
    assert any(text.startswith("(!) more than 100 %") for text in roof)
    assert all("made up, 2 threads" in "\n".join(of_picture) for of_picture in (heat, lists, roof))


def test_heat_axes_are_the_two_longest():
    assert heat_axes(ROWS) == ("down_kc", "down_walk")
    assert heat_axes([row(0, down_kc=1), row(1, down_kc=2)]) is None
    assert heat_axes([]) is None
