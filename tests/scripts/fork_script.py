"""Run by test_kernel_cache.py, one process a scenario: forks while another thread makes a first call."""

import os
import signal
import sys
import threading
import time

import numba.np.ufunc.parallel
import pytest
from numba.core.compiler_lock import global_compiler_lock

import mla_numba as mla
from mla_numba.kernels.jit import fork as compiler_fork

DIMS = mla.MlaDims(64, 2, 32, 32, 16, 8)


def pack():
    return bytes(mla.MlaWeights.random(DIMS).pack(1).down.panels)


def fork(function):
    """The process number of a child that runs it, and that a signal ends if it hangs."""
    pid = os.fork()
    if not pid:
        signal.alarm(280)
        code = 1
        try:
            function()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def assert_well(pids):
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert ended == [0] * len(pids), ended


def forks_beside_a_call(n, pause):
    packed = []

    def check():
        assert packed == [] or pack() == packed[0]
        pack()

    thread = threading.Thread(target=lambda: packed.append(pack()))
    thread.start()
    pids = []
    for _ in range(n):
        pids.append(fork(check))
        time.sleep(pause)
    thread.join()
    assert len(packed) == 1
    assert_well(pids)


def fork_while_compiling():
    """On an empty cache."""
    forks_beside_a_call(4, 0.3)


def fork_while_loading():
    """On a filled one."""
    forks_beside_a_call(12, 0.015)


def fork_amid_a_compilation():
    """The parent does not wait: what is compiled works in the child, and what is not says so instead of hanging."""
    compiler_fork.LONGEST_WAIT_S = 0.0
    held, done = threading.Event(), threading.Event()

    def compile_long():
        with global_compiler_lock:
            held.set()
            done.wait()

    def refused():
        with pytest.raises(RuntimeError, match="make a first call before forking"):
            pack()

    def fork_beside_a_compiler(function):
        held.clear()
        done.clear()
        thread = threading.Thread(target=compile_long)
        thread.start()
        held.wait()
        pid = fork(function)
        done.set()
        thread.join()
        assert_well([pid])

    fork_beside_a_compiler(refused)
    packed = pack()

    def same():
        assert pack() == packed

    fork_beside_a_compiler(same)


def imports_of_a_first_call():
    """Whatever a first call imports, it imports under a lock that a fork waits for.

    So is a name of the package when it is first asked for, under a lock that is the package's own.
    """
    _ = mla.MlaWeights
    outside = []

    class Finder:
        def find_spec(self, name, path=None, target=None):
            locks = global_compiler_lock._lock, numba.np.ufunc.parallel._backend_init_thread_lock
            if not any(lock._is_owned() for lock in locks):
                outside.append(name)

    sys.meta_path.insert(0, Finder())
    pack()
    assert outside == []
