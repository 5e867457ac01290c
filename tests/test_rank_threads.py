"""A layer shared among ranks that are threads: settings that differ, more ranks than panels, errors, copies."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from helpers import assert_none, make_cache, make_inputs, make_weights
from helpers.rank_threads import LeftAloneError, on_ranks

from mla_numba import CpuTiling, MlaDims, PagedCache
from mla_numba.distributed import OtherRankError, ShardedProlog, agreement
from mla_numba.distributed.ways import Link
from mla_numba.oracle.bits import check_output, reference_run

DIMS = MlaDims(130, 7, 50, 64, 33, 32)
BY_LINES = CpuTiling(unroll_list=(8, 4, 1))  # more than one tile of tokens


@pytest.mark.parametrize("cache_mode", ["PA_BSND", "BSND"])
@pytest.mark.parametrize(("mode", "numerics"), [("none", "pypto"), ("a", "pypto"), ("ab smooth", "cann")])
def test_more_ranks_than_panels_of_the_down_projection(mode, numerics, cache_mode):
    """In tiles, to outputs that are given, and again from a bound call."""
    t, weights, quantized = 13, make_weights(DIMS, mode), "b" in mode
    x, cos, sin, slots = make_inputs(DIMS, t, 15)
    if cache_mode == "BSND":
        empty, slots = PagedCache.allocate(DIMS, 3, 5, "BSND", quantized=quantized), None
    else:
        empty = make_cache(DIMS, quantized, 3, 5)
    want = reference_run(weights, x, cos, sin, slots, empty, numerics=numerics)

    def run(comm):
        settings = {"numerics": numerics, "tile_config": BY_LINES, "check_finite": True}
        sharded = ShardedProlog(weights, comm, down="split", n_threads=1, **settings)
        cache, out = empty.copy(), sharded.allocate_output(t)
        every = sharded(x, cos, sin, slots, cache, out, gather=True)
        assert every.q_norm is out.q_norm
        assert_none(check_output(every, cache, want))
        out.query_nope.view(np.uint16)[...] = 1
        call = sharded.bind(x, cos, sin, slots, cache, out)
        assert sharded.run(call, most_threads=1) is out
        heads = np.s_[:, sharded.heads.start : sharded.heads.stop]
        mine = want._replace(query_nope=want.query_nope[heads], query_rope=want.query_rope[heads])
        assert_none(check_output(out, cache, mine))
        return "exact"

    assert on_ranks(7, run) == ["exact"] * 7


def test_ranks_choose_alike_whatever_their_own_plans(monkeypatch):
    """Where one took the way with an exchange and another that without, the first would wait for ever."""
    monkeypatch.setattr("mla_numba.distributed.sharded.measure_link", lambda comm: Link(1e-5, 1e9))
    weights = make_weights(DIMS, "b")

    def run(comm):
        own = {"tile_config": CpuTiling(unroll_list=(1,)), "phase": "prefill"} if comm.rank else {}
        sharded = ShardedProlog(weights, comm, n_threads=1, **own)
        plans = [sharded.plan(t) for t in (1, 8, 64, 512, 4096)]
        return [plan.reason for plan in plans], len(plans[2].local.tiles)

    (first, n_tiles), (second, more_tiles) = on_ranks(2, run)
    assert more_tiles > n_tiles
    assert first == second


class TestOtherInstructionSets:
    """Ranks whose panels have other widths share the heads, and each computes all of the down-projection."""

    @pytest.fixture(autouse=True)
    def on_another_machine(self, monkeypatch):
        def facts(prolog):
            other = {"isa": ["other", 1], "panels": 0} if prolog.weights.head_shard.rank else {}
            return agreement_facts(prolog) | other

        agreement_facts = agreement._facts
        monkeypatch.setattr(agreement, "_facts", facts)

    def test_are_exact(self):
        weights, inputs, empty = make_weights(DIMS, "b"), make_inputs(DIMS, 9, 15), make_cache(DIMS, True, 3, 5)
        want = reference_run(weights, *inputs, empty)

        def run(comm):
            cache = empty.copy()
            sharded = ShardedProlog(weights, comm, n_threads=1)
            assert_none(check_output(sharded(*inputs, cache, gather=True), cache, want))
            return sharded.plan(9).reason

        assert on_ranks(2, run) == ["ranks have other instruction sets, and so other panels"] * 2

    def test_cannot_split_it(self):
        errors = on_ranks(2, lambda comm: ShardedProlog(make_weights(DIMS, "b"), comm, down="split", n_threads=1))
        assert all(type(error) is ValueError and str(error).startswith("down: expected 'repl") for error in errors)

    def test_are_refused_with_other_norms(self):
        weights = make_weights(DIMS, "b")
        other = replace(weights, gamma_ckv=weights.gamma_ckv[::-1].copy())
        errors = on_ranks(2, lambda comm: ShardedProlog(other if comm.rank else weights, comm, n_threads=1))
        assert all(type(error) is ValueError and str(error).startswith("norms, by checksum:") for error in errors)


def test_an_error_in_a_call_leaves_everything_as_it_was_on_the_others():
    weights, t = make_weights(DIMS, "b"), 4

    def run(comm):
        sharded = ShardedProlog(weights, comm, down="split", n_threads=1)
        x, *others = make_inputs(DIMS, t, 15)
        cache, out = make_cache(DIMS, True, 3, 5), sharded.allocate_output(t)
        before = [array.tobytes() for array in (*out, *cache.arrays().values())]
        with pytest.raises(ValueError if comm.rank else LeftAloneError):
            sharded(x[:, :-1] if comm.rank else x, *others, cache, out)
        assert [array.tobytes() for array in (*out, *cache.arrays().values())] == before
        return "as it was"

    assert on_ranks(2, run) == ["as it was"] * 2


def test_an_error_while_one_rank_makes_its_prolog_is_told_to_the_others():
    weights = make_weights(DIMS, "b")
    told, own = on_ranks(2, lambda comm: ShardedProlog(None if comm.rank else weights, comm, n_threads=1))
    assert type(own) is TypeError
    assert type(told) is OtherRankError
    assert str(told) == str(pickle.loads(pickle.dumps(told))) == f"rank 1 of 2: TypeError: {own}"


@pytest.mark.parametrize("again", [pickle.dumps, copy.copy, copy.deepcopy])
def test_no_copies(again):
    (error,) = on_ranks(1, lambda comm: again(ShardedProlog(make_weights(DIMS, "b"), comm, n_threads=1)))
    assert type(error) is TypeError
    assert str(error).startswith("ShardedProlog: expected to stay in its process")


def test_copies_of_a_module_share_it():
    pytest.importorskip("torch")
    from mla_numba.interop.torch import TorchProlog

    def run(comm):
        module = TorchProlog(make_weights(DIMS, "b"), group=comm, n_threads=1)
        return copy.deepcopy(module).prolog is module.prolog

    assert on_ranks(1, run) == [True]
