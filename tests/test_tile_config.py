"""What `tile_config` of a prolog may be; "auto" takes what the tuner kept."""

import pytest

from mla_numba import MlaDims, MlaProlog, MlaWeights
from mla_numba._version import __version__
from mla_numba.call import tuned as store
from mla_numba.call.planning import this_machine
from tiling import CpuTiling, PassOptions, Rates

DIMS = MlaDims(64, 2, 32, 32, 16, 16)


def test_auto_takes_what_is_kept_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path))
    weights = MlaWeights.random(DIMS)
    own = MlaProlog(weights, n_threads=1)
    before = MlaProlog(weights, n_threads=1, tile_config="auto")
    assert before.plan(8).tile_plans == own.plan(8).tile_plans
    assert (before.plan(8).origin, before.plan(8).reasons[0][1]) == (
        "planner", "nothing is stored for so many tokens, so the planner chose (mla-numba tune searches)"
    )  # fmt: skip
    found = store.Tuned(CpuTiling(unroll_list=(3,), down_kc=16), 8, 0.9, 10, 1.0, "2026-01-02")
    store.save_tuned(this_machine(), __version__, DIMS, "b", 1, found)
    rates = Rates(1e9, 1e9, 1e9, None)
    store.save_rates(this_machine(), __version__, 1, rates)
    tuned = MlaProlog(weights, n_threads=1, tile_config="auto")
    plan = tuned.plan(7)
    assert (plan.origin, plan.tiling, plan.tiles) == ("tuned", found.tiling, ((0, 3), (3, 3), (6, 1)))
    assert plan.tile_plan(3).down.qa.kc == 16
    assert plan.reasons[0] == ("tuned", str(found))
    assert plan.costs == own.plan(7).costs.with_rates(rates, 1)
    assert tuned.plan(9).origin == "planner"  # another bucket
    assert tuned.plan(0).origin == "planner"


def test_what_tile_config_may_be():
    weights = MlaWeights.random(DIMS).pack(1)
    every = "tile_config: expected MlaTileConfig, CpuTiling, 'auto' or None, got"
    with pytest.raises(ValueError, match=f"^{every} 'fast'$"):
        MlaProlog(weights, tile_config="fast")
    with pytest.raises(ValueError, match=rf"^{every} 'decode_b4_s2' \(an MlaTileConfig: preset\('decode_b4_s2'\)\)$"):
        MlaProlog(weights, tile_config="decode_b4_s2")
    with pytest.raises(TypeError, match=f"{every} int"):
        MlaProlog(weights, tile_config=8)
    for config in ("auto", CpuTiling()):
        with pytest.raises(ValueError, match="options: expected None with a CpuTiling or 'auto', got PassOptions"):
            MlaProlog(weights, tile_config=config, options=PassOptions())
