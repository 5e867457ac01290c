"""The simulation of drawing tasks, by hand and on plans for many cores, and that plans keep many cores busy."""

from dataclasses import replace

import pytest
from helpers.machines import FULL, MICRO, plan_of

from tiling import Costs, CpuTiling, Machine, plan_prolog
from tiling.choose.model import even_legs
from tiling.plan.drawing import PhaseTasks, draw_tasks

THREADS = (1, 2, 4, 8, 16, 32, 64, 128)


def test_three_tasks_by_two_workers():
    drawing = draw_tasks((PhaseTasks("heads", (1.0, 1.0, 1.0)),), 2)
    # ranges 0..1 and 1..3: worker 0 takes what is left of the other's
    assert [(span.worker, span.begin_s, span.end_s) for span in drawing.spans] == [(0, 0, 1), (1, 0, 1), (0, 1, 2)]
    assert (drawing.n_tasks("heads"), drawing.seconds, drawing.idle) == ((2, 1), 2.0, 0.25)


def test_a_worker_that_is_held_up_leaves_its_tasks_to_others():
    drawing = draw_tasks((PhaseTasks("heads", (5.0, 1.0, 1.0, 1.0, 1.0)),), 2)
    # ranges 0..2 and 2..5: while worker 0 is at its first task, the other does its own three and then task 1
    assert drawing.n_tasks("heads") == (1, 4)
    assert (drawing.seconds, drawing.idle) == (5.0, pytest.approx(0.1))


def test_a_grain_is_drawn_at_once():
    assert draw_tasks((PhaseTasks("heads", (1.0,) * 4, grain=2),), 2).n_tasks("heads") == (2, 2)
    assert draw_tasks((PhaseTasks("heads", (1.0,) * 3, grain=3),), 2).n_tasks("heads") == (1, 2)


def test_phases_that_wait_and_one_that_does_not():
    phases = (
        PhaseTasks("down", (1.0, 3.0)),
        PhaseTasks("query", (1.0,), after="down"),
        PhaseTasks("key", (2.0,)),
        PhaseTasks("heads", (1.0, 1.0), after="query"),
    )
    drawing = draw_tasks(phases, 2)
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
    even = draw_tasks((PhaseTasks("down", (0.5,) * 6, n_relays=3),), 2)  # 3 relays of 2 legs
    assert (even.seconds, even.idle, even.n_tasks("down")) == (1.5, 0.0, (3, 3))
    alone = draw_tasks((PhaseTasks("down", (0.5,) * 2, n_relays=1),), 2)  # the second leg waits for the first
    assert (alone.seconds, alone.idle, alone.n_tasks("down")) == (1.0, 0.5, (1, 1))


def test_no_tasks_take_no_time():
    drawing = draw_tasks((PhaseTasks("heads", ()),), 3)
    assert (drawing.seconds, drawing.idle, drawing.n_tasks("heads")) == (0.0, 0.0, (0, 0, 0))


def test_legs_are_as_few_as_make_rounds_even():
    assert [even_legs(66, n) for n in (1, 2, 3, 4, 8, 16, 32, 64)] == [1, 1, 1, 1, 2, 4, 8, 16]
    assert even_legs(66, 66) == even_legs(66, 128) == 1  # legs of a relay run one after the other
    assert even_legs(128, 48) == 3


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


def test_without_legs_the_last_round_is_nearly_idle():
    whole, legs = (plan_of(8, CpuTiling(down_legs=n), n_threads=64) for n in (1, 16))
    idle = [plan.drawing(plan.tile_plan(8)).sweeps["down"].idle for plan in (whole, legs)]
    assert idle[0] > 0.45 > 0.06 > idle[1]  # 66 panels by 64 workers: 2 rounds for 1.03
