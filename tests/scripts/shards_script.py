"""Run by test_distributed.py on each of several ranks: a layer shared by heads, against the reference.

`python shards_script.py mpi|gloo WHAT`
"""

import atexit
import os
import signal
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from helpers import MODES, assert_none, make_cache, make_inputs, make_weights

from mla_numba import MlaDims, PrologOutput
from mla_numba.distributed import OtherRankError, ShardedProlog
from mla_numba.oracle.bits import check_output, reference_run

DIMS = MlaDims(130, 7, 50, 64, 33, 32)  # 7 heads: of the numbers of ranks that are tried only 1 divides them
WAYS = ("replicated", "split")


class Ranks:
    """The communicator that `ShardedProlog` is given, and what the tests need to know of it."""

    def __init__(self, kind):
        self.kind = kind
        if kind == "mpi":
            from mpi4py import MPI

            self.given = MPI.COMM_WORLD
            self.rank, self.size = self.given.rank, self.given.size
            return
        from torch import distributed

        distributed.init_process_group("gloo")
        self.given = distributed.group.WORLD
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        atexit.register(distributed.destroy_process_group)

    def end(self):
        """Ends the group while all ranks are there, and the process without its own end.

        PyTorch 2.13 aborts one rank in ten there ("terminate called without an active exception"), also without us.
        """
        if self.kind == "gloo":
            from torch import distributed

            distributed.barrier()
            distributed.destroy_process_group()
            sys.stdout.flush()
            os._exit(0)


def check(ranks, weights, inputs, cache_mode="PA_BSND", **settings):
    """Both ways of the down-projection: a shard of the weights and a rank's queries, all weights and all queries."""
    t, quantized = len(inputs.x), "b" in weights.quant
    for gather, way in enumerate(WAYS):
        cache = make_cache(weights.dims, quantized, 3, 5, cache_mode)
        want = reference_run(weights, *inputs, cache, **settings)
        given = weights if gather else weights.shard(ranks.rank, ranks.size)
        sharded = ShardedProlog(given, ranks.given, down=way, n_threads=1, **settings)
        assert sharded.plan(t).down == way
        out, times = sharded.profile(*inputs, cache, gather=bool(gather))
        heads = range(weights.dims.num_attention_heads) if gather else sharded.heads
        mine = np.s_[:, heads.start : heads.stop]
        want = want._replace(query_nope=want.query_nope[mine], query_rope=want.query_rope[mine])
        assert_none(check_output(out, cache, want))
        assert (times.exchanged_bytes > 0) == (way == "split" and ranks.size > 1 and t > 0)


def exact(ranks):
    """Every mode, with slots of -1 and duplicates, and uneven heads."""
    n = 0
    for mode in MODES:
        for t, cache_mode in product((0, 1, 14), ("PA_BSND", "PA_NZ")):
            weights = make_weights(DIMS, mode, seed=t)
            check(ranks, weights, make_inputs(DIMS, t, 15, seed=t), cache_mode)
            n += 2
    if ranks.kind == "mpi":
        from mla_numba.distributed import mpi

        mpi._MOST_COUNTS = 1  # as if there were more bytes than a library counts
    weights = make_weights(DIMS, "ab smooth")
    check(ranks, weights, make_inputs(DIMS, 40, 15), numerics="cann")
    sys.stdout.write(f"{n + 2} calls are exact\n")


def torch_module(ranks):
    """A module of each rank's heads, in both ways."""
    import torch

    from mla_numba.interop.torch import TorchCache, TorchProlog, to_numpy, to_torch

    weights = make_weights(DIMS, "b")
    inputs = make_inputs(DIMS, 9, 15)
    cache = make_cache(DIMS, True, 3, 5)
    want = reference_run(weights, *inputs, cache)
    for way in WAYS:
        module = TorchProlog(weights, group=ranks.given, down=way, n_threads=1)
        written = cache.copy()
        with torch.no_grad():
            out = module(*map(to_torch, inputs), TorchCache.from_numpy(written))
        heads = module.prolog.heads
        mine = np.s_[:, heads.start : heads.stop]
        got = PrologOutput(*(to_numpy(tensor) for tensor in out))
        wanted = want._replace(query_nope=want.query_nope[mine], query_rope=want.query_rope[mine])
        assert_none(check_output(got, written, wanted))
    sys.stdout.write("modules are exact\n")


def chosen(ranks):
    """By itself it chooses, for every rank alike, and computes what it has chosen."""
    weights = make_weights(DIMS, "b").pack()
    sharded = ShardedProlog(weights, ranks.given, n_threads=1)
    plans = [sharded.plan(t) for t in (0, 1, 8, 500)]
    assert all(plan.reason in str(plan) for plan in plans)
    said = " ".join(plan.down for plan in plans).encode().ljust(60)
    heard = sharded._comm.all_gather(np.frombuffer(said, np.uint8), [60] * ranks.size).reshape(ranks.size, 60)
    assert (heard == heard[0]).all()
    assert np.shares_memory(sharded.weights.uk.panels, weights.uk.panels)
    sys.stdout.write(f"{plans[0].down}\n")


def refused(ranks):
    """Ranks that cannot work together: an error on each of them, and none waits for ever."""
    weights = make_weights(DIMS, "b")
    odd = ranks.rank == ranks.size - 1

    def expect(kind, text, given, **settings):
        with pytest.raises(kind, match=text):
            ShardedProlog(given, ranks.given, n_threads=1, **settings)

    others = make_weights(MlaDims(132, 7, 50, 64, 33, 32), "b")
    expect(ValueError, "layer: expected the same on all ranks", others if odd else weights)
    more_heads = make_weights(MlaDims(130, 8, 50, 64, 33, 32), "b")
    expect(ValueError, "layer: expected the same on all ranks", more_heads if odd else weights)
    expect(ValueError, "quant: expected the same on all ranks", make_weights(DIMS, "ab") if odd else weights)
    expect(ValueError, "norms, by checksum: expected the same", make_weights(DIMS, "b", seed=1) if odd else weights)
    down = replace(weights, w_dq=np.roll(weights.w_dq, 1))
    expect(ValueError, "w_dq and w_dkv_kr, by checksum: expected the same", down if odd else weights)
    epsilon = replace(weights, epsilon_cq=0.5)
    expect(ValueError, "epsilons: expected the same on all ranks", epsilon if odd else weights)
    expect(ValueError, "down: expected the same", weights, down="split" if odd else "auto")
    expect(ValueError, "weights: expected the shard of rank", weights.shard(0, ranks.size))
    kind, text = (TypeError, "weights: expected MlaWeights") if odd else (OtherRankError, "TypeError: weights")
    expect(kind, text, None if odd else weights)
    few = make_weights(MlaDims(130, 1, 50, 64, 33, 32), "b")
    expect(ValueError, "size: expected at most 1 ranks, one for each head", few)
    sys.stdout.write("all refused\n")


def fails(ranks):
    """One rank raises in a call, while the others wait for its columns."""
    weights = make_weights(DIMS, "b")
    sharded = ShardedProlog(weights, ranks.given, down="split", n_threads=1)
    x, *others = make_inputs(DIMS, 4, 15)
    if ranks.rank == ranks.size - 1:
        x = x[:, :-1]
    sharded(x, *others, make_cache(DIMS, True, 3, 5))


def killed(ranks):
    """One rank is killed in the midst of its work."""
    weights = make_weights(DIMS, "b")
    sharded = ShardedProlog(weights, ranks.given, down="split", n_threads=1)
    if ranks.rank == ranks.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    sharded(*make_inputs(DIMS, 4, 15), make_cache(DIMS, True, 3, 5))


if __name__ == "__main__":
    kind, what = sys.argv[1:]
    tests = (exact, torch_module, chosen, refused, fails, killed)
    ranks = Ranks(kind)
    {test.__name__: test for test in tests}[what](ranks)
    ranks.end()
