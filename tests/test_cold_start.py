"""Processes that start together on an empty kernel cache, and one that finds it filled."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import python_environment

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


def environment_of(folder):
    return python_environment(NUMBA_CACHE_DIR=str(folder))


def start(environment):
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stderr=subprocess.PIPE, text=True)


def run(environment):
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True, timeout=900)


class Filled(NamedTuple):
    """A kernel cache that four processes began with at once: the folder, their exit codes, and what they wrote."""

    folder: Path
    exit_codes: list[int]
    said: list[str]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    together = [start(environment_of(folder)) for _ in range(4)]
    said = [process.communicate(timeout=900)[1] for process in together]
    return Filled(folder, [process.returncode for process in together], said)


def test_processes_that_start_at_once_on_an_empty_cache(filled):
    assert filled.exit_codes == [0] * 4, filled.said
    assert any("compiling kernels" in text for text in filled.said)
    assert all(text.count("compiling kernels") <= 1 for text in filled.said)
    saved = {path: path.stat().st_mtime_ns for path in filled.folder.rglob("*.nbc")}
    assert saved
    # Numba's key is the CPU alone, which is the same for every MLA_NUMBA_ISA.
    assert {path.parent.name.rpartition("-")[2] for path in saved} == {ISA.name}
    assert all(path.name.startswith(f"microkernels-{ISA.name}-") for path in filled.folder.rglob("microkernels*"))

    # named, so that nothing is said of it either
    later = start(environment_of(filled.folder) | {"MLA_NUMBA_ISA": ISA.name})
    assert later.communicate(timeout=900)[1] == ""
    assert later.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in filled.folder.rglob("*.nbc")} == saved


def test_a_kernel_whose_phases_are_lost_from_the_cache(filled, tmp_path):
    """A kernel's code knows its phases' names only: they are compiled again before the kernel is loaded."""
    folder = shutil.copytree(filled.folder, tmp_path / "kernels")
    phases = [path for path in folder.rglob("*.nb?") if path.parent.name == f"outlined-{ISA.name}"]
    assert phases
    others = {path: path.stat().st_mtime_ns for path in {*folder.rglob("*.nbc")}.difference(phases)}
    assert others
    for path in phases:
        path.unlink()
    run(environment_of(folder))
    assert all(path.exists() for path in phases)
    assert {path: path.stat().st_mtime_ns for path in others} == others
