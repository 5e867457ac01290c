"""Threads of torch and of the prolog: the same ones, and no more than torch is told to use."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import SCRIPTS, run_python

torch = pytest.importorskip("torch")

from helpers.interop_cases import assert_is_reference, make_case  # noqa: E402

from mla_numba import MlaProlog  # noqa: E402
from mla_numba.base.threads import usual_threads  # noqa: E402
from mla_numba.call import planning  # noqa: E402
from mla_numba.kernels import max_threads  # noqa: E402

SCRIPT = str(SCRIPTS / "interop_threads_script.py")


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked up in /proc")
@pytest.mark.parametrize("first", ["torch", "ours"])
def test_one_pool_whoever_is_first(first):
    run_python("-W", "error", SCRIPT, first, NUMBA_NUM_THREADS="3", OMP_NUM_THREADS="3", NUMBA_THREADING_LAYER="omp")


@pytest.fixture
def planned(monkeypatch):
    """The numbers of threads that plans were made for."""
    seen = []
    plan_prolog = planning.plan_prolog

    def plan(*args, **settings):
        seen.append(settings["n_threads"])
        return plan_prolog(*args, **settings)

    monkeypatch.setattr(planning, "plan_prolog", plan)
    before = torch.get_num_threads()
    yield seen
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, usual_threads(max_threads()), max_threads() + 1])
def test_no_more_threads_than_torch_is_told(planned, count):
    case = make_case()
    want = case.reference()
    torch.set_num_threads(count)
    assert_is_reference(case.prolog(*case.call), case.cache, want)
    assert planned == [min(count, usual_threads(max_threads()))]


def test_the_count_is_read_in_each_call_and_each_thread(planned):
    case = make_case()
    torch.set_num_threads(max_threads())

    def run(count):
        torch.set_num_threads(count)
        case.prolog(*case.call)

    case.prolog(*case.call)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, 1).result()
    case.prolog(*case.call)
    assert set(planned) == {usual_threads(max_threads()), 1}


def test_no_more_threads_than_the_prolog_has(planned):
    case = make_case(n_threads=1)
    torch.set_num_threads(max_threads())
    case.prolog(*case.call)
    assert planned == [1]


@pytest.mark.usefixtures("planned")
def test_a_run_of_fewer_threads_leaves_the_plan_as_it_is():
    case = make_case()
    prolog = case.prolog.prolog
    assert isinstance(prolog, MlaProlog)
    torch.set_num_threads(1)
    case.prolog(*case.call)
    assert prolog.plan(9).n_threads == usual_threads(max_threads())
