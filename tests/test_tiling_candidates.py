"""Candidates, what the model says of them, and blocks that a CpuTiling prescribes, on made-up machines."""

import re
from dataclasses import FrozenInstanceError, replace

import pytest
from helpers.machines import BIG_CACHES, COSTS, FULL, MICRO, SMALL_CACHES, plan_of

from tiling import Costs, CpuTiling, MicroTile, PlanDims, PrologPlan, Rates, plan_prolog, preset
from tiling.choose.candidates import (
    C_BEYOND_L2,
    IDLE,
    MC_BEYOND,
    WALK_BEYOND,
    WALK_BEYOND_L2,
)
from tiling.choose.model import Model, makespan
from tiling.machine import ISA_NAMES
from tiling.stages import StageShape


def chooser_of(t, machine=BIG_CACHES, **kwargs):
    plan = plan_of(t, machine=machine, **kwargs)
    return plan.chooser(plan.tile_plan(t))


def test_makespan_by_hand():
    assert makespan(10, 1, 1) == 1.0
    assert makespan(3, 1, 2) == pytest.approx(2 * 2 / 3)  # one of two workers does 2 of 3
    assert makespan(66, 1, 2) == pytest.approx(1 + 1 / 132)
    assert makespan(4, 4, 2) == 2.0  # one draw takes all
    assert makespan(0, 1, 2) == 1.0


def test_a_product_by_hand():
    shape = StageShape("Matmul_x", 0, "bf16", 1, 256, 64, 1)
    micro = MicroTile(4, 32, 2, 2)
    machine = replace(SMALL_CACHES, l1d_bytes=1000, l2_bytes=10_000)
    costs = replace(COSTS, step_rows=1e-12, call_s=1e-30, walk_s=1e-30, jump_s=1e-30)
    # 8 rows: two register tiles, both panels in one walk, k in two blocks of 128
    work = Model(machine, costs, 1).product(shape, micro, 8, 1, 128, 2)
    assert work.ops == 2 * 8 * 256 * 64
    assert work.padded_ops == pytest.approx(work.ops)
    # B: a block of k of both panels is 16 KB, beyond half of L2: all 32 KB come again from behind it
    assert work.l3_bytes == 256 * 64 * 2
    # A: 8 x 256 bf16, and a tile beside B is beyond L1d, so it comes for each of the 2 panels; C: 8 x 64 x 4 bytes are
    # beyond half of L1d, so they are stored and loaded between the 2 blocks of k
    assert work.l2_bytes == 2 * 8 * 256 * 2 + 2 * 8 * 64 * 4
    # whole k stores no sums; but of a product with two parts, each part's are stored and read again at the end
    assert Model(machine, costs, 1).product(shape, micro, 8, 1, 256, 2).l2_bytes == 2 * 8 * 256 * 2
    halves = replace(shape, k_parts=2)
    assert Model(machine, costs, 1).product(halves, micro, 8, 1, 128, 2).l2_bytes == 2 * 8 * 256 * 2 + 4 * 8 * 64 * 4


def test_rows_that_do_not_fill_a_register_tile_cost_more_each():
    shape = StageShape("Matmul_x", 0, "bf16", 1, 256, 64, 1)
    model = Model(BIG_CACHES, COSTS, 1)
    full, few = (model.product(shape, MICRO["bf16"], rows, 1, 256, 1) for rows in (12, 6))
    assert full.padded_ops == pytest.approx(full.ops)
    assert few.padded_ops / few.ops == pytest.approx((6 + 2) / 6 * 12 / (12 + 2))  # step_rows = 2


@pytest.mark.parametrize("t", [1, 7, 32, 128])
@pytest.mark.parametrize("machine", [BIG_CACHES, SMALL_CACHES], ids=lambda m: m.name)
def test_the_choice_is_the_best_of_all_that_are_listed(t, machine):
    chooser = chooser_of(t, machine, n_threads=2)
    chosen = chooser.choose().values
    for sweep in ("down", "heads"):
        scored = [c for c in chooser.listed() if c.sweep == sweep and c.cost is not None]
        best = min(scored, key=lambda c: c.cost.seconds)
        mine = next(c for c in scored if all(chosen[name] == value for name, value in c.values))
        assert mine.cost.seconds == pytest.approx(best.cost.seconds)


def test_refused_candidates_have_named_reasons():
    def reasons(chooser, sweep):
        return {c.refused for c in chooser.listed() if c.sweep == sweep} - {""}

    tiny = replace(SMALL_CACHES, l2_bytes=20_000)
    assert reasons(chooser_of(128, tiny), "down") == {C_BEYOND_L2, WALK_BEYOND_L2}
    assert reasons(chooser_of(128, tiny), "heads") == {C_BEYOND_L2, WALK_BEYOND_L2, WALK_BEYOND, MC_BEYOND}
    many = chooser_of(8, replace(BIG_CACHES, n_physical_cores=64, n_usable_cores=64), n_threads=64)
    assert reasons(many, "down") == {IDLE}
    walks = [(dict(c.values), c.refused) for c in chooser_of(32, BIG_CACHES, n_threads=2).listed() if c.sweep == "down"]
    # Of L2's 2 MiB, a walk of panels of 32 bf16 columns and the one behind it may take half; a single panel always may.
    beyond = [v["down_walk"] > 1 and 2 * v["down_walk"] * v["down_kc"] * 32 * 2 > 2**20 for v, _ in walks]
    assert [refused == WALK_BEYOND_L2 for _, refused in walks] == beyond
    assert 0 < sum(beyond) < len(walks)
    assert all((c.cost is None) == bool(c.refused) for c in many.listed())
    hopeless = replace(SMALL_CACHES, l1d_bytes=64, l2_bytes=64)
    assert plan_of(128, machine=hopeless).tile_plan(128).t == 128  # where all are refused there is a plan all the same


@pytest.mark.parametrize("t", [1, 32, 128, 512])
def test_whole_k_is_a_candidate_with_any_row_block(t):
    chooser = chooser_of(t, n_threads=2)
    qa = chooser.shapes[0]
    listed = [c for c in chooser.listed() if c.sweep == "down"]
    row_blocks = {dict(c.values)["down_mc"] for c in listed}
    whole = {dict(c.values)["down_mc"] for c in listed if dict(c.values)["down_kc"] == qa.k // 2 and not c.refused}
    assert whole == row_blocks
    assert t in whole


def test_threads_are_woken_once_a_tile():
    dear = [chooser_of(32, n_threads=n, costs=replace(COSTS, launch_s=1)).choose() for n in (1, 2)]
    cheap = [chooser_of(32, n_threads=n).choose() for n in (1, 2)]
    assert [a.seconds - b.seconds for a, b in zip(dear, cheap, strict=True)] == pytest.approx([0, 1], abs=1e-4)
    assert dear[1].down.seconds > 1 > dear[1].heads.seconds + dear[1].rows_s


def test_explain_shows_the_best_and_the_refused():
    plan = plan_of(32, n_threads=2)
    text = plan.explain()
    table = text[text.index("Candidates for a tile of 32:") :].splitlines()
    down = [line for line in table if line.startswith("    mc ")]
    assert len(down) == 12
    seconds = [float(line.split()[8]) for line in down]
    assert seconds == sorted(seconds)
    qa = plan.tile_plan(32).down.qa
    assert down[0].split()[:6] == ["mc", str(qa.mc), "kc", str(qa.kc), "walk", str(qa.walk)]
    assert sum(line.startswith("    qb_mc ") for line in table) == 12
    assert any(re.match(r"    refused: walk_beyond_panels: .* of them, such as qb_mc 32", line) for line in table)
    assert "not_offered: the kernels of avx512vnni are built for this one" in text
    assert "Candidates" not in plan_of(32, preset("default")).explain()


def test_more_tiles_of_tokens_are_weighed():
    (choice, reason), *_ = plan_of(512, n_threads=2).reasons
    assert choice == "unroll_list = [512]"
    assert re.fullmatch(r"512 tokens in 1 nearly even tiles: .* ms with at most 512, .* ms with at most 256", reason)


ALL = CpuTiling(
    unroll_list=(40, 20), n_threads=3, down_mc=10, down_kc=101, down_walk=2, down_grain=3, down_legs=4, rows_q=5,
    rows_k=6, qb_mc=20, qb_kc=64, qb_walk=3, wuk_mc=8, wuk_kc=30, wuk_walk=5, heads_grain=2,
)  # fmt: skip


def test_what_a_tiling_prescribes_is_planned():
    plan = plan_of(60, ALL, n_threads=8)
    assert plan.tiles == ((0, 40), (40, 20))
    assert (plan.origin, plan.tiling) == ("tiling", ALL)
    tile = plan.tile_plan(40)
    qa, qb, kva, wuk = tile.gemms
    assert tile.n_workers == 3
    assert [(g.mc, g.kc, g.walk) for g in (qa, kva)] == [(10, 102, 2), (10, 102, 2)]  # kr is 2
    assert (qb.mc, qb.kc, qb.walk) == (20, 64, 3)
    assert (wuk.mc, wuk.kc, wuk.walk) == (8, 30, 5)
    assert (tile.down.grain, tile.down.legs, tile.heads.grain) == (3, 4, 2)
    assert (tile.rows.rows_q, tile.rows.rows_k) == (5, 6)
    assert {name for name, _, _ in plan.acting} == set(ALL.given())
    assert PrologPlan.from_json(plan.to_json()) == plan


def test_what_is_too_long_is_clipped():
    tile = plan_of(
        4, CpuTiling(down_mc=99, down_kc=10**6, down_walk=999, qb_mc=99, wuk_mc=99, n_threads=999)
    ).tile_plan(4)
    assert [(g.mc, g.kc, g.walk) for g in (tile.down.qa, tile.down.kva)] == [(4, 3584, 48), (4, 3584, 18)]
    assert (tile.heads.qb.mc, tile.heads.wuk.mc, tile.n_workers) == (4, 4, 32)


@pytest.mark.parametrize("name", [name for name in ALL.given() if name not in ("unroll_list", "n_threads")])
def test_one_field_is_taken_and_the_others_are_chosen(name):
    value = ALL.given()[name]
    plan = plan_of(40, CpuTiling(**{name: value}))
    assert plan.chooser(plan.tile_plan(40)).choose().values[name] == (102 if name == "down_kc" else value)
    assert plan.acting == ((name, str(value), "prescribed"),)


def test_an_empty_tiling_is_the_planners_choice():
    own, same = plan_of(300), plan_of(300, CpuTiling())
    assert (own.tiles, own.tile_plans) == (same.tiles, same.tile_plans)
    assert (own.origin, same.origin) == ("planner", "tiling")


def test_a_note_of_a_search_marks_the_plan():
    plan = plan_of(8, CpuTiling(down_walk=2), note="0.9 of the time")
    assert plan.origin == "tuned"
    assert str(plan).splitlines()[0].endswith("; tuned")
    assert plan.reasons[0] == ("tuned", "0.9 of the time")
    assert plan_of(8, note="nothing found").origin == "planner"


def test_tilings_are_frozen_checked_and_round_trip():
    assert CpuTiling.from_json(ALL.to_json()) == ALL
    assert CpuTiling.from_json("{}") == CpuTiling()
    assert CpuTiling(unroll_list=[4, 2]).unroll_list == (4, 2)
    assert str(CpuTiling(unroll_list=[4, 2], down_mc=3)) == "unroll_list [4, 2], down_mc 3"
    assert str(CpuTiling()) == "nothing prescribed"
    assert ALL.replace(down_mc=7).down_mc == 7
    with pytest.raises(FrozenInstanceError):
        ALL.down_mc = 4
    for name, value, error, message in (
        ("down_mc", 0, ValueError, "down_mc: expected at least 1, got 0"),
        ("qb_kc", 1.5, TypeError, r"qb_kc: expected int, got float"),
        ("unroll_list", 8, TypeError, "unroll_list: expected a sequence of ints >= 1, got 8"),
    ):
        with pytest.raises(error, match=message):
            CpuTiling(**{name: value})


@pytest.mark.parametrize("isa", ISA_NAMES)
def test_every_instruction_set_has_its_costs(isa):
    costs = Costs.of_isa(isa)
    assert Costs.from_json(costs.to_json()) == costs
    plan = plan_prolog(FULL, 4, None, replace(BIG_CACHES, isa=isa), micro=MICRO)
    assert plan.costs == costs


def test_costs_take_measured_rates_and_refuse_nonsense():
    costs = COSTS.with_rates(Rates(8e10, 4e11, 2e12, 1e12), 4)
    assert (costs.memory_bytes_s, costs.core_bytes_s) == (8e10, 4e10)
    assert (costs.bf16_flops_s, costs.int8_ops_s) == (2.5e11, 5e11)
    assert costs.l2_bytes_s == COSTS.l2_bytes_s
    with pytest.raises(ValueError, match="call_s: expected a float > 0, got 0"):
        replace(COSTS, call_s=0)
    with pytest.raises(TypeError, match="call_s: expected a float > 0, got '1'"):
        replace(COSTS, call_s="1")
    with pytest.raises(ValueError, match=r"isa: expected one of .*avx2.*, got 'sve'"):
        Costs.of_isa("sve")


def test_slower_memory_takes_longer_by_the_model():
    dims = PlanDims(64, 2, 32, 32, 16, 16)
    plans = [
        plan_prolog(dims, 200, None, BIG_CACHES, micro=MICRO, costs=replace(COSTS, memory_bytes_s=rate), n_threads=2)
        for rate in (1e9, 1e11)
    ]
    slow, fast = (plan.chooser(plan.tile_plan(200)).choose() for plan in plans)
    assert slow.seconds > fast.seconds
