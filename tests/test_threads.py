"""Threads, forks and Numba's thread count. What could end a process runs in one of its own."""

import os
import sys
from pathlib import Path

import numba
import pytest
from helpers import SCRIPTS, THREADS, run_python
from scripts import threads_script

from mla_numba import MlaProlog
from mla_numba.kernels import max_threads

SCRIPT = str(SCRIPTS / "threads_script.py")
# `pip install tbb` puts it into lib/, where the loader does not look by itself.
TBB_FOLDERS = [Path(sys.prefix) / "lib", *map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))]
TBB_FOLDER = next((folder for folder in TBB_FOLDERS if (folder / "libtbb.so.12").exists()), None)
NO_TBB = pytest.mark.skipif(TBB_FOLDER is None, reason="no libtbb.so.12: pip install tbb")
LAYERS = ("omp", "workqueue", pytest.param("tbb", marks=NO_TBB))


@pytest.fixture(scope="module")
def case():
    return threads_script.Case()


def run_script(scenario, layer=None, **environment):
    if layer is not None:
        environment["NUMBA_THREADING_LAYER"] = layer
    if layer == "tbb":
        environment["LD_LIBRARY_PATH"] = f"{TBB_FOLDER}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    run_python(SCRIPT, scenario, timeout=900, **environment)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scenario", ["one_prolog", "one_prolog_and_its_memory", "many_prologs", "thread_pool"])
def test_python_threads(scenario, layer):
    run_script(scenario, layer)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_instance_has_its_own_thread_count(layer):
    run_script("thread_counts", layer, NUMBA_NUM_THREADS="3")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows names threads otherwise")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])  # on tbb any thread may be any worker
def test_a_worker_is_the_same_thread_in_every_launch(layer):
    run_script("a_worker_stays_a_thread", layer, NUMBA_NUM_THREADS="3")


def test_an_interrupt_leaves_the_thread_count_as_it_was():
    run_script("interrupted_at_the_thread_count", NUMBA_NUM_THREADS="3")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no interval timer")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scenario", ["interrupted", "interrupted_while_loading", "interrupted_by_another_process"])
def test_a_call_that_is_interrupted_leaves_the_next_one_right(scenario, layer):
    run_script(scenario, layer)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scenario", ["exit_with_a_daemon", "exit_with_threads"])
def test_the_interpreter_ends(scenario, layer):
    run_script(scenario, layer)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "scenario",
    [
        "fork_after_a_call",
        "fork_before_any_call",
        "fork_during_a_call",
        "fork_in_a_thread",
        "threads_in_a_child",
        "pool_of_forks",
    ],
)
def test_forked_children(scenario, layer):
    run_script(scenario, layer)


def test_python_threads_of_this_process(case):
    prolog = MlaProlog(case.weights)
    threads_script.in_threads([lambda: case.check(prolog, 5)] * 3)


def test_one_thread():
    run_script("one_thread", NUMBA_NUM_THREADS="1")


def test_more_threads_than_cores():
    run_script("more_threads_than_cores", NUMBA_NUM_THREADS="5")


@pytest.mark.parametrize("n_threads", [*THREADS, None])
def test_numbas_thread_count_is_restored(case, n_threads):
    before = numba.get_num_threads()
    prolog = MlaProlog(case.weights, n_threads=n_threads)
    assert numba.get_num_threads() == before
    case.check(prolog)
    assert numba.get_num_threads() == before
    with pytest.raises(ValueError, match="cache_index"):
        prolog(
            *case.inputs._replace(cache_index=case.inputs.cache_index + 99),
            threads_script.make_call(threads_script.DIMS, True, threads_script.T, 3, 16).cache,
        )
    assert numba.get_num_threads() == before


@pytest.mark.parametrize("mine", range(1, max_threads() + 1))
def test_a_users_own_thread_count_stays(case, mine):
    before = numba.get_num_threads()
    numba.set_num_threads(mine)
    try:
        for n in THREADS:
            case.check(MlaProlog(case.weights, n_threads=n))
            assert numba.get_num_threads() == mine
    finally:
        numba.set_num_threads(before)


def test_more_threads_than_numbas_is_an_error(case):
    n = max_threads() + 1
    with pytest.raises(ValueError, match=f"^n_threads: expected at most Numba's {n - 1} .*got {n}"):
        MlaProlog(case.weights, n_threads=n)
