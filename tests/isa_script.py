"""Run by test_isa.py: the kernels of the instruction set that is named, against the reference."""

import sys

from helpers import MODES, THREADS, assert_exact, make_weights, most_workers

from mla_numba import MlaDims
from mla_numba.kernels import ISA

MR, NR = ISA.mr, ISA.nr
DIMS = (MlaDims(2, 1, 1, 4, 1, 2), MlaDims(50, 5, 17, 20, 10, 10), MlaDims(130, 3, NR + 1, NR + 4, 33, 34))


def plain_python():
    """The same bodies, not compiled."""
    for mode in MODES:
        for dims in (MlaDims(16, 2, 5, 8, 3, 4), MlaDims(6, 1, 17, 4, 1, 2), MlaDims(10, 1, 3, 12, 5, 6)):
            for t in (0, 1, 2, 3):
                assert_exact(make_weights(dims, mode, seed=t), t, threads=(1,), n_blocks=2, block_size=3, seed=t)
    assert_exact(make_weights(MlaDims(8, 1, 5, 32, 3, 16), "b"), 3, n_blocks=2, block_size=3, cache_mode="PA_NZ")


def small(modes):
    for mode in modes:
        for dims in DIMS:
            for t in (0, 1, MR - 1, MR, MR + 1, 3 * MR + 1):
                assert_exact(make_weights(dims, mode, seed=t), t, block_size=5, n_blocks=3, seed=t)


def larger(modes):
    """Work enough to be shared among threads."""
    for mode in modes:
        for t in (1, MR + 1, 40):
            prologs = assert_exact(make_weights(MlaDims(512, 4, 192, 64, 32, 16), mode), t, cache_mode="PA_NZ")
        assert [most_workers(p, 40) for p in prologs] == list(THREADS)


if __name__ == "__main__":
    expected, scope = sys.argv[1:]
    assert expected == ISA.name, f"expected the kernels of {expected}, got those of {ISA.name}"
    if scope == "plain Python":
        plain_python()
    elif scope == "one mode":
        small(["b"])
    elif scope == "two modes":
        small(["none", "ab smooth"])
    else:
        small(MODES)
        larger(["ab smooth"])
