import pytest

from tiling import PRESETS, ROPE_TILES, MlaTileConfig, PassOptions, options_list, pass_options, preset

FROM_128 = [128, 64, 32, 16, 8, 4, 2, 1]
FROM_64 = [64, 32, 16, 8, 4, 2, 1]
FROM_32 = [32, 16, 8, 4, 2, 1]
FROM_8 = [8, 4, 2, 1]

# name, generation, tile_bs, m_tile, mv_tile, pre_quant_cube, cube_qb, cube_wuk, q_vec, k_vec, unroll_list
TABLE = [
    *[
        (
            *("default", arch, 8, 16, 16),
            *([16, 16, 256, 256, 128, 128], [16, 16, 256, 256, 128, 128], [32, 32, 256, 256, 256, 256]),
            *([16, 16], [16, 16], FROM_32),
        )
        for arch in ("950", "910")
    ],
    *[
        (
            *("prefill_b128_s1", arch, 128, 128, 8),
            *([128, 128, 256, 256, 128, 128], [128, 128, 256, 256, 256, 256], [128, 128, 128, 128, 128, 128]),
            *([32, 128], [32, 512], FROM_128),
        )
        for arch in ("950", "910")
    ],
    *[
        (
            *("decode_b4_s2", arch, 8, 16, 8),
            *([16, 16, 256, 256, 128, 128], [16, 16, 256, 256, 256, 256], [16, 16, 128, 128, 128, 128]),
            *([1, 32], [2, 512], FROM_8),
        )
        for arch in ("950", "910")
    ],
    (
        *("decode_b64_s2", "950", 32, 128, 8),
        *([128, 128, 256, 256, 128, 128], [128, 128, 128, 256, 256, 256], [128, 128, 128, 256, 256, 256]),
        *([32, 128], [32, 512], FROM_128),
    ),
    (
        *("decode_b64_s2", "910", 32, 128, 8),
        *([32, 32, 256, 256, 128, 128], [128, 128, 128, 256, 256, 256], [128, 128, 128, 256, 256, 256]),
        *([32, 128], [32, 512], FROM_64),
    ),
    *[
        (
            *("decode_b4_s2_bf16", arch, 8, 16, 8),
            *([16, 16, 64, 256, 128, 128], [16, 16, 64, 256, 256, 256], [16, 16, 128, 128, 128, 128]),
            *([1, 32], [2, 512], FROM_8),
        )
        for arch in ("950", "910")
    ],
    (
        *("decode_b64_s2_bf16", "950", 128, 128, 8),
        *([128, 128, 64, 256, 128, 128], [128, 128, 64, 256, 256, 256], [128, 128, 128, 128, 128, 128]),
        *([32, 128], [32, 512], FROM_128),
    ),
    (
        *("decode_b64_s2_bf16", "910", 128, 128, 8),
        *([32, 32, 64, 256, 128, 128], [128, 128, 64, 256, 256, 256], [128, 128, 128, 256, 256, 256]),
        *([32, 128], [32, 512], FROM_64),
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_preset(row):
    name, arch, *expected = row
    c = preset(name, arch)
    tiles = [list(tile) for tile in (c.pre_quant_cube_tile, c.cube_qb_tile, c.cube_wuk_tile)]
    vec = [[c.q_vec_tile0, c.q_vec_tile1], [c.k_vec_tile0, c.k_vec_tile1]]
    assert [c.tile_bs, c.m_tile, c.mv_tile, *tiles, *vec, c.unroll_list] == expected
    assert preset(name, {"950": "DAV_3510", "910": "DAV_2201"}[arch]) == c
    rest = MlaTileConfig()
    for other in ("tile_b", "tile_s", "cube_l1_reuse_setting", "cube_nbuffer_setting", "vec_nbuffer_setting"):
        assert getattr(c, other) == getattr(rest, other)


def test_presets_are_the_six_of_the_table_and_fresh():
    assert sorted(PRESETS) == sorted({row[0] for row in TABLE})
    for name in PRESETS:
        assert preset(name) == preset(name, "950")
        assert preset(name) is not preset(name)


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match=r"preset: expected one of default, prefill_b128_s1, .*, got 'fast'"):
        preset("fast")
    with pytest.raises(ValueError, match="npuarch: expected one of DAV_3510, 950, DAV_2201, 910, got '310'"):
        preset("default", "310")


def test_rope_tiles():
    assert (ROPE_TILES.two_dim, ROPE_TILES.three_dim, ROPE_TILES.four_dim) == (
        (32, 64),
        (32, 32, 128),
        (16, 128, 128, 128),
    )


def test_options_list():
    assert options_list() == options_list("950") == {"runtime_options": {"device_sched_mode": 3}}
    older = {"runtime_options": {"device_sched_mode": 2, "stitch_function_max_num": 128}}
    assert options_list("DAV_2201") == options_list("910") == older


@pytest.mark.parametrize(
    ("phase", "t", "arch", "expected"),
    [
        ("prefill", 128, "950", PassOptions({-1: 4}, {}, {}, 128, None)),
        ("prefill", 1, "910", PassOptions({-1: 4}, {}, {}, 128, None)),
        (
            *("decode", 65, "950"),
            PassOptions({-1: 4, 0: 1, 1: 1, 2: 1, 3: 1}, {-1: 4, 0: 1, 1: 1, 2: 1, 3: 3}, {}, None, 3),
        ),
        ("decode", 64, "950", PassOptions({-1: 4, 0: 1, 1: 1, 2: 1}, {-1: 4, 0: 1, 1: 1, 2: 3}, {}, None, 3)),
        (
            *("decode", 65, "910"),
            PassOptions({-1: 8, 0: 1, 1: 1, 2: 1}, {-1: 4, 0: 1, 1: 1}, {-2: 1, -1: 4}, 128, 2),
        ),
        (
            *("decode", 64, "910"),
            PassOptions({-1: 8, 0: 1, 1: 1, 2: 1}, {-1: 4, 0: 1, 1: 1}, {-2: 1, -1: 4}, 128, 2),
        ),
    ],
)
def test_pass_options(phase, t, arch, expected):
    assert pass_options(phase, t, arch) == expected


def test_pass_options_refuses():
    with pytest.raises(ValueError, match="phase: expected one of decode, prefill, got 'train'"):
        pass_options("train", 8)
    with pytest.raises(ValueError, match="t: expected at least 0, got -1"):
        pass_options("decode", -1)
