"""The command tune, in this process and in ones of its own, at small dimensions."""

import json

import pytest
from helpers import vars_of
from helpers.cli import interrupted, invoke, n_lines, one_line_error, run_cli, run_quiet
from helpers.extras import needs_optuna

from mla_numba._version import __version__
from mla_numba.base.extras import how_to_install
from mla_numba.call import tuned as store
from mla_numba.call.planning import this_machine
from mla_numba.cli import tune as cli_tune
from mla_numba.cli.options import SMALL_DIMS
from mla_numba.tuning.contest import Arena, Contender
from tiling import CpuTiling, Rates


def test_tune_without_optuna_says_so_at_once(monkeypatch):
    monkeypatch.setattr(cli_tune, "find_spec", lambda name: None)
    result = invoke("tune", "--small", "--dry-run")
    assert (result.exit_code, how_to_install("tune", "optuna") in result.output) == (1, True)


@needs_optuna
def test_tune_looks_for_its_folder_before_the_search(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr(cli_tune, "Probes", lambda threads: pytest.fail("measured"))
    result = invoke("tune", "--small", "--tokens", "8", "--budget", "0.1")
    assert result.exit_code == 1
    assert "Error: expected a folder to keep results in, got " in result.output


@pytest.mark.parametrize("budget", ["nan", "inf", "1e9"])
def test_a_budget_is_a_number_of_seconds(budget):
    assert "'--budget'" in one_line_error("tune", "--budget", budget)


@needs_optuna
def test_a_search_whose_candidates_are_all_wrong_or_refused_says_why(tmp_path, monkeypatch):
    """The second trial's plan is refused, as by a planner that takes no such tiling; the first one's bits are wrong."""
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    taken = []

    class Refusing(Arena):
        def contender(self, t, config=None, options=None):
            found = super().contender(t, config, options)
            if config is None:
                return found
            taken.append(config)
            return found if len(taken) == 1 else Refused(t, found.prologs)

        def mismatches(self, contender):
            return ["query_rope: 1 of 8 elements differ"]

    class Refused(Contender):
        @property
        def plan(self):
            raise ValueError("down_kc: expected another")

    monkeypatch.setattr(cli_tune, "Arena", Refusing)
    arguments = ["--small", "--threads", "1", "--weight-sets", "1", "--tokens", "8", "--budget", "0.001"]
    result = invoke("tune", *arguments)
    assert result.exit_code == 1, result.output
    assert "nothing was timed: every candidate was wrong or refused" in " ".join(result.output.split())
    assert "T 8: wrong or refused, 1 of 2: query_rope: 1 of 8 elements differ" in result.output
    assert "T 8: wrong or refused, 1 of 2: down_kc: expected another" in result.output
    assert "nothing was kept; " in result.output
    assert not list(tmp_path.iterdir())


@needs_optuna
@pytest.mark.usefixtures("quiet_machine")
def test_what_was_found_is_shown_where_it_cannot_be_kept(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cli_tune, "save_rates", full)
    result = invoke("tune", "--small", "--threads", "1", "--weight-sets", "1", "--tokens", "8", "--budget", "0.01")
    assert result.exit_code == 1
    assert "medians of a contest after the search" in result.output
    assert result.output.endswith("Error: expected a folder to keep results in, got No space left on device\n")


@needs_optuna
def test_tune_keeps_what_auto_takes(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    arguments = ["--small", "--threads", "1", "--weight-sets", "1", "--tokens", "8", "--budget", "0.5"]
    result = json.loads(run_quiet("tune", *arguments, "--json", "--dry-run")[1])
    assert (result["folder"], list(tmp_path.iterdir())) == (None, [])
    (found,) = result["outcomes"]
    assert found["contest_low"] < found["contest_ratio"] < found["contest_high"]
    assert found["control_low"] < found["control_high"]
    assert found["conditions"]["n_threads"] == 1
    status, said, err = run_quiet("tune", *arguments)
    assert status == 0, err
    assert said.strip().splitlines()[-1].startswith(("T 8: nothing is faster", "    tile_config=CpuTiling("))
    assert not list(tmp_path.glob("search-*"))  # it was finished
    assert f"kept in {tmp_path}" in said
    found = store.load_tuned(this_machine(), __version__, SMALL_DIMS, "b", 1, 8)
    assert found.n_trials >= 2
    assert store.load_rates(this_machine(), __version__, 1).ops_s > 0
    dims = ",".join(str(n) for n in vars_of(SMALL_DIMS))
    plan = invoke("plan", "--dims", dims, "--threads", "1", "--tokens", "5", "--tuned", "--explain")
    assert f"tuned: {found}" in plan.output
    status, said, err = run_cli("run", "--dims", dims, "--threads", "1", "--tokens", "5", "--tuned")
    assert status == 0, err
    assert "exact: every bit" in said


TUNE = ["tune", "--small", "--threads", "1", "--weight-sets", "1", "--tokens", "4,64"]


@needs_optuna
@pytest.mark.usefixtures("busy_machine")
def test_what_a_busy_machine_measured_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    result = invoke(*TUNE, "--budget", "0.5")
    assert result.exit_code == 1
    first = result.stdout.splitlines()[0]
    assert first == (
        "busy machine, do not trust these figures: others took 0.97 of 2 cores; nothing is kept for T 4, 64"
    )
    assert result.stderr.startswith("busy machine, do not trust these figures: ")  # before the search too
    assert "nothing was kept; " in result.stdout
    assert "T 64: nothing can be said, since others took too much of the machine" in result.stdout
    assert list(tmp_path.iterdir()) == []


@needs_optuna
def test_tune_goes_on_after_interrupts(tmp_path, monkeypatch):
    """At first in the middle of the search for T 4, then in that for T 64, which is not begun anew for T 4."""
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    command = [*TUNE, "--budget", "4"]
    status, said, err = interrupted(command, lambda: n_lines(tmp_path, "search-*.journal") > 6)
    assert (status, said) == (130, ""), err
    assert "interrupted: no search was finished; give the same command again to go on" in err.splitlines()
    assert list(tmp_path.glob("*.json")) == []
    before = n_lines(tmp_path, "search-*.journal")
    status, said, err = interrupted(command, lambda: list(tmp_path.glob("tuned-*.json")))
    assert (status, said) == (130, ""), err
    assert "interrupted: what was found for T 4 is kept; give the same command again to go on" in err.splitlines()
    assert n_lines(tmp_path, "search-*.journal") > before
    first = store.load_tuned(this_machine(), __version__, SMALL_DIMS, "b", 1, 4)
    assert first.n_trials >= 4
    status, said, err = run_quiet(*command, "--json")
    assert status == 0, err
    found = json.loads(said)["outcomes"]
    assert [(each["tokens"], each["conditions"] is None) for each in found] == [(4, True), (64, False)]
    assert found[0]["trials"] == first.n_trials
    assert store.load_tuned(this_machine(), __version__, SMALL_DIMS, "b", 1, 4) == first
    assert store.load_tuned(this_machine(), __version__, SMALL_DIMS, "b", 1, 64).n_trials == found[1]["trials"]
    assert not list(tmp_path.glob("search-*"))


def keep(t, quant="b", version=__version__):
    tuned = store.Tuned(CpuTiling(down_kc=16), t, 0.9, 10, 1.0, "2026-01-02")
    return store.save_tuned(this_machine(), version, SMALL_DIMS, quant, 1, tuned)


def test_what_is_kept_is_listed_and_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    assert invoke("tune", "--list").output == (
        f"0 results of searches, 0 of measured rates, 0 interrupted searches in {tmp_path} (MLA_NUMBA_TUNED)\n"
    )
    for t, quant in ((4, "b"), (64, "b"), (64, "none")):
        keep(t, quant)
    keep(8, version="0")
    store.save_rates(this_machine(), __version__, 1, Rates(1e9, 1e9, 1e9, None))
    for name in ("search-0.journal", "search-0.journal.lock", "other.json", "tuned-0.json"):
        (tmp_path / name).write_text("{}")
    said = invoke("tune", "--list").output
    assert said.endswith(f"4 results of searches, 1 of measured rates, 1 interrupted searches in {tmp_path} "
                         "(MLA_NUMBA_TUNED)\n")  # fmt: skip
    assert (said.count(" yes"), said.count("no: another machine or version")) == (4, 1)
    read = json.loads(invoke("tune", "--list", "--json", "--tokens", "33").output)["entries"]
    assert [(e["key"]["bucket"], e["tuned"]["tiling"], e["used_here"]) for e in read] == [
        (64, {"down_kc": 16}, True)
    ] * 2
    said = invoke("tune", "--forget", "--tokens", "64", "--quant", "none").output
    assert said.startswith("1 results of searches, 0 of measured rates, 0 interrupted searches removed from ")
    assert store.load_tuned(this_machine(), __version__, SMALL_DIMS, "none", 1, 64) is None
    assert store.load_tuned(this_machine(), __version__, SMALL_DIMS, "b", 1, 64) is not None
    read = json.loads(invoke("tune", "--forget", "--json").output)["removed"]
    assert len(read) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"other.json", "tuned-0.json"}  # which are not ours
    assert "--list: expected without --forget, got both" in one_line_error("tune", "--list", "--forget")


def test_listing_needs_no_optuna(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cli_tune, "find_spec", lambda name: None)
    assert invoke("tune", "--list").exit_code == 0


def test_tune_refuses_two_of_one_bucket():
    said = "--tokens: expected numbers with a power of two between them, got [5, 8]"
    assert said in one_line_error("tune", "--tokens", "5,8")
    assert "--tuned: expected without --preset, got default" in one_line_error(
        "plan", "--tokens", "8", "--tuned", "--preset", "default"
    )
