"""The commands sweep and tune, as processes of their own, at small dimensions."""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from statistics import median

import pytest
from helpers import SCRIPTS, python_environment
from helpers.cli import invoke, one_line_error, run_cli
from helpers.quiet import QUIET as QUIET_MACHINE

from mla_numba import MlaDims, MlaProlog, MlaWeights
from mla_numba._version import __version__
from mla_numba.base.extras import how_to_install
from mla_numba.call import tuned as store
from mla_numba.call.planning import this_machine
from mla_numba.cli import tune as cli_tune
from mla_numba.cli.options import SMALL_DIMS
from mla_numba.cli.tuned.found import Found, closing, found_from_dict, outcome_as_dict
from mla_numba.tuning.conditions import Conditions
from mla_numba.tuning.contest import Arena, Contender, Pairs
from mla_numba.tuning.search import Outcome, search
from tiling import PRESETS, CpuTiling, PassOptions, Rates

SMALL = ["--small", "--threads", "1", "--weight-sets", "1", "--pairs", "3"]
VERDICTS = ("faster", "noise", "busy")
GRID = ["--tokens", "4,9", "--set", "down_kc=64,128", "--set", "down_walk=1:3", "--where", "down_kc // down_walk >= 64"]


def test_sweep_leaves_a_table_files_and_pictures(tmp_path):
    out = tmp_path / "made"
    status, said, err = run_cli("sweep", *SMALL, *GRID, "--out", str(out))
    assert status == 0, err
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["t"], r["down_kc"], r["down_walk"]) for r in rows} == {
        (t, kc, walk) for t in ("4", "9") for kc, walk in (("64", "1"), ("128", "1"), ("128", "2"))
    }
    assert {r["exact"] for r in rows} == {"True"}
    read = json.loads((out / "sweep.json").read_text())
    assert read["machine"]["isa"] == this_machine().isa
    assert read["versions"]["mla_numba"] == __version__
    assert read["rates"]["read_gb_s"] > 0
    for entry in read["rows"]:
        assert entry["gop_s"] == pytest.approx((entry["flops"] + entry["int8_ops"]) / entry["median_ms"] / 1e6)
        share = entry["least_ms"] / entry["median_ms"]
        assert (entry["share"], entry["share_reason"]) == (pytest.approx(share), "") or share > 1
        assert entry["plan"].startswith("decode of ")
    assert "6 plans ran, 6 of them with every bit of the reference; " in said
    assert "6 candidates did not run: 6 left out by --where" in said
    assert [(found["t"], found["verdict"] in VERDICTS) for found in read["findings"]] == [(4, True), (9, True)]
    assert all(found["tile_config"].startswith("CpuTiling(down_kc=") for found in read["findings"])
    assert [(c["t"], c["n_pairs"] >= 15) for c in read["controls"]] == [(4, True), (9, True)]
    assert said.strip().splitlines()[-1].startswith(("T 9, quant b: ", "    tile_config=CpuTiling("))
    assert said.startswith("busy machine, do not trust these figures: ") == read["conditions"][-1]["busy"]
    assert "sweep: 6 of 6, " in err
    if find_spec("matplotlib"):
        assert {p.name for p in out.glob("*.png")} == {"heat_map.png", "roofline.png"}
    assert {(plan["t"], plan["quant"]) for plan in read["own_plans"]} == {(4, "b"), (9, "b")}
    assert all(plan["plan"].startswith(f"decode of {plan['t']} tokens") for plan in read["own_plans"])


def test_sweep_goes_on_after_an_interrupt(tmp_path):
    out = tmp_path / "made"
    command = ["sweep", "--small", "--threads", "1", "--weight-sets", "1", "--no-plot", "--out", str(out)]
    command += ["--tokens", "64,128", "--set", "down_kc=64:256:64", "--set", "qb_mc=16:64:16"]
    journal = out / "journal.jsonl"
    status, said, err = interrupted(command, lambda: journal.exists() and journal.read_bytes().count(b"\n") > 4)
    assert (status, said) == (130, ""), err
    (line,) = [line for line in err.splitlines() if line.startswith("interrupted: ")]
    assert line.endswith(f"are kept in {out}; give the same command again to continue")
    before = {line["number"]: line for line in map(json.loads, journal.read_text().splitlines()[1:])}
    with (out / "sweep.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(before)
    assert one_line_refusal([*command[:-1], "qb_mc=16"]).endswith("give --restart to start again, or another --out")
    status, said, err = run_quiet(*command)
    assert status == 0, err
    rows = {row["number"]: row for row in json.loads((out / "sweep.json").read_text())["rows"]}
    assert len(rows) == 2 * 4 * 4
    assert all(rows[n]["median_ms"] == row["median_ms"] for n, row in before.items() if row["status"] != "same")


QUIET = [sys.executable, str(SCRIPTS / "quiet_cli.py")]


def run_quiet(*command):
    """The command where others take nothing of the machine, whatever they do: status, output, errors."""
    done = subprocess.run(
        [*QUIET, *command], env=python_environment(), capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, done.stdout, done.stderr


def interrupted(command, when):
    """The same with Ctrl-C as soon as `when()` is true."""
    process = subprocess.Popen(
        [*QUIET, *command],
        env=python_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else ignored where the tests run under nohup
    )
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None and not when():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=600)
    return process.returncode, said, err


def one_line_refusal(command):
    status, _, err = run_cli(*command)
    assert status == 1
    return err.strip().splitlines()[-1]


def test_presets_make_one_table(tmp_path):
    result = invoke("sweep", *SMALL, "--presets", "--tokens", "8", "--no-plot", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert [row["settings"]["preset"] for row in rows] == list(PRESETS)
    assert [row["quant"] for row in rows] == ["b", "b", "b", "b", "none", "none"]
    assert all(row["exact"] for row in rows)


def test_fields_of_a_config_over_a_preset(tmp_path):
    arguments = ["--base", "decode_b4_s2", "--tokens", "8", "--no-plot", "--out", str(tmp_path)]
    result = invoke("sweep", *SMALL, "--set", "cube_qb_tile.k_l1=256,300,512", *arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["done", "refused", "same"]  # k is shorter than either block
    assert rows[1]["reason"] == "cube_qb_tile.k_l1: expected a multiple of k_l0 = 256, got 300"
    assert f"refused, 1 of 1: {rows[1]['reason']}" in result.output
    assert "1 plans ran, 1 of them with every bit" in result.output
    assert "2 candidates did not run: 1 refused, 1 the same plan as another" in result.output
    t4 = json.loads((tmp_path / "sweep.t4.json").read_text())
    assert [(r["invalidity"], r["correctness"], r["configuration"]) for r in t4["results"]] == [
        ("correct", 1, {"t": 8, "quant": "b", "cube_qb_tile.k_l1": 256}),
        ("constraints", 0, {"t": 8, "quant": "b", "cube_qb_tile.k_l1": 300}),
        ("correct", 1, {"t": 8, "quant": "b", "cube_qb_tile.k_l1": 512}),
    ]
    assert t4["schema_version"] == "1.0.0"
    assert t4["results"][0]["times"]["runtimes"] == rows[0]["times_ms"]
    assert {"name": "time", "value": rows[0]["median_ms"], "unit": "ms"} in t4["results"][0]["measurements"]
    assert len(rows[0]["times_ms"]) == len(rows[0]["own_times_ms"]) == rows[0]["n_pairs"]
    assert median(rows[0]["times_ms"]) == pytest.approx(rows[0]["median_ms"], rel=1e-4)


def test_a_sweep_of_refused_candidates_says_why_and_times_nothing(tmp_path):
    beyond = [f"refused, 3 of 6: down_grain: expected at most 2147483647, got {n}" for n in (2**62, 10**30)]
    for field, lines in (
        ("down_kc=0", ["refused, 3 of 3: down_kc: expected at least 1, got 0"]),
        (f"down_grain={2**62},{10**30}", beyond),
    ):
        result = invoke("sweep", *SMALL, "--set", field, "--out", str(tmp_path / "made"))
        assert result.exit_code == 1
        said = result.output.splitlines()
        assert said == ["Error: every candidate is refused, so nothing was timed", *lines]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "down_mc"], "expected FIELD=VALUES, got 'down_mc'"),
        (["--set", "down_mc=5:1"], "down_mc: values: expected a range that ends, got '5:1'"),
        (["--set", "nothing=5"], "nothing: expected a field of CpuTiling (unroll_list, n_threads, "),
        (
            ["--set", "down_kk=5"],
            "down_kk: expected a field of CpuTiling or of MlaTileConfig, got none; near it: down_kc",
        ),
        (["--set", "down_mc=1", "--where", "down_kc > 1"], "restriction: expected names of"),
        (["--set", "down_mc=1", "--where", "down_mc > 1"], "--where: expected to leave a candidate, got none of 3"),
        (["--presets", "--set", "down_mc=1"], "--presets: expected without --set and --base, got both"),
        (["--base", "default"], "--base: expected together with --set, got default alone"),
        (["--small", "--dims", "64,2,32,32,16,16"], "--small: expected without --dims, got both"),
        (["--tokens", "8,0"], "0 is not in the range"),
        (
            ["--set", "down_mc=1:1000000000000"],
            "down_mc: values: expected at most 100000, got more in '1:1000000000000'",
        ),
        (["--set", "down_mc=1", "--where", "9**9**9 > t"], "restriction: expected '9**9**9 > t' to have a value for"),
        (["--set", "down_mc=1:50000"], "expected at most 100000 combinations in all, got 50000 times 3"),
        (["--set", "down_mc=1:999", "--set", "down_kc=1:999"], "expected at most 100000 combinations, got 998001"),
        (["--seed", "4294967296"], "4294967296 is not in the range"),
        (["--pairs", "1001"], "1001 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_of_sweep_are_one_line(options, said, tmp_path):
    assert said in one_line_error("sweep", *options, "--out", str(tmp_path))


@pytest.mark.parametrize("name", ["sweep.csv", "sweep.json", "heat_map.png", "journal.jsonl"])
def test_what_a_sweep_cannot_write_is_refused_before_it(name, tmp_path):
    (tmp_path / name).mkdir()
    said = one_line_error("sweep", *SMALL, "--set", "down_mc=1", "--out", str(tmp_path))
    assert f"'--out': expected a file, got the folder '{tmp_path / name}'" in said
    (tmp_path / "file").write_text("")
    for out in ("file", "file/x"):
        said = one_line_error("sweep", *SMALL, "--set", "down_mc=1", "--out", str(tmp_path / out))
        assert "'--out': expected a folder, got " in said


def test_a_journal_of_another_shape_is_one_line(tmp_path):
    (tmp_path / "journal.jsonl").write_text("[" * 100_000)
    result = invoke("sweep", *SMALL, "--set", "down_mc=1", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "journal.jsonl, line 1: expected a JSON object, got one that is nested too deeply; give --restart" in (
        result.output
    )


needs_optuna = pytest.mark.skipif(not find_spec("optuna"), reason="the extra `tune` is not installed")


@pytest.fixture
def quiet_machine(monkeypatch):
    """Others take nothing of it."""
    for owner, name, value in QUIET_MACHINE:
        monkeypatch.setattr(owner, name, value)


@pytest.fixture
def busy_machine(monkeypatch):
    """Others take a core."""
    monkeypatch.setattr(Conditions, "reasons", property(lambda self: ["others took 0.97 of 2 cores"]))


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


def vars_of(dims):
    return [getattr(dims, name) for name in dims.__dataclass_fields__]


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


@pytest.mark.usefixtures("busy_machine")
def test_a_sweep_of_a_busy_machine_says_so_first(tmp_path):
    grid = ["--tokens", "4", "--set", "down_kc=64", "--no-plot"]
    result = invoke("sweep", *SMALL, *grid, "--out", str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "busy machine, do not trust these figures: others took 0.97 of 2 cores"
    assert result.stdout.strip().splitlines()[-1].startswith("T 4, quant b: nothing can be said, since others took")
    (found,) = json.loads((tmp_path / "sweep.json").read_text())["findings"]
    assert found["verdict"] == "busy"


def n_lines(folder, pattern):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


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


@pytest.mark.parametrize("when", ["folder", "final"])
def test_a_sweep_is_interrupted_at_any_moment(tmp_path, when):
    out = tmp_path / "made"
    command = ["sweep", *SMALL, "--tokens", "64", "--set", "down_kc=64:128:32", "--no-plot", "--out", str(out)]
    moments = {
        "folder": out.exists,
        "final": lambda: n_lines(out, "journal.jsonl") > 3,  # every candidate is timed
    }
    status, said, err = interrupted(command, moments[when])
    (line,) = [line for line in err.splitlines() if line.startswith("interrupted: ")]
    assert (status, said) == (130, ""), err
    assert line == (
        "interrupted: nothing was timed" if when == "folder" else "interrupted: all candidates were timed and are kept "
        f"in {out}; give the same command again to continue"
    )  # fmt: skip


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


def test_tune_refuses_two_of_one_bucket():
    said = "--tokens: expected numbers with a power of two between them, got [5, 8]"
    assert said in one_line_error("tune", "--tokens", "5,8")
    assert "--tuned: expected without --preset, got default" in one_line_error(
        "plan", "--tokens", "8", "--tuned", "--preset", "default"
    )


DIMS = MlaDims(64, 2, 32, 32, 16, 16)


def test_auto_takes_what_is_kept_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    weights = MlaWeights.random(DIMS)
    own = MlaProlog(weights, n_threads=1)
    before = MlaProlog(weights, n_threads=1, tile_config="auto")
    assert before.plan(8).tile_plans == own.plan(8).tile_plans
    assert (before.plan(8).origin, before.plan(8).reasons[0][1]) == (
        "planner", "nothing is stored for so many tokens, so the planner chose (mla-numba tune searches)"
    )  # fmt: skip
    found = store.Tuned(CpuTiling(unroll_list=(3,), down_kc=16), 8, 0.9, 10, 1.0, "2026-01-02")
    store.save_tuned(this_machine(), __version__, DIMS, "b", 1, found)
    rates = Rates(1e9, 1e9, 1e9, None)
    store.save_rates(this_machine(), __version__, 1, rates)
    tuned = MlaProlog(weights, n_threads=1, tile_config="auto")
    plan = tuned.plan(7)
    assert (plan.origin, plan.tiling, plan.tiles) == ("tuned", found.tiling, ((0, 3), (3, 3), (6, 1)))
    assert plan.tile_plan(3).down.qa.kc == 16
    assert plan.reasons[0] == ("tuned", str(found))
    assert plan.costs == own.plan(7).costs.with_rates(rates, 1)
    assert tuned.plan(9).origin == "planner"  # another bucket
    assert tuned.plan(0).origin == "planner"


def test_what_tile_config_may_be():
    weights = MlaWeights.random(DIMS).pack(1)
    with pytest.raises(ValueError, match=r"^tile_config: expected "):
        MlaProlog(weights, tile_config="fast")
    with pytest.raises(TypeError, match="tile_config: expected MlaTileConfig, CpuTiling, 'auto' or None, got int"):
        MlaProlog(weights, tile_config=8)
    for config in ("auto", CpuTiling()):
        with pytest.raises(ValueError, match="options: expected None with a CpuTiling or 'auto', got PassOptions"):
            MlaProlog(weights, tile_config=config, options=PassOptions())
