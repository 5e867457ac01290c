"""What a new process waits for: the import, and the first call with kernels from the cache or compiled anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
from cold_start import CALLS
from shared.contenders import OURS
from shared.left_out import or_skipped

from .session import Stopwatch

CHILD = Path(__file__).parents[1] / "cold_start.py"
ROOT = CHILD.parents[1]
CLOCK = Stopwatch()
ROUNDS = 5


def run_child(*arguments, **environment):
    """Seconds of a new process, by the process's own clock."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(CHILD), *arguments]
    env = os.environ | {"PYTHONPATH": path} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    reason = done.stderr.strip().rpartition("\n")[2]
    assert done.returncode == 0, f"exit code {done.returncode}: {reason}\n{done.stderr}"
    return json.loads(done.stdout)


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("implementation", [OURS, "numba", "numpy", "torch", "onnxruntime"])
def test_import(benchmark, suite, implementation):
    if find_spec(implementation) is None:
        pytest.skip(f"{implementation} is not installed")
    suite.describe(benchmark, "cold start: import", implementation, made_of="import alone", verified="imported")
    with nullcontext() if implementation == OURS else or_skipped(implementation):
        run_child(implementation)  # from here on what it reads is in the system's cache
    rounds = 1 if suite.tiny else ROUNDS
    benchmark.pedantic(lambda: CLOCK.add(run_child(implementation)["import"]), rounds=rounds)


@pytest.mark.benchmark(timer=CLOCK.read)
def test_first_call(benchmark, suite):
    describe_first_call(benchmark, suite, "kernels from the cache")
    run_child(OURS, "--first-call")  # fills the kernel cache
    rounds = 1 if suite.tiny else ROUNDS
    benchmark.pedantic(lambda: CLOCK.add(sum(run_child(OURS, "--first-call").values())), rounds=rounds)


@pytest.mark.slow
@pytest.mark.benchmark(timer=CLOCK.read)
def test_first_call_on_an_empty_kernel_cache(benchmark, suite, tmp_path):
    describe_first_call(benchmark, suite, "kernels compiled")
    child = {"NUMBA_CACHE_DIR": str(tmp_path)}
    benchmark.pedantic(lambda: CLOCK.add(sum(run_child(OURS, "--first-call", **child).values())), rounds=1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Seconds of a process that finds no kernels, by what is called, in this order."""
    return run_child(OURS, "--every-mode", NUMBA_CACHE_DIR=str(tmp_path_factory.mktemp("kernels")))


@pytest.mark.slow
@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("kind", list(CALLS)[1:])
def test_further_calls_on_an_empty_kernel_cache(benchmark, suite, compiled, kind):
    what = f"{OURS}, {kind.replace('_', ' ')}, after those above"
    group = "cold start: packing and a call with kernels of another kind, small dimensions"
    suite.describe(benchmark, group, what, made_of="kernels compiled", verified="bit for bit against the reference")
    benchmark.pedantic(lambda: CLOCK.add(compiled[kind]), rounds=1)


@pytest.mark.slow
def test_warmup_on_an_empty_kernel_cache(benchmark, suite, tmp_path):
    group = "cold start: mla-numba warmup"
    suite.describe(benchmark, group, f"{OURS}, all modes", made_of="kernels compiled", verified="its exit code")
    command = [sys.executable, "-m", "mla_numba", "warmup"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    benchmark.pedantic(lambda: subprocess.run(command, env=environment, check=True, capture_output=True), rounds=1)


def describe_first_call(benchmark, suite, kernels):
    group = "cold start: import, packing and first call, small dimensions"
    verified = "bit for bit against the reference"
    suite.describe(benchmark, group, f"{OURS}, {kernels}", made_of=kernels, verified=verified)
