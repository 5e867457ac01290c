import copy
import json
from dataclasses import FrozenInstanceError

import pytest

from tiling import CubeTile, MlaTileConfig, PassOptions, RopeTileShapeConfig


def test_cube_tile_reads_as_six_ints():
    tile = CubeTile.of([16, 32, 64, 256, 128, 128])
    assert tile == CubeTile(m_l0=16, m_l1=32, k_l0=64, k_l1=256, n_l0=128, n_l1=128)
    assert list(tile) == [16, 32, 64, 256, 128, 128]
    assert (len(tile), tile[1], tile[-3]) == (6, 32, 256)
    assert CubeTile.of(tile) == tile


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([16, 24, 1, 1, 1, 1], ValueError, r"CubeTile\.m_l1: expected a multiple of m_l0 = 16, got 24"),
        ([16, 8, 1, 1, 1, 1], ValueError, r"CubeTile\.m_l1: expected a multiple of m_l0 = 16, got 8"),
        ([1, 1, 4, 6, 1, 1], ValueError, r"CubeTile\.k_l1: expected a multiple of k_l0 = 4, got 6"),
        ([1, 1, 1, 1, 4, 2], ValueError, r"CubeTile\.n_l1: expected a multiple of n_l0 = 4, got 2"),
        ([1, 1, 0, 1, 1, 1], ValueError, r"CubeTile\.k_l0: expected at least 1, got 0"),
        ([1, 1, 1, 1, 1, "8"], TypeError, r"CubeTile\.n_l1: expected int, got str"),
    ],
)
def test_cube_tile_refuses(values, error, message):
    with pytest.raises(error, match=message):
        CubeTile(*values)


def test_cube_tile_of_wants_six():
    with pytest.raises(ValueError, match="CubeTile: expected a sequence of 6 ints >= 1, got 5 of them"):
        CubeTile.of([1, 1, 1, 1, 1])


def test_defaults():
    config = MlaTileConfig()
    assert (config.tile_b, config.tile_s, config.tile_bs, config.m_tile, config.mv_tile) == (8, 1, 8, 16, 16)
    assert list(config.pre_quant_cube_tile) == [16, 16, 256, 256, 128, 128]
    assert list(config.cube_qb_tile) == [16, 16, 256, 256, 128, 128]
    assert list(config.cube_wuk_tile) == [32, 32, 256, 256, 256, 256]
    assert config.unroll_list == [32, 16, 8, 4, 2, 1]
    assert (config.q_vec_tile0, config.q_vec_tile1, config.k_vec_tile0, config.k_vec_tile1) == (16, 16, 16, 16)
    assert config.cube_l1_reuse_setting == {-1: 4}
    assert config.cube_nbuffer_setting == {3: 4}
    assert config.vec_nbuffer_setting == {}
    assert config.dynamic_unaligned_enable is False


def test_assignment_and_keywords_agree():
    assigned = MlaTileConfig()
    assigned.tile_bs = 32
    assigned.unroll_list = (64, 1)
    assigned.cube_qb_tile = [128, 128, 128, 256, 256, 256]
    assigned.cube_nbuffer_setting = {-1: 4, 0: 1}
    by_keyword = MlaTileConfig(
        tile_bs=32,
        unroll_list=[64, 1],
        cube_qb_tile=CubeTile(128, 128, 128, 256, 256, 256),
        cube_nbuffer_setting={-1: 4, 0: 1},
    )
    assert assigned == by_keyword
    assert assigned != MlaTileConfig()
    assert isinstance(assigned.cube_qb_tile, CubeTile)
    assert eval(repr(assigned)) == assigned


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("m_tile", 0, ValueError, r"m_tile: expected at least 1, got 0"),
        ("tile_bs", 8.0, TypeError, r"tile_bs: expected int, got float"),
        ("mv_tile", True, TypeError, r"mv_tile: expected int, got bool"),
        ("unroll_list", [8, -1], ValueError, r"unroll_list\[1\]: expected at least 1, got -1"),
        ("cube_wuk_tile", [16, 24, 1, 1, 1, 1], ValueError, r"cube_wuk_tile\.m_l1: expected a multiple of m_l0 = 16"),
        ("cube_qb_tile", 16, TypeError, r"cube_qb_tile: expected a sequence of 6 ints >= 1, got 16"),
        ("cube_l1_reuse_setting", {-2: 1}, ValueError, r"cube_l1_reuse_setting key: expected at least -1, got -2"),
        ("cube_nbuffer_setting", {3: 0}, ValueError, r"cube_nbuffer_setting\[3\]: expected at least 1, got 0"),
        ("vec_nbuffer_setting", {-3: 1}, ValueError, r"vec_nbuffer_setting key: expected at least -2, got -3"),
        ("vec_nbuffer_setting", [4], TypeError, r"vec_nbuffer_setting: expected a mapping of int to int, got \[4\]"),
        ("dynamic_unaligned_enable", 1, TypeError, r"dynamic_unaligned_enable: expected bool, got int"),
        ("tile_bss", 8, AttributeError, r"expected a setting of tile_b, .*, got 'tile_bss'"),
    ],
)
def test_assignment_is_checked_and_leaves_the_config_alone(name, value, error, message):
    config = MlaTileConfig()
    with pytest.raises(error, match=message):
        setattr(config, name, value)
    assert config == MlaTileConfig()


def test_lists_and_mappings_are_copied():
    unroll, setting = [8, 1], {0: 2}
    config = MlaTileConfig(unroll_list=unroll, cube_l1_reuse_setting=setting)
    changed = config.replace(m_tile=32)
    unroll.append(0)
    setting[0] = 0
    config.unroll_list.append(4)
    assert config.unroll_list == [8, 1, 4]
    assert (changed.unroll_list, changed.cube_l1_reuse_setting, changed.m_tile) == ([8, 1], {0: 2}, 32)
    assert copy.deepcopy(config) == config
    assert MlaTileConfig().unroll_list is not MlaTileConfig().unroll_list


def test_json_round_trip():
    config = MlaTileConfig(m_tile=128, cube_wuk_tile=CubeTile(1, 2, 3, 6, 5, 5), vec_nbuffer_setting={-2: 1, -1: 4})
    text = config.to_json()
    assert json.loads(text)["cube_wuk_tile"] == [1, 2, 3, 6, 5, 5]
    assert MlaTileConfig.from_json(text) == config
    assert MlaTileConfig.from_json('{"m_tile": 32}') == MlaTileConfig(m_tile=32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "text: expected a JSON object, got list"),
        ('{"m_tiles": 1}', "text: expected settings of tile_b, .*, got m_tiles"),
        ('{"m_tile": 0}', "m_tile: expected at least 1, got 0"),
    ],
)
def test_from_json_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        MlaTileConfig.from_json(text)


def test_rope_tiles():
    tiles = RopeTileShapeConfig([32, 64], three_dim=[32, 32, 128], four_dim=(16, 128, 128, 128))
    assert tiles == RopeTileShapeConfig((32, 64), (32, 32, 128), (16, 128, 128, 128))
    assert tiles != RopeTileShapeConfig((32, 64), (32, 32, 128), (16, 128, 128, 64))
    assert (tiles.two_dim[0], tiles.four_dim[3]) == (32, 128)
    with pytest.raises(ValueError, match="three_dim: expected a sequence of 3 ints >= 1, got 2 of them"):
        RopeTileShapeConfig([32, 64], [32, 32], [16, 128, 128, 128])
    with pytest.raises(ValueError, match=r"two_dim\[1\]: expected at least 1, got 0"):
        RopeTileShapeConfig([32, 0], [32, 32, 1], [16, 128, 128, 128])


def test_pass_options():
    options = PassOptions({-1: 4}, stitch_function_max_num=128)
    assert options == PassOptions(cube_l1_reuse_setting={-1: 4}, stitch_function_max_num=128)
    assert (options.cube_nbuffer_setting, options.vec_nbuffer_setting, options.device_sched_mode) == ({}, {}, None)
    with pytest.raises(FrozenInstanceError):
        options.device_sched_mode = 3
    with pytest.raises(ValueError, match="stitch_function_max_num: expected at least 1, got 0"):
        PassOptions(stitch_function_max_num=0)
    with pytest.raises(TypeError, match="device_sched_mode: expected int, got str"):
        PassOptions(device_sched_mode="3")
