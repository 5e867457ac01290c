"""Tile and pass settings as hypothesis draws them."""

from hypothesis import strategies as st

from mla_numba import MlaTileConfig, PassOptions
from mla_numba.kernels import ISA

sizes = st.one_of(st.integers(1, 40), st.sampled_from([ISA.mr, ISA.nr, 2 * ISA.nr + 1, 64, 128, 256]))


@st.composite
def cube_tiles(draw):
    inner = [draw(sizes) for _ in range(3)]
    return [size for l0 in inner for size in (l0, l0 * draw(st.integers(1, 3)))]


def stage_settings(least_key):
    return st.dictionaries(st.integers(least_key, 4), st.integers(1, 9), max_size=4)


tile_configs = st.builds(
    MlaTileConfig,
    tile_b=sizes,
    tile_s=sizes,
    tile_bs=sizes,
    m_tile=sizes,
    mv_tile=sizes,
    pre_quant_cube_tile=cube_tiles(),
    cube_qb_tile=cube_tiles(),
    cube_wuk_tile=cube_tiles(),
    unroll_list=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    q_vec_tile0=sizes,
    q_vec_tile1=sizes,
    k_vec_tile0=sizes,
    k_vec_tile1=sizes,
    cube_l1_reuse_setting=stage_settings(-1),
    cube_nbuffer_setting=stage_settings(-1),
    vec_nbuffer_setting=stage_settings(-2),
    dynamic_unaligned_enable=st.booleans(),
)


pass_settings = st.one_of(
    st.none(),
    st.builds(
        PassOptions,
        cube_l1_reuse_setting=stage_settings(-1),
        cube_nbuffer_setting=stage_settings(-1),
        vec_nbuffer_setting=stage_settings(-2),
    ),
)
