"""The command sweep, in this process and in ones of its own, at small dimensions."""

import csv
import json
from importlib.util import find_spec
from statistics import median

import pytest
from helpers.cli import interrupted, invoke, n_lines, one_line_error, run_cli, run_quiet

from mla_numba._version import __version__
from mla_numba.call.planning import this_machine
from tiling import PRESETS

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
    assert "6 plans ran, 6 with every bit of the reference" in said
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


def one_line_refusal(command):
    status, _, err = run_cli(*command)
    assert status == 1
    return err.strip().splitlines()[-1]


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
    assert "1 plan ran, 1 with every bit of the reference\n" in result.output
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
        (["--tokens", "8,-1"], "-1 is not in the range"),
        (["--tokens", "8,x"], "expected integers with commas, got '8,x'"),
        (["--tokens", "8,"], "expected integers with commas, got '8,'"),
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


@pytest.mark.usefixtures("busy_machine")
def test_a_sweep_of_a_busy_machine_says_so_first(tmp_path):
    grid = ["--tokens", "4", "--set", "down_kc=64", "--no-plot"]
    result = invoke("sweep", *SMALL, *grid, "--out", str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "busy machine, do not trust these figures: others took 0.97 of 2 cores"
    assert result.stdout.strip().splitlines()[-1].startswith("T 4, quant b: nothing can be said, since others took")
    (found,) = json.loads((tmp_path / "sweep.json").read_text())["findings"]
    assert found["verdict"] == "busy"
