import json
import os
import pwd
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, python_environment
from helpers.machines import BIG_CACHES, FULL

from mla_numba.call import tuned
from mla_numba.kernels import cache_folder
from tiling import CpuTiling, Rates

FOUND = tuned.Tuned(CpuTiling(down_mc=4, unroll_list=(8, 4)), 8, 0.9, 12, 3.5, "2026-01-02")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(tuned.FOLDER_VARIABLE, str(tmp_path / "tuned"))
    return tmp_path / "tuned"


def load(**changes):
    key = {"machine": BIG_CACHES, "version": "1", "dims": FULL, "quant": "b", "n_threads": 2, "t": 8} | changes
    return tuned.load_tuned(**key)


def save(found=FOUND, n_threads=2):
    return tuned.save_tuned(BIG_CACHES, "1", FULL, "b", n_threads, found)


def test_what_is_kept_comes_back_for_its_key_alone(folder):
    assert load() is None
    path = save()
    assert path.parent == folder
    assert load() == load(t=5) == FOUND
    for change in (
        {"t": 4}, {"t": 9}, {"n_threads": 1}, {"quant": "none"}, {"version": "2"},
        {"dims": replace(FULL, hidden_size=64)}, {"machine": replace(BIG_CACHES, l2_bytes=1)},
    ):  # fmt: skip
        assert load(**change) is None
    save(replace(FOUND, ratio=0.8))
    assert load().ratio == 0.8
    assert [p.suffix for p in folder.iterdir()] == [".json"]


def test_rates_are_kept_by_threads():
    rates = Rates(1.0, 2.0, 3.0, None)
    tuned.save_rates(BIG_CACHES, "1", 2, rates)
    assert tuned.load_rates(BIG_CACHES, "1", 2) == rates
    assert tuned.load_rates(BIG_CACHES, "1", 1) is None


@pytest.mark.parametrize("t", [1, 2, 3, 8, 100, 128, 129, 2**20])
def test_buckets_are_powers_of_two(t):
    bucket = tuned.bucket_of(t)
    assert bucket // 2 < t <= bucket
    assert bucket & (bucket - 1) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "null", "[" * 100_000, '{"a":' * 100_000, " " * 2**21])
def test_a_broken_file_is_no_entry(text):
    save().write_text(text)
    assert load() is None


def test_what_is_no_file_is_no_entry():
    path = save()
    for make in (path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path)):
        path.rmdir() if path.is_dir() else path.unlink()
        make()
        assert load() is None


FIELDS = [
    {"tiling": {"no_such_field": 1}}, {"tiling": {"down_mc": 0}}, {"tiling": {"down_grain": 2**62}}, {"tiling": None},
    {"tiling": {"down_grain": 10**30}}, {"tiling": {"unroll_list": [8] * 5000}}, {"tiling": {"unroll_list": 8}},
    {"tiling": [1]}, {"t": None}, {"t": "8"}, {"t": 10**30}, {"ratio": None}, {"ratio": "0.9"}, {"ratio": 1e300},
    {"ratio": float("nan")}, {"ratio": -1}, {"n_trials": 1.5}, {"n_trials": -1}, {"seconds": None},
    {"seconds": 10**400}, {"date": 5}, {"date": None}, {"beside": 1},
]  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: str(fields)[:40])
def test_an_entry_of_another_form_is_none(fields):
    path = save()
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"entry": kept["entry"] | fields}))
    assert load() is None
    path.write_text(json.dumps(kept | {"entry": {n: v for n, v in kept["entry"].items() if n not in fields}}))
    assert load() is None or "beside" in fields


@pytest.mark.parametrize("rate", [None, "1", 0, -1, float("nan"), float("inf"), 1e300, 10**400, True, [1]], ids=str)
def test_rates_of_another_form_are_none(rate):
    path = tuned.save_rates(BIG_CACHES, "1", 2, Rates(1.0, 2.0, 3.0))
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"entry": kept["entry"] | {"flops_s": rate}}))
    assert tuned.load_rates(BIG_CACHES, "1", 2) is None


def test_what_it_says():
    assert str(FOUND) == ("0.900 of the time of the planner's own plan at 8 tokens, 12 trials in 4 s on 2026-01-02")
    none = replace(FOUND, tiling=CpuTiling(), ratio=1.0)
    assert str(none).startswith("nothing faster than the planner's own plan at 8 tokens")


def test_the_users_cache_folder_by_default(monkeypatch):
    monkeypatch.delenv(tuned.FOLDER_VARIABLE)
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert tuned.store_folder() == Path("/somewhere/mla_numba/tuned")
    assert tuned.store_folder().name == "tuned"


@pytest.fixture
def homeless(monkeypatch):
    """As for a user without an entry in the system's list, and no HOME."""
    for name in (tuned.FOLDER_VARIABLE, "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_there_is_no_entry_and_saving_names_the_variable():
    assert load() is None
    assert tuned.load_rates(BIG_CACHES, "1", 2) is None
    for act in (save, lambda: tuned.save_rates(BIG_CACHES, "1", 2, Rates(1, 1, 1)), tuned.make_store_folder):
        with pytest.raises(OSError, match="MLA_NUMBA_TUNED: expected a folder to keep results in"):
            act()


AUTO = """
import pwd
pwd.getpwuid = {}.__getitem__  # as in a container, where the user's id has no entry
import mla_numba
from mla_numba.inputs import random_inputs
dims = mla_numba.MlaDims(64, 2, 32, 32, 16, 8)
prolog = mla_numba.MlaProlog(mla_numba.MlaWeights.random(dims), n_threads=1, tile_config="auto")
prolog(*random_inputs(dims, 2, 0, 16), mla_numba.PagedCache.allocate(dims, 1, 16))
print(prolog.plan(2).origin)
"""


def test_a_user_without_a_home_computes(tmp_path):
    env = python_environment(NUMBA_CACHE_DIR=str(cache_folder().parents[1]))
    for name in (tuned.FOLDER_VARIABLE, "HOME", "XDG_CACHE_HOME"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", AUTO], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "planner\n"), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error(folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file")
    with pytest.raises(OSError, match="tuned"):
        tuned.make_store_folder()
    assert load() is None


WRITER = """
import sys
from mla_numba.call import tuned
from tiling import CpuTiling, Machine, PlanDims
machine = Machine("big", "x", "avx512vnni", 48 * 1024, 2 * 1024**2, 2**25, 64, 32)
dims = PlanDims(7168, 128, 1536, 512, 128, 64)
for i in range(150):
    found = tuned.Tuned(CpuTiling(down_mc=int(sys.argv[1]), unroll_list=(8,) * 200), 8, 0.5, i, 1.0, "today")
    tuned.save_tuned(machine, "1", dims, "b", 2, found)
    read = tuned.load_tuned(machine, "1", dims, "b", 2, 8)
    assert read is not None and read.tiling.unroll_list == (8,) * 200, read
"""


def test_two_processes_write_one_entry(folder):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, mc], cwd=ROOT) for mc in ("3", "4")]
    assert [writer.wait(timeout=600) for writer in writers] == [0, 0]
    assert load().tiling.down_mc in (3, 4)
    assert load().n_trials == 149
    assert [path.suffix for path in folder.iterdir()] == [".json"]
