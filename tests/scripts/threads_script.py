"""Run by test_threads.py, one process a scenario: Python threads, forked children and small thread counts."""

import atexit
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from helpers import THREADS, make_call, make_inputs, make_weights, most_workers
from numba.core import types

from mla_numba import MlaDims, MlaProlog
from mla_numba.kernels import max_threads
from mla_numba.kernels.launch import Kernel, kernel
from mla_numba.oracle.bits import reference_run

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
    """Runs it in a forked child that has to end well, and does not hang."""
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(600)
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


def fork_in_a_thread():
    """The child of a thread that is not the main one, and threads and a pool within it."""
    case = Case()
    prolog = MlaProlog(case.weights)
    case.check(prolog)

    def pool():
        with ThreadPoolExecutor(3) as executor:
            for future in [executor.submit(case.check, prolog, 2) for _ in range(6)]:
                future.result()

    in_threads([lambda: in_child(pool)])
    case.check(prolog)


def thread_pool():
    """One instance and one of its own for each task, from the threads of an executor."""
    cases = [Case(seed) for seed in range(3)]
    shared = [MlaProlog(case.weights) for case in cases]
    with ThreadPoolExecutor(4) as executor:
        tasks = [executor.submit(c.check, p, 3) for c, p in zip(cases, shared, strict=True) for _ in range(4)]
        prologs = [(c, MlaProlog(c.weights, n_threads=n)) for c in cases for n in THREADS]
        tasks += [executor.submit(case.check, prolog, 2) for case, prolog in prologs]
        for task in tasks:
            task.result()


_own_thread = types.ExternalFunction("pthread_self", types.uintp())

_thread_count = types.ExternalFunction("get_num_threads", types.intp())


@kernel
def thread_and_count(index: int, seen: np.ndarray) -> None:
    seen[index, 0], seen[index, 1] = _own_thread(), _thread_count()


def thread_counts():
    """Each instance has its own count for its launches, in its own thread, and leaves the thread's count as it was."""
    case = Case()
    asked = threading.local()
    run = Kernel.__call__

    def spy(self, n_threads, n, *args):
        asked.counts = [*getattr(asked, "counts", []), n_threads]
        run(self, n_threads, n, *args)

    prologs = {n: MlaProlog(case.weights, n_threads=n) for n in range(1, max_threads() + 1)}
    Kernel.__call__ = spy

    def check(n, mine):
        numba.set_num_threads(mine)
        for _ in range(5):
            asked.counts = []
            case.check(prologs[n])
            assert n in asked.counts, (n, mine, asked.counts)
            assert set(asked.counts) <= {n, 1}, (n, mine, asked.counts)
            assert numba.get_num_threads() == mine

    in_threads([lambda n=n, m=m: check(n, m) for n in prologs for m in (1, max_threads())])
    Kernel.__call__ = run
    own = np.zeros((1, 2), np.int64)
    thread_and_count(1, 1, own)
    for n, mine in itertools.product(range(2, max_threads() + 1), range(1, max_threads() + 1)):
        numba.set_num_threads(mine)
        seen = np.zeros((64, 2), np.int64)
        thread_and_count(n, 64, seen)
        assert numba.get_num_threads() == mine
        assert set(seen[seen[:, 0] == own[0, 0], 1].tolist()) <= {n}, (n, mine, seen.tolist())
        assert len(set(seen[:, 0].tolist())) <= n, (n, mine, seen.tolist())


def interrupt_after(seconds, call):
    """Makes the call again and again until a signal that comes after so many seconds raises KeyboardInterrupt.

    Python swallows one that it raises in a `__del__` or a callback of C, of which loading has many: another follows.
    """
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
        while True:
            call()
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)


def interrupted():
    """Ctrl-C at any moment of a call: KeyboardInterrupt, and the next call is exact, with all its threads."""
    case = Case()
    prolog = MlaProlog(case.weights)
    case.check(prolog)
    before = numba.get_num_threads()
    rng = np.random.default_rng(0)
    for i in range(200):
        call = make_call(DIMS, True, T, 3, 16)
        interrupt_after(rng.uniform(1e-5, 3e-3), lambda call=call: prolog(*case.inputs, call.cache, call.out))
        assert numba.get_num_threads() == before, f"after interrupt {i}: {numba.get_num_threads()} threads"
        case.check(prolog)
    case.check(MlaProlog(case.weights))


def interrupted_at_the_thread_count():
    """Ctrl-C at any moment of a call whose launches have another count of threads than this thread has by itself."""
    case = Case()
    prolog = MlaProlog(case.weights, n_threads=2)
    case.check(prolog)
    rng = np.random.default_rng(1)
    for mine in (1, 3) * 50:
        numba.set_num_threads(mine)
        call = make_call(DIMS, True, T, 3, 16)
        interrupt_after(rng.uniform(1e-5, 2e-3), lambda call=call: prolog(*case.inputs, call.cache, call.out))
        assert numba.get_num_threads() == mine
    case.check(prolog)


def interrupted_while_loading():
    """Ctrl-C while packing or the first call compiles its kernels or loads them from the cache."""
    case = Case()
    for delay in (0.01, 0.05, 0.2, 0.4, 0.7, 1.0, 1.5):
        interrupt_after(delay, lambda: case.check(MlaProlog(case.weights)))
    in_threads([lambda: case.check(MlaProlog(case.weights))] * 3)


def interrupted_by_another_process():
    """The signal itself, sent from outside, to a process whose other threads compute."""
    case = Case()
    prolog = MlaProlog(case.weights)
    case.check(prolog)
    done = threading.Event()

    def compute():
        while not done.is_set():
            case.check(prolog)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(3):
            # Later, so that the signal comes to a call and not to the start of its sender.
            sender = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -INT {os.getpid()}"])
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    case.check(prolog)
            sender.wait()
    finally:
        done.set()
        thread.join()
    case.check(prolog)


def exit_with_a_daemon():
    """The interpreter ends while a daemon thread computes, without waiting for it."""
    case = Case()
    prolog = MlaProlog(case.weights)
    call = make_call(DIMS, True, T, 3, 16)

    def compute():
        while True:
            prolog(*case.inputs, call.cache, call.out)

    case.check(prolog)
    for _ in range(3):
        threading.Thread(target=compute, daemon=True).start()
    time.sleep(0.1)


def exit_with_threads():
    """Calls of threads that the interpreter waits for, and of functions that it runs at its end, are exact."""
    case = Case()
    prolog = MlaProlog(case.weights)

    def check(times):
        try:
            case.check(prolog, times)
        except BaseException:  # nobody is there any more to take an exit code from an exception
            traceback.print_exc()
            os._exit(1)

    atexit.register(check, 3)
    threading.Thread(target=check, args=(50,)).start()
    executor = ThreadPoolExecutor(2)
    for _ in range(20):
        executor.submit(check, 1)


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


@kernel
def who(worker: int, first: int, threads: np.ndarray) -> None:
    threads[first + worker] = _own_thread()


@kernel
def another(worker: int, first: int, threads: np.ndarray) -> None:
    threads[first + worker] = _own_thread()


def a_worker_stays_a_thread():
    """What one launch wrote near a worker, the next one's worker of that number reads."""
    n = max_threads()
    seen = set()
    for _ in range(50):
        for launched in (who, another):
            threads = np.zeros(n, np.uintp)
            launched(n, n, 0, threads)
            seen.add(tuple(threads.tolist()))
    assert len(seen) == 1
    assert len(set(*seen)) == n


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # a timer's signal is a Ctrl-C at a moment of our choice
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else it stays ignored where the tests run under nohup
    globals()[sys.argv[1]]()
