import errno
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.cli import invoke, one_line_error, run_cli
from rich.console import Console

from mla_numba import MlaDims, __version__
from mla_numba.base.threads import usual_threads
from mla_numba.call.planning import MICRO_TILES, this_machine
from mla_numba.cli import run as cli_run
from mla_numba.cli import warmup as cli_warmup
from mla_numba.cli.main import main
from mla_numba.cli.sweep_times import SweepTimes, sweep_table
from mla_numba.kernels import ISA, cache_folder, max_threads
from mla_numba.oracle import bits as verify
from mla_numba.tuning import rates as measure
from mla_numba.tuning.conditions import Load, n_cpus
from tiling import PRESETS, PrologPlan, pass_options, plan_prolog, preset

DIMS = "64,2,32,32,16,16"
SMALL = ["--dims", DIMS, "--tokens", "5", "--repeats", "3", "--threads", "1"]


def test_run_says_what_was_run_how_fast_and_that_it_is_exact():
    status, out, err = run_cli("run", *SMALL)
    assert status == 0, err
    lines = [line for line in out.splitlines() if not line.startswith("busy machine, ")]
    assert lines[0] == str(this_machine())
    assert lines[1].startswith("decode of 5 tokens, quant b, 1 threads")
    rows = [line.split()[0] for line in lines if line.split() and line.split()[0] in ("down", "rows", "heads", "total")]
    assert rows == ["down", "rows", "heads", "total"]
    assert lines[-1] == "exact: every bit of 7 outputs and caches equals the reference"
    for step in ("making weights", "packing weights", "first call", "timing 3 calls", "computing the reference"):
        assert step in err
    assert "Warning" not in err


def test_run_json_is_alone_on_standard_output():
    status, out, err = run_cli("run", *SMALL, "--quant", "none", "--cache-mode", "PA_NZ", "--json")
    assert status == 0, err
    result = json.loads(out)
    assert result["exact"] is True
    assert result["mismatches"] == []
    assert result["version"] == __version__
    assert result["machine"]["isa"] == this_machine().isa
    assert list(result["dims"].values()) == [64, 2, 32, 32, 16, 16]
    options = result["options"]
    assert (options["tokens"], options["quant"], options["cache_mode"], options["seed"]) == (5, "none", "PA_NZ", 0)
    assert result["plan"]["quant"] == "none"
    assert PrologPlan.from_json(json.dumps(result["plan"])).t == 5
    assert list(result["sweeps"]) == ["down", "rows", "heads", "total"]
    for sweep in result["sweeps"].values():
        assert len(sweep["times_s"]) == 3
        assert 0 < sweep["min_s"] <= sweep["median_s"]
        assert sweep["gb_per_s"] == pytest.approx(sweep["bytes"] / sweep["median_s"] / 1e9)
    parts = sum(sum(result["sweeps"][name]["times_s"]) for name in ("down", "rows", "heads"))
    assert parts <= sum(result["sweeps"]["total"]["times_s"])
    assert "computing the reference" in result["seconds"]


@pytest.mark.parametrize(
    "options",
    [
        ["--quant", "ab", "--smooth", "--phase", "prefill"],
        ["--quant", "a"],
        ["--preset", "decode_b64_s2", "--npuarch", "910"],
        ["--seed", "7", "--block-size", "1"],
        ["--numerics", "cann"],
    ],
    ids=" ".join,
)
def test_every_mode_is_exact(options):
    result = invoke("run", *SMALL, *options)
    assert result.exit_code == 0, result.output
    assert "exact: every bit of" in result.output


def test_run_without_a_check_says_so(monkeypatch):
    monkeypatch.setattr(verify, "reference_run", None)
    result = invoke("run", *SMALL, "--no-check")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "not checked against the reference"


def test_json_without_a_check_holds_null():
    status, out, _ = run_cli("run", *SMALL, "--no-check", "--json")
    assert status == 0
    assert json.loads(out)["exact"] is None


def wrong_reference(*args, **keywords):
    output = REFERENCE(*args, **keywords)
    output.query_rope.view("u2")[2, 1, 3] ^= 1
    output.k_scale_cache[0, 0, 0, 0] = 5
    return output


REFERENCE = verify.reference_run


def test_one_bit_that_differs_is_reported_and_fails(monkeypatch):
    monkeypatch.setattr(verify, "reference_run", wrong_reference)
    result = invoke("run", *SMALL)
    assert result.exit_code == 1
    assert "query_rope: 1 of 160 elements differ, first at [2, 1, 3]: expected " in result.output
    assert "k_scale_cache: 1 of " in result.output
    assert "exact" not in result.output


def test_json_holds_the_mismatches(monkeypatch):
    monkeypatch.setattr(verify, "reference_run", wrong_reference)
    result = invoke("run", *SMALL, "--json")
    assert result.exit_code == 1
    found = json.loads(result.output[result.output.index("{") : result.output.rindex("}") + 1])
    assert found["exact"] is False
    assert [m["name"] for m in found["mismatches"]] == ["query_rope", "k_scale_cache"]
    assert found["mismatches"][0]["first"] == [2, 1, 3]


def test_what_the_library_logs_is_shown_as_progress_and_nowhere_else(monkeypatch, caplog):
    def random(*args):
        logging.getLogger("mla_numba").warning("compiling kernels for this CPU (once)")
        return RANDOM(*args)

    monkeypatch.setattr(cli_run.MlaWeights, "random", random)
    result = invoke("run", *SMALL)
    assert result.exit_code == 0, result.output
    assert result.output.count("compiling kernels") == 1
    assert caplog.records == []
    assert logging.getLogger("mla_numba").propagate


RANDOM = cli_run.MlaWeights.random


@pytest.mark.parametrize(("cores", "busy"), [(n_cpus() + 1.0, True), (0.0, False), (None, False)])
def test_run_says_on_its_first_line_that_others_took_the_machine(monkeypatch, cores, busy):
    meter = SimpleNamespace(since_start=lambda: Load(1.0, cores))
    monkeypatch.setattr(cli_run, "Meter", lambda: meter)
    first = invoke("run", *SMALL).stdout.splitlines()[0]
    took = f"others took {n_cpus() + 1:.2f} of {n_cpus()} cores during the measurement"
    said = f"busy machine, do not trust these figures: {took}"
    assert first == (said if busy else str(this_machine()))
    found = json.loads(invoke("run", *SMALL, "--json").stdout)["conditions"]
    assert (found["busy"], found["during"], found["n_threads"]) == (busy, cores, 1)


def test_run_writes_a_trace_of_its_calls(tmp_path):
    path = tmp_path / "trace.json"
    result = invoke("run", *SMALL, "--repeats", "2", "--trace", str(path))
    assert result.exit_code == 0, result.output
    events = json.loads(path.read_text())["traceEvents"]
    kinds = [event["cat"] for event in events if event["ph"] == "X" and event["cat"] != "product"]
    assert kinds == ["call", "tile", "pack", "down", "query", "key", "heads"] * 2
    lines = [line.split() for line in result.output.splitlines()]
    assert ["phase", "thread", "0"] in lines
    waiting = next(line for line in lines if line[:1] == ["waiting"])
    assert len(waiting) == 2
    assert float(waiting[1]) >= 0
    found = json.loads(run_cli("run", *SMALL, "--json", "--trace", str(path))[1])
    assert list(found["last_call_busy_s"]) == ["pack", "down", "query", "key", "heads"]
    assert all(len(seconds) == 1 for seconds in found["last_call_busy_s"].values())
    products = found["last_call_products_s"]
    assert list(products)[1:] == ["Matmul_kva", "QuantMatmul_qb, Dequant_qb", "Rope_qRope", "Matmul_qNope_wUk"]
    assert sum(products["Rope_qRope"]) <= sum(found["last_call_busy_s"]["heads"])
    assert "thread 0" not in invoke("run", *SMALL).output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/x", "expected a file in a folder that exists, got "),
        ("folder", "expected a file, got the folder "),
        ("socket", "expected a regular file or a new one, got "),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(name, said, tmp_path):
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    for command, option in ((["run", *SMALL], "--trace"), (["pack", str(tmp_path), "--layer", "0"], "--out")):
        assert f"'{option}': {said}" in one_line_error(*command, option, str(tmp_path / name))


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/x"):
        assert "'DIR': expected a folder, got " in one_line_error("dump", str(tmp_path / name))


def test_dims_of_a_config_file(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(MlaDims(64, 2, 32, 32, 16, 16)) | {"vocab_size": 10}))
    of_file, of_numbers = (invoke("plan", "--tokens", "3", "--dims", dims) for dims in (str(config), DIMS))
    assert of_file.exit_code == 0
    assert of_file.output == of_numbers.output
    config.write_text("{}")
    assert "config.hidden_size: expected an int, got none" in one_line_error("run", "--dims", str(config))
    config.write_text("{")
    assert "'--dims'" in one_line_error("run", "--dims", str(config))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "0"], "Invalid value for '--tokens': 0 is not in the range 1<=x<=1048576."),
        (["--tokens", "many"], "Invalid value for '--tokens': 'many' is not a valid integer range."),
        (["--threads", "4096"], f"expected at most Numba's {max_threads()} (NUMBA_NUM_THREADS), got 4096"),
        (["--repeats", "0"], "Invalid value for '--repeats': 0 is not in the range x>=1."),
        (["--quant", "c"], "'c' is not one of 'none', 'a', 'b', 'ab'."),
        (["--phase", "train"], "'train' is not one of 'decode', 'prefill'."),
        (["--preset", "fastest"], "Invalid value for '--preset': 'fastest' is not one of 'default', "),
        (["--npuarch", "950"], "--npuarch: expected together with --preset, got 950 alone"),
        (["--quant", "a", "--smooth"], "--smooth: expected with --quant b or ab, got --quant a"),
        (
            ["--dims", "1,2,3"],
            "expected six integers with commas or the path of a config.json or its folder, got '1,2,3'",
        ),
        (["--dims", "64,2,32,32,16,15"], "qk_rope_head_dim: expected an even number, got 15"),
        (["--dims", "64,2,32,32,16,-2"], "qk_rope_head_dim: expected at least 1, got -2"),
        (["--dims", "63,2,32,32,16,16"], "Invalid value for '--dims': w_dq: expected an even hidden_size"),
        (
            ["--dims", "64,2,32,8,16,16", "--cache-mode", "PA_NZ"],
            "'--cache-mode': kv_cache: expected rows",
        ),
        (["--no-such-option"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line(options, said):
    assert said.lower() in one_line_error("run", *options).lower()


def test_too_little_memory_is_one_line(monkeypatch):
    def random(*args):
        raise MemoryError("Unable to allocate 9. TiB")

    monkeypatch.setattr(cli_run.MlaWeights, "random", random)
    result = invoke("run", *SMALL)
    assert result.exit_code == 1
    assert "Error: not enough memory: Unable to allocate 9. TiB" in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--tokens", "1", "--json"]], ids=lambda value: value[0])
def test_a_full_disk_behind_standard_output_is_one_line(arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mla_numba", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, f"Error: cannot write: {os.strerror(errno.ENOSPC)}\n")


def test_plan_is_the_planners():
    result = invoke("plan", "--tokens", "100", "--threads", "64")
    dims = MlaDims.deepseek_v32()
    assert result.output == f"{plan_prolog(dims, 100, None, this_machine(), micro=MICRO_TILES, n_threads=64)}\n"


def test_plan_json_is_the_plan():
    status, out, err = run_cli("plan", "--tokens", "8", "--quant", "ab", "--json")
    assert (status, err) == (0, "")
    plan = PrologPlan.from_json(out)
    assert (plan.t, plan.quant, plan.n_threads) == (8, "ab", usual_threads(max_threads()))


@pytest.mark.parametrize("name", PRESETS)
def test_plan_of_a_preset_is_explained(name):
    result = invoke("plan", "--tokens", "100", "--preset", name, "--npuarch", "910", "--phase", "prefill", "--explain")
    config, options = preset(name, "910"), pass_options("prefill", 100, "910")
    dims, machine = MlaDims.deepseek_v32(), this_machine()
    n_threads = usual_threads(max_threads())
    want = plan_prolog(
        dims, 100, config, machine, micro=MICRO_TILES, phase="prefill", n_threads=n_threads, options=options
    )
    assert result.output == f"{want.explain()}\n"
    assert "Settings that act:" in result.output


def test_plan_refuses_what_it_cannot_plan():
    assert "--explain, --json: expected one of them" in one_line_error("plan", "--tokens", "8", "--explain", "--json")
    assert "Missing option '--tokens'" in one_line_error("plan")
    assert "Invalid value for '--dims'" in one_line_error("plan", "--tokens", "8", "--dims", "63,2,32,32,16,16")


def test_info_names_versions_machine_and_cache():
    result = invoke("info")
    assert result.exit_code == 0
    for text in (f"mla_numba {__version__}", str(this_machine()), str(MICRO_TILES["int8"]), str(cache_folder())):
        assert text in result.output


def test_info_json(tmp_path):
    env = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "1"}
    status, out, err = run_cli("info", "--json", env=env)
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["versions"]["mla_numba"] == __version__
    assert {"python", "numba", "llvmlite", "numpy"} < set(facts["versions"])
    assert facts["machine"]["n_usable_cores"] >= 1
    assert (facts["isa"]["name"], facts["isa"]["mr"]) == (ISA.name, ISA.mr)
    assert set(facts["register_tiles"]) == {"bf16", "int8"}
    assert (facts["threading_layer"], facts["n_threads"]) == ("workqueue", 1)
    assert facts["kernel_cache"]["folder"].startswith(str(tmp_path))
    assert facts["kernel_cache"]["bytes"] == 0


@pytest.fixture
def quick_measurement(monkeypatch):
    monkeypatch.setattr(measure, "_MIN_BUFFER_BYTES", 2**20)
    monkeypatch.setattr(measure, "_MAX_BUFFER_BYTES", 2**20)


@pytest.mark.usefixtures("quick_measurement")
def test_info_measures_on_demand():
    result = invoke("info", "--measure", "--threads", "1")
    assert result.exit_code == 0, result.output
    for text in (
        "read GB/s",
        "FMA GFLOP/s",
        "int8 dot GOP/s",
        "a decode call, quant b, 1 threads",
        "least possible ms",
    ):
        assert text in result.output
    assert "read GB/s" not in invoke("info").output


def test_info_json_holds_the_rates():
    status, out, err = run_cli("info", "--measure", "--json", "--threads", "1", env={"NUMBA_NUM_THREADS": "2"})
    assert status == 0, err
    assert "measuring" in err
    facts = json.loads(out)
    (rates,) = facts["rates"]
    assert rates.pop("threads") == 1
    assert {"read_gb_s", "fma_gflop_s", "dot_gop_s"} <= set(rates)
    assert min(rates.values()) > 0
    assert list(facts["least_ms"]) == ["1", "8", "32", "128", "512"]
    plan = plan_prolog(MlaDims.deepseek_v32(), 512, None, this_machine(), micro=MICRO_TILES, n_threads=1)
    fastest = max(rates["fma_gflop_s"], rates.get("bf16_gflop_s", 0))
    computing = plan.flops / fastest + plan.int8_ops / rates["dot_gop_s"]
    assert facts["least_ms"]["512"] == pytest.approx(max(plan.total_bytes / rates["read_gb_s"], computing) / 1e6)
    assert {"rates", "least_ms"}.isdisjoint(json.loads(run_cli("info", "--json")[1]))


def test_info_refuses_threads_that_nothing_reads():
    assert "--threads: expected together with --measure, got 1 alone" in one_line_error("info", "--threads", "1")


def test_warmup_needs_a_folder_that_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    status, out, err = run_cli("warmup", env={"NUMBA_CACHE_DIR": str(tmp_path / "file")})
    assert (status, out) == (1, "")
    assert err.startswith("Error: kernel cache: expected a folder that can be written, got ")


@pytest.mark.parametrize("quant", ["none", "a", "b", "ab"])
def test_warmup_calls_are_large_enough_for_every_thread(quant):
    dims, t = cli_warmup._DIMS, cli_warmup._TOKENS
    plan = plan_prolog(dims, t, None, this_machine(), micro=MICRO_TILES, quant=quant, n_threads=2)
    assert plan.n_workers == 2


def test_version():
    status, out, _ = run_cli("--version")
    assert (status, out) == (0, f"mla-numba, version {__version__}\n")


@pytest.mark.parametrize("command", ["run", "plan", "info", "warmup"])
def test_every_option_has_help(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert all(option.help for option in main.commands[command].params)


def test_work_of_the_sweeps_adds_up_to_the_plans():
    plan = plan_prolog(MlaDims.deepseek_v32(), 300, None, this_machine(), micro=MICRO_TILES, n_threads=2)
    parts = plan.sweep_work.values()
    assert sum(part.n_ops for part in parts) == plan.work.n_ops == plan.flops + plan.int8_ops
    # What moves between the sweeps is in the parts and not in the total: less than the weights of one tile.
    assert 0 < sum(part.total_bytes for part in parts) - plan.total_bytes < plan.weight_bytes


def test_rates_are_those_of_the_median():
    sweep = SweepTimes("down", 4_000_000, 6_000_000, (0.004, 0.001, 0.002))
    assert (sweep.min_s, sweep.median_s) == (0.001, 0.002)
    assert (sweep.gb_per_s, sweep.gop_per_s) == (pytest.approx(2), pytest.approx(3))
    console = Console(width=100)
    with console.capture() as shown:
        console.print(sweep_table([sweep]))
    assert shown.get().splitlines()[3].split() == ["down", "1.000", "2.000", "4.00", "2.0", "3.0"]
