"""Memory is placed near whoever writes it first: who packs a panel of weights is who reads it first in a call."""

import ctypes
import mmap
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers.machines import FULL

from mla_numba import MlaDims, MlaWeights
from mla_numba.base import memory
from mla_numba.base.memory import untouched_empty
from mla_numba.call.planning import MICRO_TILES, this_machine
from mla_numba.call.workspace import cuts_of
from mla_numba.kernels import panels
from mla_numba.kernels.micro.ukernel import NR
from mla_numba.kernels.panels import Share, panels_of
from mla_numba.kernels.threads.groups import Split, draw_tasks, task_at
from mla_numba.kernels.threads.tasks import block_of, block_start, n_counters
from mla_numba.weights import packed_gemm
from tiling import CpuTiling, ceil_div, plan_prolog

WORKERS = (1, 2, 3, 8, 16, 64, 96)
BIG = replace(this_machine(), n_physical_cores=128, n_usable_cores=128)


def packers(n_units, unit, n_workers):
    """Who packs each panel; each is packed once."""
    found = {}
    for worker in range(n_workers):
        for panel in range(*panels_of(Share(n_workers, n_units, unit, 0), worker, n_units * unit)):
            assert panel not in found
            found[panel] = worker
    assert sorted(found) == list(range(n_units * unit))
    return found


def readers(walks, n_blocks, n_workers):
    """Who reads each panel if every worker does its even range of tasks, a token block of a walk of panels each."""
    found = {}
    for worker in range(n_workers):
        n_tasks = len(walks) * n_blocks
        for task in range(block_start(n_tasks, n_workers, worker), block_start(n_tasks, n_workers, worker + 1)):
            for panel in walks[task // n_blocks]:
                found.setdefault(panel, set()).add(worker)
    return found


def walks_down(tile):
    """The panels of each walk of the down-projections."""
    walks, first = [], 0
    for gemm in (tile.down.qa, tile.down.kva):
        n_walks = ceil_div(gemm.n_panels, gemm.walk)
        for index in range(n_walks):
            at, n = block_of(gemm.n_panels, n_walks, index)
            walks.append(range(first + at, first + at + n))
        first += gemm.n_panels
    return walks


def plan_of(t, n_workers, config=None):
    return plan_prolog(FULL, t, config, BIG, micro=MICRO_TILES, n_threads=n_workers)


@pytest.mark.parametrize("n_workers", WORKERS)
@pytest.mark.parametrize("t", [1, 8, 32, 128, 512])
def test_who_packs_a_panel_reads_it_where_a_walk_is_one(t, n_workers):
    (tile,) = plan_of(t, n_workers, CpuTiling(down_walk=1, down_legs=1, n_threads=n_workers)).tile_plans
    walks = walks_down(tile)
    who = packers(len(walks), 1, n_workers)
    by = readers(walks, tile.down.qa.n_row_blocks, n_workers)
    assert all(who[panel] in by[panel] for panel in who)
    heads = [range(head, head + 1) for head in range(tile.heads.qb.batch)]
    who, by = packers(len(heads), 1, n_workers), readers(heads, tile.heads.qb.n_row_blocks, n_workers)
    assert all(who[head] in by[head] for head in who)


@pytest.mark.parametrize("walk", [2, 4, 6])
@pytest.mark.parametrize("n_workers", [2, 4, 8])
def test_of_longer_walks_only_neighbours_differ(walk, n_workers):
    (tile,) = plan_of(32, n_workers, CpuTiling(down_walk=walk, down_legs=1)).tile_plans
    walks = walks_down(tile)
    n_panels = sum(map(len, walks))
    who, by = packers(n_panels, 1, n_workers), readers(walks, tile.down.qa.n_row_blocks, n_workers)
    away = [min(abs(who[panel] - worker) for worker in by[panel]) for panel in who]
    assert max(away) <= 1
    assert sum(away) <= walk * (n_workers - 1)


def of_each(groups):
    return [group for group, size in enumerate(groups) for _ in range(size)]


def rows_of_legs(n_relays, legs, groups):
    """The relays that each group of workers draws legs of, as the kernels draw them."""
    n_workers, found = sum(groups), {}
    starts = np.array([0, *np.cumsum(groups)], np.int64)
    counters, split = np.zeros(n_counters(n_workers), np.int64), Split(0, n_relays * legs, 1, legs)
    for group, worker in enumerate(starts[:-1]):
        n = block_start(n_relays, n_workers, starts[group + 1]) - block_start(n_relays, n_workers, worker)
        for _ in range(n * legs):
            drawn = draw_tasks(counters, worker, n_workers, split, starts, False)
            found.setdefault(task_at(drawn, n_relays, drawn.first) % n_relays, set()).add(group)
    return found


@pytest.mark.parametrize("groups", [(32, 32), (16,) * 4, (24, 40), (31, 32), (48, 48), (3, 5)], ids=str)
@pytest.mark.parametrize("t", [1, 32, 128])
def test_the_group_that_packs_a_weight_draws_its_legs(t, groups):
    n_workers, group_of = sum(groups), of_each(groups)
    (tile,) = plan_of(t, n_workers, CpuTiling(down_walk=1, down_legs=4, heads_legs=3)).tile_plans
    for n_units, n_blocks in ((len(walks_down(tile)), tile.down.qa.n_row_blocks), (128, tile.heads.qb.n_row_blocks)):
        who = packers(n_units, 1, n_workers)
        drawn = rows_of_legs(n_units * n_blocks, 3, groups)
        assert sorted(drawn) == list(range(n_units * n_blocks))
        assert all(len(by) == 1 for by in drawn.values())  # a relay's legs stay with a group
        away = {relay // n_blocks for relay, by in drawn.items() if by != {group_of[who[relay // n_blocks]]}}
        # With several token blocks a panel at a border may fall to either side.
        assert len(away) <= (len(groups) - 1 if n_blocks > 1 else 0)


def test_a_machine_of_several_nodes_has_a_group_for_each():
    machine = replace(BIG, node_cores=(24, 40))
    tile = plan_prolog(FULL, 8, None, machine, micro=MICRO_TILES, n_threads=64).tile_plan(8)
    assert tile.groups == (24, 40)
    assert cuts_of(tile).down.groups.tolist() == cuts_of(tile).heads.groups.tolist() == [0, 24, 64]
    assert plan_prolog(FULL, 8, None, BIG, micro=MICRO_TILES, n_threads=64).tile_plan(8) == replace(tile, groups=())


@pytest.mark.parametrize("unit", [1, 2, 5])
@pytest.mark.parametrize("n_units", [1, 2, 7, 66])
@pytest.mark.parametrize("n_workers", [1, 2, 3, 9, 100])
def test_workers_share_units_evenly_and_never_cut_one(n_workers, n_units, unit):
    who = packers(n_units, unit, n_workers)
    counts = [list(who.values()).count(worker) for worker in range(n_workers)]
    assert max(counts) - min(counts) <= unit
    for first in range(0, n_units * unit, unit):
        assert len({who[panel] for panel in range(first, first + unit)}) == 1


def test_parts_of_a_weight_are_shared_as_one():
    """Panels 5.. of seven: the workers have there what they have of all."""
    who = packers(7, 1, 3)
    here = {5 + panel: worker for worker in range(3) for panel in range(*panels_of(Share(3, 7, 1, 5), worker, 2))}
    assert here == {panel: who[panel] for panel in (5, 6)}


def test_the_kernel_packs_a_worker_s_share_and_nothing_else():
    k, n_panels = 4, 6
    values = np.ones(k * n_panels * NR, np.int8)
    source = panels.Matrices(values, k, np.arange(n_panels * NR), values.size, n_panels * NR)
    order = panels.Order(1, 1, np.arange(NR).reshape(1, NR), np.zeros(1, np.int64))
    share, begun = Share(3, 4, 2, 2), []  # of eight panels the last six
    for n_workers in range(4):
        out = np.zeros(values.size, np.int8)
        panels.pack_panels(1, n_workers, share, source, order, out)
        begun.append(set(np.flatnonzero(out.reshape(n_panels, -1).all(axis=1))))
        assert set(np.flatnonzero(out.reshape(n_panels, -1).any(axis=1))) == begun[-1]
    mine = [set(range(*panels_of(share, worker, n_panels))) for worker in range(3)]
    assert begun == [set(), mine[0], mine[0] | mine[1], set(range(n_panels))]


def test_weights_are_packed_by_heads_and_both_down_projections_as_one(monkeypatch):
    dims = MlaDims(64, 5, 3 * NR, 32, 2 * NR, 16)
    seen = []
    pack = packed_gemm.pack_panels
    monkeypatch.setattr(
        packed_gemm, "pack_panels", lambda *args: seen.append((args[0], args[1], args[2])) or pack(*args)
    )
    MlaWeights.random(dims).pack(1)
    n_kva = ceil_div(dims.kv_lora_rank + dims.qk_rope_head_dim, NR)
    head, latent = ceil_div(dims.qk_nope_head_dim + dims.qk_rope_head_dim, NR), ceil_div(dims.kv_lora_rank, NR)
    assert seen == [
        (1, 1, Share(1, 3 + n_kva, 1, 0)), (1, 1, Share(1, 3 + n_kva, 1, 3)),
        (1, 1, Share(1, 5, head, 0)), (1, 1, Share(1, 5, latent, 0)),
    ]  # fmt: skip


def resident_pages(array):
    """How many pages of an array's memory have a place, None where the system does not say."""
    page = mmap.PAGESIZE
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError, TypeError):
        return None
    begin = array.__array_interface__["data"][0]
    end = begin + array.nbytes
    begin -= begin % page
    n_pages = -(-(end - begin) // page)
    told = (ctypes.c_ubyte * n_pages)()
    if mincore(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), told) != 0:
        return None
    return sum(page & 1 for page in told)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages have a place")
def test_memory_for_panels_has_no_place_before_it_is_written():
    n = 8 << 20
    for _ in range(3):  # memory that was written and given back is not handed out again
        array = untouched_empty(n, np.int8)
        before = resident_pages(array)
        array[:] = 1
        after = resident_pages(array)
        if not after:
            pytest.skip("the system does not say which pages have a place")
        assert (before, after) == (0, n // mmap.PAGESIZE)
        del array


@pytest.mark.parametrize("n", [0, 1, 1000, (1 << 22) + 3])
def test_memory_for_panels_is_an_array_like_any(n):
    array = untouched_empty(n, np.uint16)
    assert (array.shape, array.dtype, array.flags.writeable, array.flags.c_contiguous) == ((n,), np.uint16, True, True)
    assert array.__array_interface__["data"][0] % 64 == 0 or n == 0
    array[:] = np.arange(n)
    assert (array == np.arange(n).astype(np.uint16)).all()


def test_where_there_is_too_little_memory():
    with pytest.raises(MemoryError, match="Unable to allocate"):
        untouched_empty(1 << 60, np.int8)


def test_systems_without_mappings_of_their_own(monkeypatch):
    monkeypatch.delattr(memory.mmap, "MAP_ANONYMOUS", raising=False)
    assert untouched_empty(5 << 20, np.int8).shape == (5 << 20,)
