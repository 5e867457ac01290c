import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_tiling_planner import BIG_CACHES, FULL

from tiling import CpuTiling, Rates, store

ROOT = Path(__file__).parents[1]
FOUND = store.Tuned(CpuTiling(down_mc=4, unroll_list=(8, 4)), 8, 0.9, 12, 3.5, "2026-01-02")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "tuned"))
    return tmp_path / "tuned"


def load(**changes):
    key = {"machine": BIG_CACHES, "version": "1", "dims": FULL, "quant": "b", "n_threads": 2, "t": 8} | changes
    return store.load_tuned(**key)


def save(found=FOUND, n_threads=2):
    return store.save_tuned(BIG_CACHES, "1", FULL, "b", n_threads, found)


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
    store.save_rates(BIG_CACHES, "1", 2, rates)
    assert store.load_rates(BIG_CACHES, "1", 2) == rates
    assert store.load_rates(BIG_CACHES, "1", 1) is None


@pytest.mark.parametrize("t", [1, 2, 3, 8, 100, 128, 129, 2**20])
def test_buckets_are_powers_of_two(t):
    bucket = store.bucket_of(t)
    assert bucket // 2 < t <= bucket
    assert bucket & (bucket - 1) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_broken_file_is_no_entry(text):
    save().write_text(text)
    assert load() is None


def test_an_entry_of_another_form_is_none():
    path = save()
    kept = json.loads(path.read_text())
    for entry in ({}, kept["entry"] | {"tiling": {"no_such_field": 1}}, kept["entry"] | {"tiling": {"down_mc": 0}}):
        path.write_text(json.dumps(kept | {"entry": entry}))
        assert load() is None


def test_what_it_says():
    assert str(FOUND) == ("0.900 of the time of the planner's own plan at 8 tokens, 12 trials in 4 s on 2026-01-02")
    none = replace(FOUND, tiling=CpuTiling(), ratio=1.0)
    assert str(none).startswith("nothing faster than the planner's own plan at 8 tokens")


def test_the_users_cache_folder_by_default(monkeypatch):
    monkeypatch.delenv(store.FOLDER_VARIABLE)
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert store.store_folder() == Path("/somewhere/mla_numba/tuned")
    assert store.store_folder().name == "tuned"


WRITER = """
import sys
from tiling import CpuTiling, Machine, PlanDims, store
machine = Machine("big", "x", "avx512vnni", 48 * 1024, 2 * 1024**2, 2**25, 64, 32)
dims = PlanDims(7168, 128, 1536, 512, 128, 64)
for i in range(150):
    found = store.Tuned(CpuTiling(down_mc=int(sys.argv[1]), unroll_list=(8,) * 200), 8, 0.5, i, 1.0, "today")
    store.save_tuned(machine, "1", dims, "b", 2, found)
    read = store.load_tuned(machine, "1", dims, "b", 2, 8)
    assert read is not None and read.tiling.unroll_list == (8,) * 200, read
"""


def test_two_processes_write_one_entry(folder):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, mc], cwd=ROOT) for mc in ("3", "4")]
    assert [writer.wait(timeout=600) for writer in writers] == [0, 0]
    assert load().tiling.down_mc in (3, 4)
    assert load().n_trials == 149
    assert [path.suffix for path in folder.iterdir()] == [".json"]
