"""Each sweep of a call, with the weights cold or warm, as the calls of a model find them."""

from __future__ import annotations

import pytest
from shared.contenders import OURS, make_inputs

from mla_numba.call.trace import SWEEPS

from .rotation import STATES, rotate
from .session import Stopwatch

CLOCK = Stopwatch()


@pytest.mark.benchmark(timer=CLOCK.read)  # runs during the sweep that is asked for, not the others of the call
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweep(benchmark, suite, prolog_cases, t, sweep, state):
    prolog_cases.ours("b", t)  # checks that a call gives the reference's bits
    prologs = prolog_cases.prologs("b")
    inputs, cache = make_inputs(suite.dims, t, 0)
    out = prologs[0].allocate_output(t)

    def call_of(prolog):
        return lambda: prolog.profile(*inputs, cache, out)[1].seconds

    call = rotate([call_of(prolog) for prolog in prologs], state)
    plan = prologs[0].plan(t)
    suite.describe(
        benchmark,
        f"sweeps, T = {t}, weights {state}",
        f"{OURS}: {sweep}",
        made_of="; ".join(str(getattr(tile, sweep)) for tile in plan.tile_plans),
        verified="bit for bit against the reference",
    )
    benchmark.extra_info["weights"] = f"cold, {len(prologs)} sets in turns" if state == "cold" else "warm, one set"
    rounds = suite.rounds(sum(call().values()))

    def run():
        benchmark.pedantic(lambda: CLOCK.add(call()[sweep]), rounds=rounds)

    if sweep == "rows":  # reads and writes what is in cache: memory sets it no limit
        run()
    else:
        suite.between_probes(benchmark, plan.sweep_work[sweep], run)
