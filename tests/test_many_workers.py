"""Plans for more workers than this machine has threads: its kernels run them, and bits stay those of the reference."""

import random
from dataclasses import replace

import pytest
from helpers import make_call, make_inputs, make_weights
from helpers.calls import reference_run

from mla_numba import CpuTiling, MlaDims, MlaProlog
from mla_numba.call.planning import MICRO_TILES, this_machine
from mla_numba.call.workspace import Memory
from mla_numba.kernels import max_threads
from mla_numba.kernels.sweeps.arguments import TokenTile
from mla_numba.kernels.sweeps.phase import HEADS, PACK, PHASES
from mla_numba.kernels.sweeps.tile import prolog_tile
from tiling import plan_prolog

MR, NR = MICRO_TILES["bf16"].mr, MICRO_TILES["bf16"].nr
SHARED = MlaDims(514, 5, 101, 132, 33, 34)
FIVE_PANELS = MlaDims(4096, 4, 4 * NR, NR - 2, 16, 2)
BLOCKS, BLOCK_SIZE = 3, 16
BIG = replace(this_machine(), n_physical_cores=64, n_usable_cores=64)


def assert_exact(dims, mode, t, n_workers, tiling=None, machine=None):
    """Runs a plan for so many workers twice; the plan, and tasks (n_workers, phases) of the last tile of tokens."""
    weights = make_weights(dims, mode)
    inputs = make_inputs(dims, t, BLOCKS * BLOCK_SIZE, 0)
    machine = machine or this_machine()
    plan = plan_prolog(dims, t, tiling, machine, micro=MICRO_TILES, quant=weights.quant, n_threads=n_workers)
    prolog, memory = MlaProlog(weights), Memory(plan)
    for _ in range(2):
        call = make_call(dims, "b" in weights.quant, t, BLOCKS, BLOCK_SIZE)
        want = reference_run(weights, *inputs, call.cache)
        bound = prolog.bind(*inputs, call.cache, call.out)
        for t0, factor in plan.tiles:
            cuts, buffers, taken = memory.prepare(plan.tile_plan(factor))
            layer, tile = prolog.weights.arguments_for("pypto"), TokenTile(t0, factor, PACK, HEADS, True)
            assert cuts.n_workers == n_workers
            prolog_tile(max_threads(), n_workers, bound.tokens_now(), bound.caches, layer, *taken, tile)
        call.assert_equals(want)
    return plan, buffers.spans[:, :, 2]


@pytest.mark.parametrize("mode", ["none", "b", "ab smooth"])
@pytest.mark.parametrize("n_workers", [3, 64])
@pytest.mark.parametrize(
    "tiling",
    [
        None,
        CpuTiling(down_legs=2, down_mc=9, down_kc=96),
        CpuTiling(heads_legs=3, qb_mc=13, qb_kc=32, qb_walk=1),
        CpuTiling(down_legs=50, heads_legs=2),
        CpuTiling(down_legs=3, heads_legs=2, n_groups=2, down_mc=9, qb_mc=13),
        CpuTiling(down_legs=50, heads_legs=3, n_groups=4),
    ],
)
def test_bits_and_tasks(tiling, n_workers, mode):
    plan, n_tasks = assert_exact(SHARED, mode, 45, n_workers, tiling)
    tile = plan.tile_plan(45)
    if tiling is not None:
        assert tiling.down_legs in (None, tile.down.legs)
        assert tiling.heads_legs in (None, tile.heads.legs)
    assert n_tasks.shape == (n_workers, len(PHASES))
    simulated = plan.drawing(tile)
    assert n_tasks.sum(0).tolist() == [sum(simulated.n_tasks(phase)) for phase in PHASES]


@pytest.mark.parametrize("seed", range(10))
def test_bits_on_any_number_of_groups(seed):
    """Groups that are even or not, more than relays, and of a single worker; tasks with legs and without."""
    rng = random.Random(seed)
    for _ in range(20):
        dims = MlaDims(
            2 * rng.randint(20, 80), rng.randint(1, 9), rng.randint(1, 3 * NR), 4 * rng.randint(1, 9),
            rng.randint(1, NR), 2 * rng.randint(1, 9),
        )  # fmt: skip
        t, n_workers = rng.randint(1, MR + 2), rng.randint(1, 12)
        tiling = CpuTiling(
            n_groups=rng.choice([None, 1, 2, 2, 4, 4, 7]), n_threads=n_workers, down_legs=rng.randint(1, 9),
            heads_legs=rng.randint(1, 3), down_grain=rng.choice([1, 1, 1, 2, 5]), heads_grain=rng.choice([1, 1, 3]),
            down_mc=rng.randint(1, t), qb_mc=rng.randint(1, t), qb_walk=1,
        )  # fmt: skip
        sizes = [rng.randint(1, 4) for _ in range(rng.randint(2, 4))]
        machine = this_machine() if tiling.n_groups else replace(BIG, node_cores=tuple(sizes))
        plan, n_tasks = assert_exact(dims, rng.choice(["none", "b", "ab smooth"]), t, n_workers, tiling, machine)
        tile = plan.tile_plan(t)
        assert len(tile.groups) != 1
        assert sum(tile.groups) in (0, n_workers)
        assert n_tasks.sum(0).tolist() == [sum(plan.drawing(tile).n_tasks(phase)) for phase in PHASES]


def test_legs_that_the_planner_chose():
    plan, n_tasks = assert_exact(FIVE_PANELS, "none", MR, 3)
    legs = plan.tile_plan(MR).down.legs
    assert legs > 1  # whole, five panels would be two rounds of three workers, the last one short of a task
    assert n_tasks[:, PHASES.index("down")].sum() == 5 * legs


def test_what_workers_write_lies_a_page_apart():
    """And what the legs of relays hand on shares no pair of cache lines."""
    for t, tiling in ((5, None), (45, CpuTiling(qb_mc=13, down_mc=7)), (45, CpuTiling(down_legs=3, heads_legs=2))):
        plan = plan_prolog(SHARED, t, tiling, this_machine(), micro=MICRO_TILES, n_threads=3)
        tile = plan.tile_plan(t)
        _, buffers, _ = Memory(plan).prepare(tile)
        accumulators, y = max(gemm.accumulator_bytes for gemm in tile.gemms), 4 * SHARED.q_lora_rank
        used = {"c_up": accumulators, "c_uk": accumulators, "y": y}
        handed_on = {"c_down": (tile.down, accumulators), "q_head": (tile.heads, tile.heads.q_head_bytes)}
        for name, (sweep, n_bytes) in handed_on.items():
            if sweep.legs == 1:
                used[name] = n_bytes
                continue
            for row in getattr(buffers, name):
                assert row.__array_interface__["data"][0] % 128 == row.nbytes % 128 == 0
        for name, n_bytes in used.items():
            array = getattr(buffers, name)
            assert array.strides[0] - n_bytes >= 4096, name
