"""Run by test_threads.py, one process a scenario: Python threads, forked children and small thread counts."""

import os
import signal
import sys
import threading

import numpy as np
import pytest
from helpers import THREADS, make_call, make_inputs, make_weights, most_workers

from mla_numba import MlaDims, MlaProlog
from mla_numba.kernels import max_threads
from mla_numba.verify import reference_run

DIMS = MlaDims(514, 5, 101, 132, 33, 34)
T = 40


class Case:
    """A call that several may make at once, each with memory of its own."""

    def __init__(self, seed=0):
        self.weights = make_weights(DIMS, "b", seed)
        self.inputs = make_inputs(DIMS, T, 48, seed)
        self.want = reference_run(self.weights, *self.inputs, make_call(DIMS, True, T, 3, 16).cache)

    def check(self, prolog, times=1):
        for _ in range(times):
            call = make_call(DIMS, True, T, 3, 16)
            prolog(*self.inputs, call.cache, call.out)
            call.assert_equals(self.want)


def in_threads(functions):
    """Runs all at once; raises what the first of them raised."""
    errors, start = [], threading.Barrier(len(functions))

    def guarded(function):
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def in_child(function):
    """Runs it in a forked child that has to end well, and in time."""
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        code = 1
        try:
            function()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the child ended with {status}"


def one_prolog():
    """Threads that share an instance, on different inputs."""
    case = Case()
    prolog = MlaProlog(case.weights)
    assert most_workers(prolog, T) == THREADS[-1]
    in_threads([lambda: case.check(prolog, 20)] * 4)


def one_prolog_and_its_memory():
    """Batches of different sizes need working memory of different sizes, which threads must not share."""
    case = Case()
    prolog = MlaProlog(case.weights)
    wanted = {}
    for t in (1, 7, 40):
        inputs = make_inputs(DIMS, t, 48, t)
        wanted[t] = inputs, reference_run(case.weights, *inputs, make_call(DIMS, True, t, 3, 16).cache)

    def check(order):
        for t in order * 8:
            inputs, want = wanted[t]
            call = make_call(DIMS, True, t, 3, 16)
            prolog(*inputs, call.cache, call.out)
            call.assert_equals(want)

    in_threads([lambda o=o: check(o) for o in ([1, 7, 40], [40, 1, 7], [7, 40, 1], [40, 40, 40])])


def many_prologs():
    """Threads with an instance each, some serial; the first calls, and packing, at the same time."""
    cases = [Case(seed) for seed in range(4)]
    in_threads([lambda c=c, n=n: c.check(MlaProlog(c.weights, n_threads=n), 5) for c in cases for n in THREADS])


def fork_after_a_call():
    case = Case()
    prolog = MlaProlog(case.weights)
    case.check(prolog)
    in_child(lambda: case.check(prolog, 3))
    case.check(prolog, 3)
    in_child(lambda: case.check(MlaProlog(case.weights), 3))
    in_child(lambda: in_child(lambda: case.check(prolog, 3)))
    case.check(prolog)


def fork_before_any_call():
    case = Case()
    in_child(lambda: case.check(MlaProlog(case.weights), 3))
    case.check(MlaProlog(case.weights), 3)


def fork_during_a_call():
    """A child that is forked while another thread computes finds no lock that nobody will release."""
    case = Case()
    prolog = MlaProlog(case.weights)
    case.check(prolog)
    done = threading.Event()

    def compute():
        while not done.is_set():
            case.check(prolog)

    def fork():
        try:
            for _ in range(10):
                in_child(lambda: case.check(prolog))
        finally:
            done.set()

    in_threads([compute, fork])
    case.check(prolog)


def threads_in_a_child():
    case = Case()
    prolog = MlaProlog(case.weights)
    case.check(prolog)
    in_child(lambda: in_threads([lambda: case.check(prolog, 5)] * 3))


def pool_of_forks():
    import multiprocessing

    case = Case()
    case.check(MlaProlog(case.weights))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(check_seed, range(4)) == [True] * 4


def check_seed(seed):
    case = Case(seed)
    case.check(MlaProlog(case.weights))
    return True


def one_thread():
    assert max_threads() == 1
    case = Case()
    case.check(MlaProlog(case.weights))
    with pytest.raises(ValueError, match=r"^n_threads: expected at most Numba's 1 .*got 2"):
        MlaProlog(case.weights, n_threads=2)


def more_threads_than_cores():
    case = Case()
    assert max_threads() == 5
    for n in range(1, 6):
        prolog = MlaProlog(case.weights, n_threads=n)
        assert most_workers(prolog, T) <= n
        case.check(prolog, 5)
    assert np.isfinite(case.want.q_norm_scale).all()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
