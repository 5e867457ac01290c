"""The simulation of drawing tasks, by hand and on plans for many cores, and that plans keep many cores busy."""

from dataclasses import replace

import pytest
from helpers.machines import FULL, MICRO, plan_of

from tiling import Costs, CpuTiling, Machine, plan_prolog
from tiling.choose.legs import head_leg_panels, longest_leg, useful_legs
from tiling.plan.drawing import PATIENCE_S, Crew, PhaseTasks, draw_tasks
from tiling.plan.groups import even_groups, groups_of_nodes, groups_text

THREADS = (1, 2, 4, 8, 16, 32, 64, 128)


def test_three_tasks_by_two_workers():
    drawing = draw_tasks((PhaseTasks("heads", (1.0, 1.0, 1.0)),), Crew(2))
    # ranges 0..1 and 1..3: worker 0 takes what is left of the other's
    assert [(span.worker, span.begin_s, span.end_s) for span in drawing.spans] == [(0, 0, 1), (1, 0, 1), (0, 1, 2)]
    assert (drawing.n_tasks("heads"), drawing.seconds, drawing.idle) == ((2, 1), 2.0, 0.25)


def test_a_worker_that_is_held_up_leaves_its_tasks_to_others():
    drawing = draw_tasks((PhaseTasks("heads", (5.0, 1.0, 1.0, 1.0, 1.0)),), Crew(2))
    # ranges 0..2 and 2..5: while worker 0 is at its first task, the other does its own three and then task 1
    assert drawing.n_tasks("heads") == (1, 4)
    assert (drawing.seconds, drawing.idle) == (5.0, pytest.approx(0.1))


def test_a_grain_is_drawn_at_once():
    assert draw_tasks((PhaseTasks("heads", (1.0,) * 4, grain=2),), Crew(2)).n_tasks("heads") == (2, 2)
    assert draw_tasks((PhaseTasks("heads", (1.0,) * 3, grain=3),), Crew(2)).n_tasks("heads") == (1, 2)


def test_phases_that_wait_and_one_that_does_not():
    phases = (
        PhaseTasks("down", (1.0, 3.0)),
        PhaseTasks("query", (1.0,), after="down"),
        PhaseTasks("key", (2.0,)),
        PhaseTasks("heads", (1.0, 1.0), after="query"),
    )
    drawing = draw_tasks(phases, Crew(2))
    # worker 0 waits for the other and takes the query's row, and the other, which finds none, the key's meanwhile
    assert [(s.phase, s.worker, s.begin_s, s.end_s) for s in drawing.spans] == [
        ("down", 0, 0, 1), ("down", 1, 0, 3), ("query", 0, 3, 4), ("key", 1, 3, 5), ("heads", 0, 4, 5),
        ("heads", 0, 5, 6),  # both are free at 5
    ]  # fmt: skip
    assert drawing.seconds == 6.0
    sweeps = drawing.sweeps
    assert [sweep.seconds for sweep in sweeps.values()] == [3.0, 1.0, 2.0]
    assert [sweep.idle for sweep in sweeps.values()] == pytest.approx([2 / 6, 0.0, 1 / 4])
    assert sum(sweep.idle * sweep.seconds for sweep in sweeps.values()) == pytest.approx(drawing.idle * 6)
    assert str(drawing).startswith("idle: 25.0% at 2 workers (down 33.3% of 3000.0000 ms, ")


def test_legs_go_on_in_order():
    even = draw_tasks((PhaseTasks("down", (0.5,) * 6, n_relays=3),), Crew(2))  # 3 relays of 2 legs
    assert (even.seconds, even.idle, even.n_tasks("down")) == (1.5, 0.0, (3, 3))
    alone = draw_tasks((PhaseTasks("down", (0.5,) * 2, n_relays=1),), Crew(2))  # the second leg waits for the first
    assert (alone.seconds, alone.idle, alone.n_tasks("down")) == (1.0, 0.5, (1, 1))


def test_groups_draw_from_rows_of_their_own():
    weights = ((8.0, 0.0), (8.0, 0.0), (0.0, 8.0), (0.0, 8.0)) * 2
    legs = PhaseTasks("down", (1.0,) * 8, n_relays=4, is_grouped=True, weights=weights)
    one_row = draw_tasks((legs,), Crew(2, nodes=(1, 1)))
    assert [span.worker for span in one_row.spans] == [0, 1] * 4  # tasks in order, half of them far
    assert (one_row.far, one_row.sweeps["down"].far, one_row.seconds, one_row.idle) == (0.5, 0.5, 4.0, 0.0)
    groups = draw_tasks((legs,), Crew(2, (1, 1), (1, 1), far=3.0))
    assert (groups.far, groups.seconds, groups.n_tasks("down")) == (0.0, 4.0, (4, 4))
    assert "; weights from another node: 0.0%" in str(groups)
    far = draw_tasks((legs,), Crew(2, nodes=(1, 1), far=3.0))
    # worker 0 is done with relays 0 and 3 while the other has relay 1 from afar
    assert [(span.worker, span.begin_s, span.end_s) for span in far.spans[:3]] == [(0, 0, 1), (1, 0, 3), (0, 1, 4)]
    assert far.spans[1].far_bytes == far.spans[1].weight_bytes == 8.0
    assert far.seconds > 4.0


def test_a_group_that_is_done_helps_the_next_a_moment_later():
    legs = PhaseTasks("down", (1.0,) * 6, n_relays=3, is_grouped=True)
    drawing = draw_tasks((legs,), Crew(2, (1, 1)))  # of three relays the first group has one
    first = [span for span in drawing.spans if span.worker == 0]
    assert [span.begin_s for span in first] == pytest.approx([0.0, 1.0, 2.0 + PATIENCE_S])
    assert (drawing.n_tasks("down"), drawing.seconds) == ((3, 3), pytest.approx(3.0 + PATIENCE_S))
    assert "another node" not in str(drawing)
    # A group that is left to itself for so long is done: nobody helps it.
    short = legs._replace(seconds=(PATIENCE_S / 4,) * 6)
    assert draw_tasks((short,), Crew(2, (1, 1))).n_tasks("down") == (2, 4)
    whole = PhaseTasks("heads", (1.0,) * 3, is_grouped=True)  # 0 and 1, 2: worker 1 has none of its own
    spans = draw_tasks((whole,), Crew(4, (2, 2))).spans
    assert [(span.worker, span.begin_s) for span in spans] == [(0, 0.0), (2, 0.0), (3, 0.0)]


def test_no_tasks_take_no_time():
    drawing = draw_tasks((PhaseTasks("heads", ()),), Crew(3))
    assert (drawing.seconds, drawing.idle, drawing.n_tasks("heads")) == (0.0, 0.0, (0, 0, 0))


def test_legs_are_as_few_as_make_rounds_even():
    assert [useful_legs(66, n, 99) for n in (1, 2, 3, 4, 8)] == [[1], [1], [1], [1], [1, 2]]
    assert [useful_legs(66, n, 99)[-1] for n in (16, 32, 64)] == [4, 8, 16]
    assert useful_legs(66, 66, 99) == useful_legs(66, 128, 99) == [1]  # legs of a relay run one after the other
    assert [useful_legs(128, 48, most) for most in (1, 2, 3, 9)] == [[1], [1], [1, 3], [1, 3]]  # 2 are as uneven as 1


def test_legs_of_a_head_by_hand():
    # six panels, and the product with w_uk as long as 2.67 of them: two legs of three panels, and one of that alone
    assert [head_leg_panels(6, 2.67, legs) for legs in (1, 2, 3, 7)] == [0, 4, 3, 1]
    assert longest_leg(6, 2.67, 2) == pytest.approx(4.67 * 2 / 8.67)
    assert longest_leg(6, 2.67, 3) == pytest.approx(3 * 3 / 8.67)
    assert longest_leg(6, 2.67, 7) == pytest.approx(2.67 * 7 / 8.67)


@pytest.mark.parametrize("quant", ["none", "b", "ab"])
@pytest.mark.parametrize("bytes_s_a_worker", [1e9, 7e9, 4e10])
@pytest.mark.parametrize("n_threads", THREADS)
def test_plans_keep_many_cores_busy(n_threads, bytes_s_a_worker, quant):
    machine = Machine("many cores", "x86_64", "avx512bf16", 48 << 10, 1 << 20, 32 << 20, n_threads, n_threads)
    costs = replace(Costs.of_isa("avx512bf16"), memory_bytes_s=n_threads * bytes_s_a_worker, core_bytes_s=4e10)
    for t in (1, 8, 32, 128, 512):
        plan = plan_prolog(FULL, t, None, machine, micro=MICRO, quant=quant, costs=costs)
        drawings = [plan.drawing(plan.tile_plan(factor)) for _, factor in plan.tiles]
        seconds = sum(drawing.seconds for drawing in drawings)
        idle = sum(drawing.idle * drawing.seconds for drawing in drawings) / seconds
        n_panels = sum(gemm.n_panels for gemm in (plan.tile_plans[0].down.qa, plan.tile_plans[0].down.kva))
        # A panel of few tokens is not cut among workers: with more of them than panels some have none.
        assert idle <= (0.08 if n_threads <= n_panels or t > 2 * MICRO["bf16"].mr else 0.35), (t, str(drawings[0]))
        for drawing, (_, factor) in zip(drawings, plan.tiles, strict=True):
            tile = plan.tile_plan(factor)
            assert sum(drawing.n_tasks("down")) == tile.down.n_tasks
            assert sum(drawing.n_tasks("query")) + sum(drawing.n_tasks("key")) == tile.rows.n_tasks
            assert sum(drawing.n_tasks("heads")) == tile.heads.n_tasks


@pytest.mark.parametrize("nodes", [(32, 32), (16,) * 4], ids=str)
@pytest.mark.parametrize("quant", ["none", "b", "ab"])
def test_groups_read_their_own_weights_and_are_as_busy(quant, nodes):
    machine = Machine("nodes", "x86_64", "avx512bf16", 48 << 10, 1 << 20, 32 << 20, 64, 64, nodes)
    costs = replace(Costs.of_isa("avx512bf16"), memory_bytes_s=64 * 7e9, core_bytes_s=4e10)
    for t in (1, 8, 32, 128, 512):
        groups, one_row = (
            plan_prolog(FULL, t, tiling, machine, micro=MICRO, quant=quant, costs=costs)
            for tiling in (None, CpuTiling(n_groups=1))
        )
        tile, before = groups.tile_plan(t), one_row.tile_plan(t)
        assert (tile.groups, before.groups) == (nodes, ())
        drawing, of_one = groups.drawing(tile), one_row.drawing(before)
        has_panels = tile.down.qa.n_panels + tile.down.kva.n_panels >= 64 or t > 2 * MICRO["bf16"].mr
        assert drawing.idle <= min(of_one.idle + 0.005, 0.08 if has_panels else 0.1), t
        assert drawing.far <= 0.02, t
        if tile.down.legs > 1:
            assert of_one.sweeps["down"].far == pytest.approx(1 - 1 / len(nodes), abs=0.05)
        # Far memory at half the speed: groups take no longer than one row, and hardly longer than with near memory.
        far, far_of_one = groups.drawing(tile, 2.0), one_row.drawing(before, 2.0)
        assert far.seconds <= min(1.005 * far_of_one.seconds, 1.06 * drawing.seconds)
        assert "one a NUMA node; " in groups.explain()
        assert f"in {len(nodes)} groups of {nodes[0]}" in str(tile)


def test_groups_of_workers():
    assert [groups_of_nodes(n, (24, 40)) for n in (64, 32, 8, 2, 1)] == [(24, 40), (12, 20), (3, 5), (), ()]
    assert [groups_of_nodes(n, (32, 32)) for n in (64, 63, 2, 1)] == [(32, 32), (31, 32), (1, 1), ()]
    assert groups_of_nodes(8, ()) == groups_of_nodes(8, (8,)) == ()
    assert [even_groups(7, n) for n in (1, 2, 3, 99)] == [(), (3, 4), (2, 2, 3), (1,) * 7]
    assert groups_text((2, 2, 3)) == "3 groups of 2, 2 and 3"


def test_groups_that_cannot_be_are_refused():
    plan = plan_of(8, CpuTiling(n_groups=3), n_threads=8)
    assert plan.tile_plan(8).groups == (2, 3, 3)
    assert "n_groups = 3 prescribed" in plan.explain()
    with pytest.raises(ValueError, match="groups: expected 8 threads together, got 7"):
        replace(plan.tile_plan(8), groups=(3, 4))
    with pytest.raises(ValueError, match=r"far: expected at least 1, got 0\.5"):
        plan.drawing(plan.tile_plan(8), 0.5)


def test_without_legs_the_last_round_is_nearly_idle():
    whole, legs = (plan_of(8, CpuTiling(down_legs=n), n_threads=64) for n in (1, 16))
    idle = [plan.drawing(plan.tile_plan(8)).sweeps["down"].idle for plan in (whole, legs)]
    assert idle[0] > 0.45 > 0.06 > idle[1]  # 66 panels by 64 workers: 2 rounds for 1.03


@pytest.mark.parametrize("quant", ["none", "b", "ab"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_what_comes_out_even_is_not_cut(n_threads, quant):
    for t in (1, 8, 32, 128, 512):
        (tile,) = plan_of(t, n_threads=n_threads, quant=quant).tile_plans
        assert (tile.down.legs, tile.heads.legs) == (1, 1)
        assert "relays" not in tile.workspace


def test_legs_that_cannot_be_are_clipped_or_refused():
    tile = plan_of(8, CpuTiling(down_legs=10**6, heads_legs=10**6), n_threads=4).tile_plan(8)
    assert (tile.down.legs, tile.heads.legs) == (7168 // 2, 192 // 48 + 1)
    assert (tile.down.n_tasks, tile.heads.n_tasks) == (tile.down.n_relays * 3584, 128 * 5)
    assert tile.heads.leg_panels == 1
    with pytest.raises(ValueError, match=r"legs: expected at most 3584, the steps of k, got 3585"):
        replace(tile.down, legs=3585)
    with pytest.raises(ValueError, match=r"legs: expected at most 5, those of the panels and one more, got 6"):
        replace(tile.heads, legs=6)


def test_the_explanation_says_how_busy_workers_are():
    plan = plan_of(8, n_threads=64)
    assert f"Drawing of tasks, simulated:\n  tile of 8: {plan.drawing(plan.tile_plan(8))}\n" in plan.explain()
    assert "in 16 legs" in plan.explain()
