"""A given tile config on a CPU: the tile it asks for, what each setting did, and why some do nothing."""

from collections.abc import Mapping
from dataclasses import fields

from tiling.plan.assemble import Blocks, TileContext, assemble_tile
from tiling.plan.tile import TilePlan
from tiling.pypto.config import CubeTile, MlaTileConfig, PassOptions
from tiling.pypto.scheduling import MODE_FLAG, setting_of

__all__ = ["Notes", "config_tile", "describe_config", "describe_options"]

Notes = list[tuple[str, str, str]]

_REGISTER = "the instruction set dictates the register tile"
_REGISTER_K = "the instruction set dictates how much of k one instruction takes"
_M_TILE = "m_tile takes this place, as in the reference operator"
_UNROLL = "unroll_list cuts the tokens"

_INERT: dict[str, str] = {
    "tile_b": _UNROLL,
    "tile_s": _UNROLL,
    "tile_bs": f"{_UNROLL}; the reference operator overwrites it by the tile's size, too",
    "pre_quant_cube_tile.m_l0": _REGISTER,
    "pre_quant_cube_tile.k_l0": _REGISTER_K,
    "pre_quant_cube_tile.n_l0": _REGISTER,
    "cube_qb_tile.m_l0": _REGISTER,
    "cube_qb_tile.k_l0": _REGISTER_K,
    "cube_qb_tile.n_l0": _REGISTER,
    "cube_wuk_tile.m_l0": _M_TILE,
    "cube_wuk_tile.m_l1": _M_TILE,
    "cube_wuk_tile.k_l0": _REGISTER_K,
    "cube_wuk_tile.n_l0": _REGISTER,
    "q_vec_tile0": "a head is dequantised in the product's registers, a register tile at a time",
    "q_vec_tile1": "a task is one head, so heads are not grouped",
    "k_vec_tile1": "a row is normalised as a whole, so its columns are not cut",
    "dynamic_unaligned_enable": "edges of any size are always handled",
}

_ACTING: dict[str, str] = {
    "m_tile": "row blocks of Matmul_qNope_wUk",
    "mv_tile": "token rows per task of packing x and of the query's norm and quantisation (rows_q)",
    "pre_quant_cube_tile.m_l1": "row blocks (mc) of the down projections",
    "pre_quant_cube_tile.k_l1": "k blocks (kc) of the down projections",
    "pre_quant_cube_tile.n_l1": "columns of one tile (nc) of the down projections",
    "cube_qb_tile.m_l1": "token block of a heads task (mc)",
    "cube_qb_tile.k_l1": "k blocks (kc) of the query's up projection",
    "cube_qb_tile.n_l1": "columns of one tile (nc) of the query's up projection, at most one head's",
    "cube_wuk_tile.k_l1": "k blocks (kc) of Matmul_qNope_wUk",
    "cube_wuk_tile.n_l1": "columns of one tile (nc) of Matmul_qNope_wUk",
    "unroll_list": "sizes of the tiles of tokens",
    "k_vec_tile0": "token rows per task of the key's norm, rotation and scatter (rows_k)",
}

_OPTIONS: dict[str, tuple[str, dict[int, str]]] = {
    "cube_l1_reuse_setting": (
        "tiles walked while their A block stays in cache",
        {0: "Matmul_qa", 1: "Matmul_qb", 2: "Matmul_kva", 3: "Matmul_qNope_wUk"},
    ),
    "cube_nbuffer_setting": (
        "tasks a worker takes at a time (in the heads sweep the larger of keys 1 and 3)",
        {0: "the down sweep", 1: "Matmul_qb", 3: "Matmul_qNope_wUk"},
    ),
    "vec_nbuffer_setting": (
        "token rows per elementwise task, in place of mv_tile and k_vec_tile0",
        {0: "query rows", 1: "key rows"},
    ),
}

_UNUSED_KEYS = {
    ("cube_nbuffer_setting", 2): "Matmul_kva shares a parallel region with Matmul_qa, whose key decides",
    ("vec_nbuffer_setting", MODE_FLAG): "a mode flag of the NPU's scheduler",
}


def config_tile(context: TileContext, config: MlaTileConfig, t: int) -> TilePlan:
    """Plan of one tile of ``t`` tokens with the blocks of ``config``, rounded to the register tile and clipped."""
    down = _l1_blocks(config.pre_quant_cube_tile)
    wuk = Blocks(config.m_tile, config.cube_wuk_tile.k_l1, config.cube_wuk_tile.n_l1)
    return assemble_tile(
        context,
        t,
        blocks=(down, _l1_blocks(config.cube_qb_tile), down, wuk),
        rows=(config.mv_tile, config.k_vec_tile0),
    )


def _l1_blocks(tile: CubeTile) -> Blocks:
    return Blocks(tile.m_l1, tile.k_l1, tile.n_l1)


def describe_config(config: MlaTileConfig, options: PassOptions) -> tuple[Notes, Notes]:
    """``(setting, value, what it did)`` and ``(setting, value, why it did nothing)`` for the settings of ``config``.

    ``options`` are the settings in effect; the scheduling settings are left to ``describe_options``.
    """
    acting: Notes = []
    inert: Notes = []
    for name, value in _flat(config):
        overridden = _overridden(name, options.vec_nbuffer_setting)
        if name in _INERT:
            inert.append((name, value, _INERT[name]))
        elif overridden:
            inert.append((name, value, overridden))
        else:
            acting.append((name, value, _ACTING[name]))
    return acting, inert


def _flat(config: MlaTileConfig) -> list[tuple[str, str]]:
    """Name and value of each setting, cube tiles entry by entry, without the scheduling settings."""
    flat = []
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, CubeTile):
            flat += [(f"{f.name}.{entry.name}", str(getattr(value, entry.name))) for entry in fields(value)]
        elif f.name not in _OPTIONS:
            flat.append((f.name, str(value)))
    return flat


def _overridden(name: str, vec_nbuffer_setting: Mapping[int, int]) -> str:
    ordinal = {"mv_tile": 0, "k_vec_tile0": 1}.get(name)
    if ordinal is None or setting_of(vec_nbuffer_setting, ordinal) is None:
        return ""
    return "vec_nbuffer_setting takes its place"


def describe_options(
    config: MlaTileConfig | None, options: PassOptions | None, merged: PassOptions
) -> tuple[Notes, Notes]:
    """The same for the scheduling settings: ``merged`` are in effect, of ``config`` and ``options``.

    Nothing that was not given is described.
    """
    acting: Notes = []
    inert: Notes = []
    for name, (effect, readers) in _OPTIONS.items():
        own = {} if config is None else getattr(config, name)
        given = getattr(merged, name)
        if own != given and own:
            inert.append((name, str(own), "the pass options take its place"))
        if not given:
            if config is not None:
                inert.append((name, "{}", "nothing is set"))
            continue
        source = "" if own == given else "; from the pass options"
        read = [f"{given_count} for {who}" for key, who in readers.items() if (given_count := setting_of(given, key))]
        if read:
            acting.append((name, str(given), f"{effect}: {', '.join(dict.fromkeys(read))}{source}"))
        for key, count in given.items():
            reason = _unused(name, key, given, readers)
            if reason:
                inert.append((f"{name}[{key}]", str(count), reason))
    for name in ("stitch_function_max_num", "device_sched_mode"):
        value = None if options is None else getattr(options, name)
        if value is not None:
            inert.append((name, str(value), "a setting of the NPU's scheduler"))
    return acting, inert


def _unused(name: str, key: int, given: Mapping[int, int], readers: Mapping[int, str]) -> str:
    if (name, key) in _UNUSED_KEYS:
        return _UNUSED_KEYS[name, key]
    if key == -1:
        return "every stage that reads the setting is named" if all(reader in given for reader in readers) else ""
    return "" if key in readers else "no stage has this ordinal"
