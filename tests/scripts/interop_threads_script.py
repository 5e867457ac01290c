"""Run in a process of its own: which threads there are. The argument says who is first to start some."""

import os
import sys

from helpers import make_inputs, make_weights, most_workers

from mla_numba import MlaDims, MlaProlog, PagedCache

DIMS = MlaDims(514, 5, 101, 132, 33, 34)
T = 203


def threads():
    return set(os.listdir("/proc/self/task"))


prolog = MlaProlog(make_weights(DIMS, "b"))
assert (prolog.n_threads, most_workers(prolog, T)) == (3, 3)
arrays, cache = make_inputs(DIMS, T, 208), PagedCache.allocate(DIMS, 13, 16)
if sys.argv[1] == "ours":
    prolog(*arrays, cache)

import torch  # noqa: E402

from mla_numba.interop.torch.prolog import TorchCache, TorchProlog, to_torch  # noqa: E402

torch.set_num_threads(3)  # which starts threads of its own, that are not OpenMP's
if sys.argv[1] == "torch":
    torch.ones(10_000_000).add_(1)
pool = threads()

module, inputs, tensors = TorchProlog(prolog), [to_torch(array) for array in arrays], TorchCache.from_numpy(cache)
for _ in range(3):
    module(*inputs, tensors)
    torch.ones(10_000_000).add_(1)
    # A pool of its own for either would be two threads more; a team of another size would end threads and start others.
    assert threads() == pool, (threads(), pool)
