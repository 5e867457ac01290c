"""What a sweep varies: values, grids, restrictions; and the line that makes a candidate again."""

import re

import pytest

from mla_numba import CpuTiling, MlaTileConfig
from mla_numba.tuning.line import line_of
from mla_numba.tuning.space import Candidate, Grid, check_restriction, holds, parse_values
from tiling import preset


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
