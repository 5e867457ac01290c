"""Run by test_lightning_isa.py: the lightning index by the kernels of an instruction set, against the oracle."""

import sys
from itertools import product

import numpy as np
from helpers.guarded import Guards
from helpers.lightning_calls import KINDS, Shape, assert_same_list, check_random_calls, make_call

import mla_numba.attention.lightning as host
from mla_numba.attention import index_memory
from mla_numba.attention.pages import Pages
from mla_numba.kernels import ISA
from mla_numba.kernels.micro.ukernel import MR, NR
from tiling import gemm


def edges():
    """Heads about a register tile, keys about a panel, codes about a run of 32."""
    heads, keys, widths = (1, MR, MR + 1, 2 * MR + 1), (1, NR - 1, NR, NR + 1, 3 * NR), (1, 31, 32, 33, 64, 65)
    for seed, (n_heads, n_keys, width) in enumerate(product(heads, keys, widths)):
        yield make_call(Shape((1, 2), n_keys, n_heads, width, 5, 7), KINDS[seed % len(KINDS)], seed)
    yield make_call(Shape((3,), 8 * NR + 1, 3, 64, 9, 4, "PA_NZ"), "random", 1, gap=2)
    for width in (128, 300):  # as many steps as pending heads need, and more
        yield make_call(Shape((1,), NR + 1, 2 * MR + 1, width, 5, 7), "random", width)


def plain_python():
    """The same bodies, not compiled."""
    for seed, width in enumerate((1, 32, 40)):
        assert_same_list(make_call(Shape((1, 2), 2 * NR + 3, MR + 1, width, 7, 9), KINDS[seed], seed), (1,))
    assert_same_list(make_call(Shape((1,), 9 * NR, 1, 3, 50, 2), "ties", 1), (1,))
    with np.errstate(invalid="ignore"):  # a scale of Inf or NaN
        assert_same_list(make_call(Shape((2,), 8 * NR + 30, 2, 32, 32, 5, "PA_NZ"), "not numbers", 2), (1,))


def guarded(call, side):
    """A call whose arrays all lie at an unreadable page."""
    guards = Guards(side)

    class GuardedPages(Pages):
        @classmethod
        def of(cls, *args, **kwargs):
            return guards.fields(Pages.of(*args, **kwargs))

    host.Pages, host.aligned_empty, index_memory.aligned_empty = (
        GuardedPages,
        guards.aligned_empty,
        guards.aligned_empty,
    )
    index_memory._kept.clear()
    cache = call.cache
    placed = type(cache)(guards.copy(cache.k, "k"), guards.copy(cache.k_scale, "k_scale"), cache.cache_mode)
    assert_same_list(call._replace(out=guards.fields(call.out), cache=placed), (1,))
    guards.assert_intact()


if __name__ == "__main__":
    expected, scope = sys.argv[1:]
    gemm._APART_BYTES = 0  # between what workers write: there an access would go unseen
    host.LEAST_PRODUCTS = 1  # small calls have several threads, too
    assert expected == ISA.name, f"expected the kernels of {expected}, got those of {ISA.name}"
    if scope == "plain Python":
        plain_python()
    else:
        check_random_calls(3)
        for number, edge in enumerate(edges()):
            guarded(edge, ("begin", "end")[number % 2])
