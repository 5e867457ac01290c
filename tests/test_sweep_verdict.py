"""What a sweep finds: limits, finals, what is faster by more than noise, and its last lines."""

from dataclasses import replace

import pytest
from helpers.sweep_rows import CONTROL, FASTER, RATES, row

from mla_numba.cli.study.closing import closing, counted
from mla_numba.tuning.interval import Interval
from mla_numba.tuning.results import best_rows
from mla_numba.tuning.study import Row, finals, reasons_of, with_limits
from mla_numba.tuning.verdict import controls_in, findings, is_faster


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
        "3 plans ran, 2 with every bit of the reference; 1 stopped early",
        "13 candidates did not run: 1 refused, 1 the same plan as another, 4 left, 7 left out by --where",
        "refused, 1 of 1: too long",
        "wrong: {} at 8 tokens: q_norm: 1 of 8",
    ]


def test_reasons_against_candidates_are_counted():
    assert reasons_of([]) == []
    assert reasons_of(["a", "b", "b"]) == ["refused, 2 of 3: b", "refused, 1 of 3: a"]
    assert reasons_of([*"aab", *"cde"], 2) == ["refused, 2 of 6: a", "refused, 1 of 6: b", "and 3 reasons more"]
