"""`run --mpi` and `pack --shard`: one table from the first rank, every rank checked, files of a rank."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import python_environment
from helpers.checkpoint_maker import make_checkpoint
from helpers.cli import invoke

from mla_numba import Checkpoint, HeadShard, MlaDims, PackedWeights
from mla_numba.base.extras import how_to_install
from mla_numba.cli import run_ranks as run_ranks_module

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
NEEDS_MPI = pytest.mark.skipif(
    not (MPIEXEC and find_spec("mpi4py")), reason="mpi4py and an MPI library are not installed"
)
SMALL = ["--dims", "130,7,50,64,33,32", "--tokens", "4", "--threads", "1", "--repeats", "2"]
DIMS = MlaDims(130, 5, 70, 68, 5, 6)


def run_ranks(size, *arguments):
    command = [MPIEXEC, "-n", str(size), sys.executable, "-m", "mpi4py", "-m", "mla_numba", "run", "--mpi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=python_environment(), timeout=240, check=False)


@NEEDS_MPI
@pytest.mark.parametrize("down", ["replicated", "split"])
def test_one_report_of_all_ranks(down):
    done = run_ranks(3, *SMALL, "--down", down, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["exact"] is True
    assert [rank["heads"] for rank in report["ranks"]] == [[0, 2], [3, 4], [5, 6]]
    for rank in report["ranks"]:
        assert (rank["down"], rank["mismatches"], len(rank["times_s"])) == (down, [], 2)
        assert (rank["exchanged_bytes"] > 0) == (down == "split")
        assert rank["work_bytes"] > 0
        assert max(rank["exchange_s"]) <= max(rank["times_s"])


@NEEDS_MPI
def test_a_table():
    done = run_ranks(2, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 to 3" in done.stdout
    assert "4 to 6" in done.stdout
    assert done.stdout.count("exact: every bit of the outputs and caches of 2 ranks equals the reference") == 1
    assert done.stderr.count("packing weights") == 1


@NEEDS_MPI
def test_more_ranks_than_heads():
    done = run_ranks(2, "--dims", "130,1,50,64,33,32", "--tokens", "4", "--threads", "1")
    assert done.returncode != 0
    assert "size: expected at most 1 ranks, one for each head, got 2" in done.stderr


@NEEDS_MPI
def test_a_rank_that_fails_ends_the_others():
    """Whatever starts the command: here not mpi4py."""
    one = ["-n", "1", sys.executable, "-m", "mla_numba", "run", "--mpi", *SMALL]
    command = [MPIEXEC, *one, ":", *one, "--dims", "2000000,7,2000000000,64,33,32"]
    done = subprocess.run(command, capture_output=True, text=True, env=python_environment(), timeout=240, check=False)
    assert done.returncode != 0
    assert "Unable to allocate" in done.stderr


WRONG = {
    "an option": (["--smooth", "--quant", "none"], {}, "--smooth: expected with --quant b or ab"),
    "an instruction set": ([], {"MLA_NUMBA_ISA": "sse9"}, "MLA_NUMBA_ISA: expected one of"),
    "a file": (["--dims", "nowhere/config.json"], {}, "expected six integers with commas or the path of a config.json"),
}


@NEEDS_MPI
@pytest.mark.parametrize(
    "launcher", [["-m", "mpi4py", "-m", "mla_numba"], ["-m", "mla_numba"]], ids=["mpi4py", "alone"]
)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_rank_that_fails_at_once_leaves_nobody_waiting(wrong, launcher):
    options, environment, text = WRONG[wrong]
    one = ["-n", "1", sys.executable, *launcher, "run", "--mpi", *SMALL]
    other = ["-n", "1", "env", *(f"{name}={value}" for name, value in environment.items()), *one[2:], *options]
    done = subprocess.run(
        [MPIEXEC, *one, ":", *other], capture_output=True, text=True, env=python_environment(), timeout=240, check=False
    )
    assert done.returncode != 0
    assert text in done.stderr


def test_all_ranks_wait_for_the_first_to_show_a_wrong_bit(monkeypatch):
    """Where one ends with status 1, `python -m mpi4py` ends all."""
    events = []

    class OneRank:
        rank, size = 0, 1

        def all_gather(self, part, n_bytes):
            events.append("gather")
            return part

    monkeypatch.setattr(run_ranks_module, "world", OneRank)
    monkeypatch.setattr(run_ranks_module.verify, "check_output", lambda *_: ["q_norm: 1 wrong"])
    monkeypatch.setattr(run_ranks_module, "print_wide", lambda *_: events.append("table"))
    result = invoke("run", *SMALL, "--mpi")
    assert result.exit_code == 1
    assert "rank 0: q_norm: 1 wrong" in result.output
    assert events.index("table") < len(events) - 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--down", "split"], "--down: expected it with --mpi only"),
        (["--mpi", "--trace", "trace.json"], "--trace: expected none with --mpi"),
    ],
)
def test_options_that_do_not_go_together(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("run", *SMALL, *arguments)
    assert result.exit_code == 2
    assert text in result.output


def test_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    result = invoke("run", *SMALL, "--mpi")
    assert result.exit_code == 1
    how = how_to_install("mpi", "mpi4py mpich")
    assert f"expected mpi4py and an MPI library ({how}), got none" in result.output


def test_a_file_of_one_rank(tmp_path):
    make_checkpoint(tmp_path / "model", DIMS, 4)
    out = tmp_path / "rank.mla"
    result = invoke("pack", tmp_path / "model", "--layer", 0, "--shard", "2/3", "--out", out)
    assert result.exit_code == 0, result.output
    assert "heads of rank 2 of 3" in result.output
    packed = PackedWeights.load(out)
    assert packed.head_shard == HeadShard(2, 3, 5)
    want = Checkpoint(tmp_path / "model").load_layer(0).weights.shard(2, 3).pack()
    assert packed.up.panels.tobytes() == want.up.panels.tobytes()
    assert packed.uk.panels.tobytes() == want.uk.panels.tobytes()


@pytest.mark.parametrize("text", ["3/3", "1", "/", "1/", "-1/3", "a/b", "0/0"])
def test_what_is_no_shard(tmp_path, text):
    make_checkpoint(tmp_path / "model", DIMS, 4)
    result = invoke("pack", tmp_path / "model", "--layer", 0, "--shard", text, "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "expected RANK/SIZE, a rank from 0 below the number of ranks, got" in result.output
