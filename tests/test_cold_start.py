"""Processes that start together on an empty kernel cache, and one that finds it filled."""

import os
import subprocess
import sys

from mla_numba.kernels import ISA

SCRIPT = """
import mla_numba as mla
from mla_numba.inputs import random_inputs
from mla_numba.verify import check_output, reference_run

dims = mla.MlaDims(256, 4, 64, 32, 16, 8)
weights = mla.MlaWeights.random(dims)
cache = mla.PagedCache.allocate(dims, 4, 16)
inputs = random_inputs(dims, 40, seed=0, capacity=64)
want = reference_run(weights, inputs.x, inputs.cos, inputs.sin, inputs.cache_index, cache)
out = mla.MlaProlog(weights)(inputs.x, inputs.cos, inputs.sin, inputs.cache_index, cache)
assert check_output(out, cache, want) == []
"""


def start(environment):
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stderr=subprocess.PIPE, text=True)


def run(environment):
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True, timeout=900)


def test_processes_that_start_at_once_on_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    environment = dict(os.environ)
    together = [start(environment) for _ in range(4)]
    said = [process.communicate(timeout=900)[1] for process in together]
    assert [process.returncode for process in together] == [0] * 4, said
    assert any("compiling kernels" in text for text in said)
    assert all(text.count("compiling kernels") <= 1 for text in said)
    saved = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert saved
    # Numba's key is the CPU alone, which is the same for every MLA_NUMBA_ISA.
    assert {path.parent.name.rpartition("-")[2] for path in saved} == {ISA.name}
    assert all(path.name.startswith(f"microkernels-{ISA.name}-") for path in tmp_path.rglob("microkernels*"))

    later = start(environment | {"MLA_NUMBA_ISA": ISA.name})  # named, so that nothing is said of it either
    assert later.communicate(timeout=900)[1] == ""
    assert later.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == saved


def test_a_kernel_whose_phases_are_lost_from_the_cache(tmp_path, monkeypatch):
    """A kernel's code knows its phases' names only: they are compiled again before the kernel is loaded."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    environment = dict(os.environ)
    run(environment)
    phases = [path for path in tmp_path.rglob("*.nb?") if path.parent.name == f"outlined-{ISA.name}"]
    assert phases
    for path in phases:
        path.unlink()
    run(environment)
    assert all(path.exists() for path in phases)
