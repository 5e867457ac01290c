"""Plans for more workers than this machine has threads: its kernels run them, and bits stay those of the reference."""

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

NR = MICRO_TILES["bf16"].nr
SHARED = MlaDims(514, 5, 101, 132, 33, 34)
FIVE_PANELS = MlaDims(1024, 4, 4 * NR, NR - 2, 16, 2)
BLOCKS, BLOCK_SIZE = 3, 16


def assert_exact(dims, mode, t, n_workers, tiling=None):
    """Runs a plan for so many workers twice; the plan, and tasks (n_workers, phases) of the last tile of tokens."""
    weights = make_weights(dims, mode)
    inputs = make_inputs(dims, t, BLOCKS * BLOCK_SIZE, 0)
    plan = plan_prolog(dims, t, tiling, this_machine(), micro=MICRO_TILES, quant=weights.quant, n_threads=n_workers)
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
@pytest.mark.parametrize("tiling", [None, CpuTiling(down_legs=2, down_mc=9, down_kc=96), CpuTiling(down_legs=50)])
def test_bits_and_tasks(tiling, n_workers, mode):
    plan, n_tasks = assert_exact(SHARED, mode, 45, n_workers, tiling)
    tile = plan.tile_plan(45)
    assert tiling is None or tile.down.legs == tiling.down_legs
    assert n_tasks.shape == (n_workers, len(PHASES))
    simulated = plan.drawing(tile)
    assert n_tasks.sum(0).tolist() == [sum(simulated.n_tasks(phase)) for phase in PHASES]


def test_legs_that_the_planner_chose():
    plan, n_tasks = assert_exact(FIVE_PANELS, "none", 12, 3)
    legs = plan.tile_plan(12).down.legs
    assert legs > 1  # whole, five panels would be two rounds of three workers, the last one short of a task
    assert n_tasks[:, PHASES.index("down")].sum() == 5 * legs
