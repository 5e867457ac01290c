"""Every integer of a plan has an upper bound, and an error names the field that is beyond it."""

import itertools
import json
from dataclasses import fields, replace

import pytest
from helpers.machines import BIG_CACHES, FULL, MICRO, fake_linux, write

from tiling import (
    CpuTiling,
    CubeTile,
    Machine,
    MicroTile,
    MlaTileConfig,
    PassOptions,
    PlanDims,
    PrologPlan,
    Rates,
    RopeTileShapeConfig,
    plan_prolog,
)
from tiling.check import (
    MAX_COUNT,
    MAX_ITEMS,
    MAX_THREADS,
    MAX_TOKENS,
)
from tiling.machine import detect_linux, detect_macos

COUNTS = [f.name for f in fields(CpuTiling) if f.name not in ("unroll_list", "n_threads", "n_groups")]
CONFIG_COUNTS = [f.name for f in fields(MlaTileConfig) if isinstance(getattr(MlaTileConfig(), f.name), int)]
CONFIG_COUNTS.remove("dynamic_unaligned_enable")
BEYOND = (MAX_COUNT + 1, 2**62, 2**63, 10**30, 10**5000)


def too_much(name, most):
    return pytest.raises(ValueError, match=rf"^{name}: expected at most {most}, got ")


@pytest.mark.parametrize("value", BEYOND, ids=lambda value: f"{value.bit_length()} bits")
def test_a_field_beyond_its_bound_is_named(value):
    for name in COUNTS:
        with too_much(name, MAX_COUNT):
            CpuTiling(**{name: value})
    for name in ("n_threads", "n_groups"):
        with too_much(name, MAX_THREADS):
            CpuTiling(**{name: value})
    for name in CONFIG_COUNTS:
        with too_much(name, MAX_COUNT):
            MlaTileConfig(**{name: value})
    for cls in (CpuTiling, MlaTileConfig):
        with too_much(r"unroll_list\[1\]", MAX_COUNT):
            cls(unroll_list=[8, value])
    for i, name in enumerate(f.name for f in fields(CubeTile)):
        with too_much(f"cube_qb_tile.{name}|cube_qb_tile\\[{i}\\]", MAX_COUNT):
            MlaTileConfig(cube_qb_tile=[*[1] * i, value, *[1] * (5 - i)])
    for name in ("cube_l1_reuse_setting", "cube_nbuffer_setting", "vec_nbuffer_setting"):
        with too_much(rf"{name}\[-1\]", MAX_COUNT):
            PassOptions(**{name: {-1: value}})
        with too_much(f"{name} key", MAX_COUNT):
            MlaTileConfig(**{name: {value: 1}})
    for name in ("stitch_function_max_num", "device_sched_mode"):
        with too_much(name, MAX_COUNT):
            PassOptions(**{name: value})
    with too_much(r"four_dim\[3\]", MAX_COUNT):
        RopeTileShapeConfig([1, 1], [1, 1, 1], [1, 1, 1, value])
    with too_much("hidden_size", MAX_COUNT):
        PlanDims(value, 1, 1, 1, 1, 1)


def test_threads_caches_and_tokens_have_bounds_of_their_own():
    with too_much("n_threads", MAX_THREADS):
        CpuTiling(n_threads=MAX_THREADS + 1)
    with too_much("n_threads", MAX_THREADS):
        plan_prolog(FULL, 8, None, BIG_CACHES, micro=MICRO, n_threads=MAX_THREADS + 1)
    with pytest.raises(ValueError, match=f"^t: expected at most {MAX_TOKENS} tokens a call, got an int of 16610 bits"):
        plan_prolog(FULL, 10**5000, None, BIG_CACHES, micro=MICRO)
    for name, most in (("l1d_bytes", 2**40), ("l2_bytes", 2**40), ("l3_bytes", 2**40), ("n_usable_cores", MAX_THREADS)):
        with too_much(name, most):
            replace(BIG_CACHES, **{name: most + 1})
    with too_much("n_physical_cores", MAX_THREADS):
        replace(BIG_CACHES, n_physical_cores=10**9)
    with too_much("mr", 4096):
        MicroTile(4097, 32, 2, 2)


@pytest.mark.parametrize("cls", [CpuTiling, MlaTileConfig])
def test_a_list_has_an_end(cls):
    with pytest.raises(ValueError, match=f"^unroll_list: expected at most {MAX_ITEMS} ints, got more"):
        cls(unroll_list=itertools.count(1))
    assert len(cls(unroll_list=range(1, MAX_ITEMS + 1)).unroll_list) == MAX_ITEMS


def test_plans_are_made_of_the_greatest_counts():
    given = CpuTiling(
        unroll_list=(MAX_COUNT,), n_threads=MAX_THREADS, n_groups=MAX_THREADS, **dict.fromkeys(COUNTS, MAX_COUNT)
    )
    (tile,) = plan_prolog(FULL, 1, given, BIG_CACHES, micro=MICRO, n_threads=2).tile_plans
    assert (tile.n_workers, tile.down.grain, tile.heads.grain) == (2, MAX_COUNT, MAX_COUNT)
    assert (tile.rows.rows_q, tile.down.qa.kc, tile.heads.qb.mc) == (1, FULL.hidden_size // 2, 1)
    options = PassOptions(*[{-1: MAX_COUNT}] * 3)
    (tile,) = plan_prolog(FULL, 1, MlaTileConfig(), BIG_CACHES, micro=MICRO, options=options).tile_plans
    assert (tile.down.grain, tile.down.qa.walk) == (MAX_COUNT, tile.down.qa.n_panels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-320, 1e31, 10**400], ids=str)
def test_rates_are_finite_and_their_quotients_too(value):
    with pytest.raises(ValueError, match="flops_s: expected a float > 0"):
        Rates(1.0, value, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "^text: expected a JSON object, got one that is nested too deeply"),
        ("{" + " " * 10**6, r"^text: expected JSON, got Expecting property name .{10,90}$"),
        ("null", "^text: expected a JSON object, got NoneType"),
        ("{}", "^text: expected the fields of Machine, got an object without 'arch'"),
        ('{"l2_bytes": NaN}', "^text: expected JSON, got the number NaN"),
    ],
    ids=["deep", "long", "null", "empty", "NaN"],
)
def test_json_of_strangers_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        Machine.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": None}, "^dims: expected a JSON object for PlanDims, got 'null'"),
        ({"tiles": 5}, "^tiles: expected a list, got '5'"),
        ({"tiles": [[0]]}, r"^tiles\[0\]: expected a list of 2, got one of 1"),
        ({"n_threads": 10**30}, "^n_threads: expected at most 65536, got 1000000000"),
        ({"beside": 1}, "^text: expected the fields of PrologPlan, got an object with 'beside'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_json_of_a_plan_is_refused_by_field(changes, message):
    plan = json.loads(plan_prolog(FULL, 8, None, BIG_CACHES, micro=MICRO).to_json())
    with pytest.raises(ValueError, match=message):
        PrologPlan.from_json(json.dumps(plan | changes))
    plan["tile_plans"][0]["down"]["grain"] = 2**62
    with too_much("grain", MAX_COUNT):
        PrologPlan.from_json(json.dumps(plan))


@pytest.mark.parametrize("number", ["²", "9" * 5000, "1" + "0" * 14, "-1", "x"], ids=["²", "long", "much", "-1", "x"])
def test_numbers_of_the_system_that_are_none_are_left_out(number, tmp_path):
    fake_linux(tmp_path)
    cache = "sys/devices/system/cpu/cpu0/cache/index0"
    write(tmp_path, {f"{cache}/size": f"{number}K", f"{cache}/level": "1", f"{cache}/type": "Data"})
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{number}0 {number}"})
    write(tmp_path, {f"sys/devices/system/cpu/cpu0{number[:3]}x/topology/core_id": "7"})
    found = detect_linux(tmp_path, {0})
    assert (found.l1d_bytes, found.n_usable_cores) == (32 * 1024, 1)
    assert detect_macos(lambda key: number).l2_bytes == 512 * 1024
