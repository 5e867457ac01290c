"""The contest of a plan with the planner's own: pairs of calls in turns, every bit compared."""

import numpy as np
import pytest

from mla_numba import CpuTiling, MlaDims, MlaTileConfig
from mla_numba.tuning.contest import Arena, ExactnessError, Pairs
from mla_numba.tuning.space import Candidate
from mla_numba.tuning.study import Effort, Job, run_job

DIMS = MlaDims(64, 2, 32, 32, 16, 16)


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
