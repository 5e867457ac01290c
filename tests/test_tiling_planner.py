from dataclasses import astuple, fields, replace

import pytest
from helpers.machines import BIG_CACHES, COSTS, FULL, MICRO, SMALL_CACHES, plan_of

from tiling import (
    PRESETS,
    CpuTiling,
    Machine,
    MlaTileConfig,
    PassOptions,
    PlanDims,
    PrologPlan,
    ceil_div,
    pass_options,
    plan_prolog,
    preset,
)


def blocks(tile):
    return [(g.mc, g.kc, g.nc, g.walk) for g in tile.gemms]


def test_decode_preset_pinned():
    plan = plan_of(8, preset("decode_b4_s2"), SMALL_CACHES, options=pass_options("decode", 8))
    assert str(plan) == (
        "decode of 8 tokens, quant b, 4 threads on small: tiles 1 x 8; 86.3 MB, 0.38 Gflop, 0.60 Gop\n"
        "  tile of 8: 4 workers; down: 17 tasks by 1; rows: 5 tasks, rows_q 8 rows_k 2; "
        "heads: 128 tasks by 4; workspace 0.42 MiB\n"
        "    Matmul_qa bf16 m8 k7168 in 2 parts n1536: mr12 nr32 kr2, mc8 kc256 nc128, walk 4 of 48 panels, 12 tasks\n"
        "    QuantMatmul_qb int8 128 x m8 k1536 n192: mr8 nr48 kr4, mc8 kc256 nc192, walk 4 of 4 panels, 128 tasks\n"
        "    Matmul_kva bf16 m8 k7168 n576: mr12 nr32 kr2, mc8 kc256 nc128, walk 4 of 18 panels, 5 tasks\n"
        "    Matmul_qNope_wUk bf16 128 x m8 k128 n512: mr12 nr32 kr2, mc8 kc128 nc128, walk 16 of 16 panels, 128 tasks"
    )


def test_prefill_preset_pinned():
    plan = plan_of(200, preset("prefill_b128_s1"), options=pass_options("prefill", 200), phase="prefill")
    assert plan.tiles == ((0, 128), (128, 64), (192, 8))
    assert blocks(plan.tile_plan(128)) == [
        (128, 256, 128, 16),
        (128, 256, 192, 4),
        (128, 256, 128, 16),
        (128, 128, 128, 16),
    ]
    assert blocks(plan.tile_plan(8)) == [(8, 256, 128, 16), (8, 256, 192, 4), (8, 256, 128, 16), (8, 128, 128, 16)]
    tile = plan.tile_plan(128)
    assert (tile.down.grain, tile.heads.grain) == (1, 4)
    assert (tile.rows.rows_q, tile.rows.rows_k) == (8, 32)


def test_quant_modes_name_and_type_the_stages():
    def stages(quant):
        return [(g.stage, g.dtype, g.k_parts) for g in plan_of(1, quant=quant).tile_plan(1).gemms]

    wuk = ("Matmul_qNope_wUk", "bf16", 1)
    assert stages("none") == [("Matmul_qa", "bf16", 2), ("Matmul_qb", "bf16", 1), ("Matmul_kva", "bf16", 1), wuk]
    assert stages("b") == [("Matmul_qa", "bf16", 2), ("QuantMatmul_qb", "int8", 1), ("Matmul_kva", "bf16", 1), wuk]
    quant_a = [("QuantMatmul_qa", "int8", 1), ("QuantMatmul_kva", "int8", 1)]
    assert stages("a") == [quant_a[0], ("Matmul_qb", "bf16", 1), quant_a[1], wuk]
    assert stages("ab") == [quant_a[0], ("QuantMatmul_qb", "int8", 1), quant_a[1], wuk]


@pytest.mark.parametrize(
    ("t", "machine", "expected"),
    [
        (8, BIG_CACHES, [(8, 3584, 32, 1), (8, 1536, 192, 4), (8, 3584, 32, 1), (8, 128, 512, 16)]),
        (128, BIG_CACHES, [(22, 256, 32, 1), (16, 1536, 192, 4), (22, 256, 32, 1), (16, 128, 512, 16)]),
        (128, SMALL_CACHES, [(43, 256, 32, 1), (128, 1536, 48, 1), (43, 256, 32, 1), (128, 128, 256, 8)]),
    ],
)
def test_own_choice_pinned(t, machine, expected):
    assert blocks(plan_of(t, machine=machine).tile_plan(t)) == expected


@pytest.mark.parametrize(
    ("t", "unroll_list", "tiles"),
    [
        (0, (1,), ()),
        (1, (1,), ((0, 1),)),
        (512, (512,), ((0, 512),)),
        (513, (257, 256), ((0, 257), (257, 256))),
        (1026, (342,), ((0, 342), (342, 342), (684, 342))),
        (2045, (512, 509), ((0, 512), (512, 512), (1024, 512), (1536, 509))),
    ],
)
def test_own_tiles_of_tokens(t, unroll_list, tiles):
    plan = plan_of(t)
    assert (plan.unroll_list, plan.tiles) == (unroll_list, tiles)


def test_own_tiles_are_even_for_every_t():
    tiny = PlanDims(2, 1, 1, 1, 1, 1)
    for t in [*range(1, 1200), *range(1200, 2600, 7)]:
        sizes = [factor for _, factor in plan_prolog(tiny, t, None, BIG_CACHES, micro=MICRO).tiles]
        assert len(sizes) in (ceil_div(t, 512), ceil_div(t, 256))
        assert max(sizes) <= 512
        assert max(sizes) - min(sizes) < len(sizes)


@pytest.mark.parametrize(
    ("t", "n_threads", "rows"),
    [(1, 2, (1, 1)), (8, 2, (1, 2)), (128, 2, (4, 8)), (100, 4, (2, 4)), (256, 2, (4, 8)), (256, 32, (1, 2))],
)
def test_own_rows_per_task(t, n_threads, rows):
    tile = plan_of(t, n_threads=n_threads).tile_plan(t)
    assert (tile.rows.rows_q, tile.rows.rows_k) == rows


def test_small_work_is_serial():
    small = PlanDims(64, 2, 32, 32, 16, 16)
    # a token takes 2 * (64 * 32 + 2 * 32 * 32 + 64 * 48 + 2 * 16 * 32) = 16384 operations, and 122 * 16384 < 2e6
    for t, n_workers in ((122, 1), (123, 32)):
        plan = plan_prolog(small, t, None, BIG_CACHES, micro=MICRO)
        assert plan.n_workers == plan.tile_plan(t).n_workers == n_workers
        assert ("serial" in plan.explain()) == (n_workers == 1)
    assert plan_prolog(small, 123, None, BIG_CACHES, micro=MICRO, n_threads=3).n_workers == 3


def test_no_tokens():
    plan = plan_of(0, preset("default"))
    assert (plan.tiles, plan.tile_plans, plan.workspace_bytes, plan.total_bytes, plan.n_workers) == ((), (), 0, 0, 1)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("arch", ["910", "950"])
def test_presets_round_trip_and_explain_each_setting(name, arch):
    config = preset(name, arch)
    plan = plan_of(77, config, options=pass_options("decode", 77, arch))
    assert PrologPlan.from_json(plan.to_json()) == plan
    assert plan == plan_of(77, config, options=pass_options("decode", 77, arch))


def without_index(name):
    return name.partition("[")[0].partition(".")[0]


def test_explain_names_every_setting():
    config, options = preset("decode_b64_s2"), PassOptions({-1: 2}, {0: 1}, {-2: 1, -1: 4}, 128, 2)
    for given, options_given in ((config, None), (config, options)):
        plan = plan_of(40, given, options=options_given)
        described = [name for name, _, _ in plan.acting + plan.inert]
        assert len(described) >= len(fields(MlaTileConfig))
        assert {without_index(name) for name in described} >= {f.name for f in fields(MlaTileConfig)}
        cube_entries = {n for n in described if "." in n}
        assert len(cube_entries) == 18
        text = plan.explain()
        for name, value, effect in plan.acting + plan.inert:
            assert f"  {name} = {value}: {effect}" in text.splitlines()
        for choice, reason in plan.reasons:
            assert f"  {choice}: {reason}" in text.splitlines()
        assert not {n for n, _, _ in plan.acting} & {n for n, _, _ in plan.inert} - {
            "cube_l1_reuse_setting",  # the config's is inert where the option's acts
            "cube_nbuffer_setting",
        }
    assert {f.name for f in fields(PassOptions)} <= {without_index(name) for name in described}


BASE = MlaTileConfig(
    m_tile=16,
    mv_tile=8,
    k_vec_tile0=8,
    q_vec_tile0=8,
    pre_quant_cube_tile=[16, 32, 64, 128, 32, 64],
    cube_qb_tile=[16, 32, 64, 128, 48, 96],
    cube_wuk_tile=[16, 32, 16, 64, 32, 64],
    unroll_list=[64],
)


def tiles_changed(name, value, options=None):
    before = plan_of(64, BASE, options=options)
    after = plan_of(64, BASE.replace(**{name: value}), options=options)
    return (before.tiles, before.tile_plans) != (after.tiles, after.tile_plans)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("m_tile", 24),
        ("mv_tile", 4),
        ("k_vec_tile0", 4),
        ("pre_quant_cube_tile", [16, 64, 64, 128, 32, 64]),
        ("pre_quant_cube_tile", [16, 32, 64, 256, 32, 64]),
        ("pre_quant_cube_tile", [16, 32, 64, 128, 32, 96]),
        ("cube_qb_tile", [16, 64, 64, 128, 48, 96]),
        ("cube_qb_tile", [16, 32, 64, 256, 48, 96]),
        ("cube_qb_tile", [16, 32, 64, 128, 48, 144]),
        ("cube_wuk_tile", [16, 32, 16, 128, 32, 64]),
        ("cube_wuk_tile", [16, 32, 16, 64, 32, 128]),
        ("unroll_list", [32]),
        ("cube_l1_reuse_setting", {0: 2}),
        ("cube_l1_reuse_setting", {1: 2, -1: 4}),
        ("cube_l1_reuse_setting", {2: 2, -1: 4}),
        ("cube_l1_reuse_setting", {3: 2, -1: 4}),
        ("cube_nbuffer_setting", {0: 2, 3: 4}),
        ("cube_nbuffer_setting", {1: 5, 3: 4}),
        ("cube_nbuffer_setting", {3: 5}),
        ("vec_nbuffer_setting", {0: 4}),
        ("vec_nbuffer_setting", {1: 4}),
        ("vec_nbuffer_setting", {-1: 4}),
    ],
)
def test_acting_settings_change_the_plan(name, value):
    assert tiles_changed(name, value)
    acting = {without_index(n) for n, _, _ in plan_of(64, BASE.replace(**{name: value})).acting}
    assert name in acting


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile_b", 3),
        ("tile_s", 3),
        ("tile_bs", 3),
        ("pre_quant_cube_tile", [8, 32, 32, 128, 16, 64]),
        ("cube_qb_tile", [8, 32, 32, 128, 24, 96]),
        ("cube_wuk_tile", [24, 48, 8, 64, 16, 64]),
        ("q_vec_tile0", 4),
        ("q_vec_tile1", 3),
        ("k_vec_tile1", 3),
        ("dynamic_unaligned_enable", True),
        ("vec_nbuffer_setting", {-2: 1}),
    ],
)
def test_inert_settings_do_not_change_the_plan(name, value):
    assert not tiles_changed(name, value)
    inert = {without_index(n) for n, _, _ in plan_of(64, BASE.replace(**{name: value})).inert}
    assert name in inert


def test_every_setting_is_tested_as_acting_or_inert():
    described = plan_of(64, BASE)
    acting = {without_index(n) for n, _, _ in described.acting}
    inert = {without_index(n) for n, _, _ in described.inert}
    assert acting | inert == {f.name for f in fields(MlaTileConfig)}
    assert acting & inert == {"pre_quant_cube_tile", "cube_qb_tile", "cube_wuk_tile"}


def test_settings_say_when_something_takes_their_place():
    options = PassOptions({}, {-1: 2, 2: 9, 7: 1}, {0: 3})
    plan = plan_of(64, BASE, options=options)
    tile = plan.tile_plan(64)
    assert (tile.rows.rows_q, tile.rows.rows_k) == (3, 8)
    assert (tile.down.grain, tile.heads.grain) == (2, 2)
    assert tile.down.qa.l1_reuse == 4  # an empty mapping of the options says nothing
    reasons = {name: reason for name, _, reason in plan.inert}
    assert reasons["mv_tile"] == "vec_nbuffer_setting takes its place"
    assert reasons["cube_nbuffer_setting"] == "the pass options take its place"
    assert "Matmul_qa, whose key decides" in reasons["cube_nbuffer_setting[2]"]
    assert reasons["cube_nbuffer_setting[7]"] == "no stage has this ordinal"
    assert "k_vec_tile0" in {name for name, _, _ in plan.acting}


def test_options_act_on_the_own_choice_too():
    own, steered = plan_of(8), plan_of(8, options=PassOptions({0: 3}, {1: 2}, {1: 4}, 128, 2))
    assert (own.acting, own.inert) == ((), ())
    assert [g.walk for g in steered.tile_plan(8).gemms] == [3, 4, 1, 16]
    assert (own.tile_plan(8).heads.grain, steered.tile_plan(8).heads.grain) == (1, 2)
    assert (steered.tile_plan(8).rows.rows_q, steered.tile_plan(8).rows.rows_k) == (1, 4)
    assert [name for name, _, _ in steered.acting] == [
        "cube_l1_reuse_setting",
        "cube_nbuffer_setting",
        "vec_nbuffer_setting",
    ]
    assert [name for name, _, _ in steered.inert] == ["stitch_function_max_num", "device_sched_mode"]


def test_defaults_are_this_machine_and_its_cores():
    plan = plan_prolog(FULL, 4, micro=MICRO)
    assert plan.machine == Machine.detect()
    assert plan.n_threads == Machine.detect().n_usable_cores
    assert plan_of(4).n_threads == 32


def test_dims_are_read_by_attribute():
    class Dims:
        hidden_size, num_attention_heads, q_lora_rank = 7168, 128, 1536
        kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim = 512, 128, 64

    assert plan_prolog(Dims(), 4, None, BIG_CACHES, micro=MICRO, costs=COSTS) == plan_of(4)
    assert astuple(plan_of(4).dims) == (7168, 128, 1536, 512, 128, 64)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"t": -1}, ValueError, "t: expected at least 0, got -1"),
        ({"t": 1.0}, TypeError, "t: expected int, got float"),
        ({"quant": "c"}, ValueError, "quant: expected one of none, a, b, ab, got 'c'"),
        ({"phase": "train"}, ValueError, "phase: expected one of decode, prefill, got 'train'"),
        ({"n_threads": 0}, ValueError, "n_threads: expected at least 1, got 0"),
        ({"config": {}}, TypeError, "config: expected MlaTileConfig, CpuTiling or None, got {}"),
        ({"machine": "x"}, TypeError, "machine: expected Machine or None, got 'x'"),
        ({"costs": {}}, TypeError, "costs: expected Costs or None, got {}"),
        (
            {"config": CpuTiling(), "options": PassOptions()},
            ValueError,
            "options: expected None with a CpuTiling, got ",
        ),
        ({"options": {}}, TypeError, "options: expected PassOptions or None, got {}"),
        ({"micro": {"bf16": MICRO["bf16"]}}, TypeError, "micro: expected a mapping of bf16 and int8 to MicroTile"),
        ({"dims": replace(FULL, hidden_size=7)}, ValueError, "hidden_size: expected an even number .*, got 7"),
    ],
)
def test_plan_prolog_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        plan_prolog(**{"dims": FULL, "t": 4, "machine": BIG_CACHES, "micro": MICRO} | kwargs)


def test_settings_changed_in_place_are_checked_again():
    config = MlaTileConfig()
    config.unroll_list.append(0)
    with pytest.raises(ValueError, match=r"unroll_list\[6\]: expected at least 1, got 0"):
        plan_of(4, config)


def test_an_odd_hidden_size_is_fine_with_int8_down_projections():
    plan = plan_prolog(replace(FULL, hidden_size=7), 4, None, BIG_CACHES, micro=MICRO, quant="ab")
    assert plan.tile_plan(4).down.qa.kp == 8
