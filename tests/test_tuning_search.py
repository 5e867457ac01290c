"""The search for a faster plan: its outcome, its journal, and what it takes for faster."""

import json
from dataclasses import replace

import pytest
from helpers.extras import needs_optuna

from mla_numba import MlaDims
from mla_numba.cli.tuned.found import Found, closing, found_from_dict, outcome_as_dict
from mla_numba.tuning.conditions import Conditions
from mla_numba.tuning.contest import Arena, Pairs
from mla_numba.tuning.search import Outcome, search
from tiling import CpuTiling

DIMS = MlaDims(64, 2, 32, 32, 16, 16)
OUTCOME = Outcome(
    8, CpuTiling(unroll_list=(8, 4), down_kc=16), Pairs((0.9,) * 9, (1.0,) * 9), 7, 1, 2.5, ("a", "b"),
    Pairs((1.0,) * 9, (1.0,) * 9),
)  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"contest": None, "control": None, "tiling": CpuTiling()}])
def test_an_outcome_comes_back_from_json(changes):
    outcome = replace(OUTCOME, **changes)
    assert Outcome.from_dict(json.loads(json.dumps(outcome.as_dict()))) == outcome
    for conditions in (None, Conditions(2, 2, 0.5, None, 0.25, spread=9.0, slower=("reading",))):
        found = Found(outcome, conditions)
        assert found_from_dict(json.loads(json.dumps(outcome_as_dict(found)))) == found


def test_tune_closes_with_what_was_found():
    noise = "the own plan against itself: 1.000 (1.000 to 1.000)"
    assert closing(Found(OUTCOME, None)) == (
        "T 8: found one that takes 0.900 (0.900 to 0.900) of the time of the planner's own plan, more than noise "
        f"({noise})\n    tile_config=CpuTiling(unroll_list=(8, 4), down_kc=16)"
    )
    busy = Found(OUTCOME, Conditions(2, 2, spread=9.0))
    assert closing(busy).startswith("T 8: nothing can be said, since others took too much of the machine")
    slower = replace(OUTCOME, tiling=CpuTiling())
    assert closing(Found(slower, None)) == (
        "T 8: nothing is faster than the planner's own plan by more than noise; the best of the search took 0.900 "
        f"(0.900 to 0.900) of its time ({noise})"
    )
    nothing = replace(slower, contest=None, control=None)
    assert closing(Found(nothing, None)) == "T 8: nothing was timed: every candidate was wrong or refused"


@needs_optuna
def test_a_search_goes_on_from_its_journal(tmp_path, monkeypatch):
    from mla_numba.tuning.trials import SearchJournal

    arena = Arena(DIMS, "b", (5,), n_threads=1)
    path = tmp_path / "search-0.journal"
    first = search(arena, 5, 1, 0.3, 0, store=SearchJournal(path, {"seed": 0}).trials(5))
    with path.open("a") as file:
        file.write('{"op_code": 4, "cut off')
    trials = SearchJournal(path, {"seed": 0}).trials(5)
    kept = trials.kept()
    assert (len(kept), trials.outcome) == (first.n_trials, None)
    timed = []
    monkeypatch.setattr("mla_numba.tuning.search.time_pairs", lambda *args: timed.append(args) or TIMED)
    again = search(arena, 5, 1, 0.001, 0, store=trials)  # its time is spent
    assert again.n_trials == first.n_trials
    assert len(timed) <= 5  # finalists, a contest and the control: no trial
    trials.finish(again)
    assert SearchJournal(path, {"seed": 0}).trials(5).outcome == again
    with pytest.raises(ValueError, match="expected the journal of this search, got that of another"):
        SearchJournal(path, {"seed": 1})
    journal = SearchJournal(path, {"seed": 0})
    optuna = pytest.importorskip("optuna")
    optuna.create_study(study_name="T 9", storage=journal._storage)  # interrupted before it was told what it is for
    assert SearchJournal(path, {"seed": 0}).trials(9).kept() == []
    journal.drop(5)
    assert journal.trials(5).kept() == []
    journal.remove()
    assert list(tmp_path.iterdir()) == []
    path.write_text("no journal\nat all\n")
    with pytest.raises(ValueError, match="expected the journal of a search, got"):
        SearchJournal(path, {})


TIMED = Pairs((1.0,) * 9, (1.0,) * 9), False


@needs_optuna
def test_a_faster_plan_is_chosen_only_beside_a_control(monkeypatch):
    """The contest's plan takes half the time; the own plan against itself is steady, or as unsteady."""
    arena = Arena(DIMS, "b", (5,), n_threads=1)
    for control, is_faster in (((1.0,) * 9, True), ((0.4, 1.0, 2.0) * 3, False)):

        def timed(arena, contender, effort, control=control):
            ours = control if effort.hopeless > 2 else (0.5,) * 9
            return Pairs(ours, (1.0,) * 9), False

        monkeypatch.setattr("mla_numba.tuning.search.time_pairs", timed)
        found = search(arena, 5, 1, 0.001, 0)
        assert (found.is_faster, found.ratio) == (is_faster, 0.5 if is_faster else 1.0)
        assert (found.interval.median, found.noise.median) == (0.5, 1.0)
