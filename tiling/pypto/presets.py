"""The tile settings of the reference operator's own tests, by name, for both NPU generations."""

from dataclasses import replace

from tiling.check import MAX_TOKENS, check_choice, check_int
from tiling.modes import CALL_PHASES, NPU_ARCHS, PRESETS, CallPhase, NpuArch, PresetName
from tiling.pypto.config import (
    CubeTile,
    MlaTileConfig,
    PassOptions,
    RopeTileShapeConfig,
)

__all__ = ["NPU_ARCHS", "PRESETS", "ROPE_TILES", "options_list", "pass_options", "preset"]

ROPE_TILES = RopeTileShapeConfig([32, 64], [32, 32, 128], [16, 128, 128, 128])

_GENERATION: dict[NpuArch, NpuArch] = {
    "DAV_3510": "DAV_3510", "950": "DAV_3510", "DAV_2201": "DAV_2201", "910": "DAV_2201",
}  # fmt: skip


def preset(name: PresetName, npuarch: NpuArch = "DAV_3510") -> MlaTileConfig:
    """A fresh config with the settings of a preset.

    Args:
        name: One of ``PRESETS``. They say phase, batch and tokens per sequence; ``_bf16`` is the unquantised mode.
        npuarch: "DAV_3510" (or "950"), or "DAV_2201" (or "910"); only the two presets for 128 tokens differ between
            them.

    Returns:
        A config of its own.

    Raises:
        TypeError: A name is no string.
        ValueError: There is no such preset or generation.

    Examples:
        >>> from tiling import preset
        >>> preset("decode_b64_s2").unroll_list
        [128, 64, 32, 16, 8, 4, 2, 1]
    """
    check_choice("preset", name, PRESETS)
    is_950 = _npu_arch(npuarch) == "DAV_3510"
    if name == "default":
        return MlaTileConfig()
    if name == "prefill_b128_s1":
        return _prefill_128()
    k_l0 = 64 if name.endswith("_bf16") else 256
    return _decode_8(k_l0) if name.startswith("decode_b4_s2") else _decode_128(k_l0, is_950)


def _prefill_128() -> MlaTileConfig:
    return MlaTileConfig(
        tile_bs=128,
        m_tile=128,
        mv_tile=8,
        pre_quant_cube_tile=CubeTile(128, 128, 256, 256, 128, 128),
        cube_qb_tile=CubeTile(128, 128, 256, 256, 256, 256),
        cube_wuk_tile=CubeTile(128, 128, 128, 128, 128, 128),
        q_vec_tile0=32,
        q_vec_tile1=128,
        k_vec_tile0=32,
        k_vec_tile1=512,
        unroll_list=[128, 64, 32, 16, 8, 4, 2, 1],
    )


def _decode_8(k_l0: int) -> MlaTileConfig:
    """8 tokens; ``k_l0`` is the inner k block of the projections, which depends on their type."""
    return MlaTileConfig(
        tile_bs=8,
        m_tile=16,
        mv_tile=8,
        pre_quant_cube_tile=CubeTile(16, 16, k_l0, 256, 128, 128),
        cube_qb_tile=CubeTile(16, 16, k_l0, 256, 256, 256),
        cube_wuk_tile=CubeTile(16, 16, 128, 128, 128, 128),
        q_vec_tile0=1,
        q_vec_tile1=32,
        k_vec_tile0=2,
        k_vec_tile1=512,
        unroll_list=[8, 4, 2, 1],
    )


def _decode_128(k_l0: int, is_950: bool) -> MlaTileConfig:
    """128 tokens; ``k_l0`` as in ``_decode_8``."""
    m = 128 if is_950 else 32
    config = MlaTileConfig(
        m_tile=128,
        mv_tile=8,
        pre_quant_cube_tile=CubeTile(m, m, k_l0, 256, 128, 128),
        q_vec_tile0=32,
        q_vec_tile1=128,
        k_vec_tile0=32,
        k_vec_tile1=512,
        unroll_list=[128, 64, 32, 16, 8, 4, 2, 1] if is_950 else [64, 32, 16, 8, 4, 2, 1],
    )
    larger, smaller = CubeTile(128, 128, 128, 256, 256, 256), CubeTile(128, 128, 128, 128, 128, 128)
    if k_l0 == 256:
        return config.replace(tile_bs=32, cube_qb_tile=larger, cube_wuk_tile=larger)
    qb = CubeTile(128, 128, 64, 256, 256, 256)
    return config.replace(tile_bs=128, cube_qb_tile=qb, cube_wuk_tile=smaller if is_950 else larger)


def options_list(npuarch: NpuArch = "DAV_3510") -> dict[str, dict[str, int]]:
    """Runtime options of the decode entry point, as the reference operator chooses them for the NPU it runs on.

    Without an NPU to ask, the generation is an argument; it defaults to the newer one, as in ``preset``.

    Args:
        npuarch: As for ``preset``.

    Returns:
        Options of the runtime by name.

    Raises:
        TypeError: The name is no string.
        ValueError: There is no such generation.

    Examples:
        >>> from tiling import options_list
        >>> options_list("910")
        {'runtime_options': {'device_sched_mode': 2, 'stitch_function_max_num': 128}}
    """
    if _npu_arch(npuarch) == "DAV_3510":
        return {"runtime_options": {"device_sched_mode": 3}}
    return {"runtime_options": {"device_sched_mode": 2, "stitch_function_max_num": 128}}


def pass_options(phase: CallPhase, t: int, npuarch: NpuArch = "DAV_3510") -> PassOptions:
    """Scheduling settings that a reference entry point chooses.

    Args:
        phase: "prefill" or "decode".
        t: Tokens of the call.
        npuarch: As for ``preset``.

    Returns:
        The settings.

    Raises:
        TypeError: An argument is of another type.
        ValueError: It has another value.

    Examples:
        >>> from tiling import pass_options
        >>> pass_options("prefill", 128)
        PassOptions(cube_l1_reuse_setting={-1: 4}, stitch_function_max_num=128)
    """
    check_choice("phase", phase, CALL_PHASES)
    check_int("t", t, 0, MAX_TOKENS)
    arch = _npu_arch(npuarch)
    if phase == "prefill":
        return PassOptions(cube_l1_reuse_setting={-1: 4}, stitch_function_max_num=128)
    runtime = options_list(arch)["runtime_options"]
    common = PassOptions(
        device_sched_mode=runtime["device_sched_mode"], stitch_function_max_num=runtime.get("stitch_function_max_num")
    )
    if arch != "DAV_3510":
        return replace(
            common,
            cube_l1_reuse_setting={-1: 8, 0: 1, 1: 1, 2: 1},
            cube_nbuffer_setting={-1: 4, 0: 1, 1: 1},
            vec_nbuffer_setting={-2: 1, -1: 4},
        )
    if t > 64:
        return replace(
            common,
            cube_l1_reuse_setting={-1: 4, 0: 1, 1: 1, 2: 1, 3: 1},
            cube_nbuffer_setting={-1: 4, 0: 1, 1: 1, 2: 1, 3: 3},
        )
    return replace(
        common,
        cube_l1_reuse_setting={-1: 4, 0: 1, 1: 1, 2: 1},
        cube_nbuffer_setting={-1: 4, 0: 1, 1: 1, 2: 3},
    )


def _npu_arch(npuarch: NpuArch) -> NpuArch:
    return _GENERATION[check_choice("npuarch", npuarch, NPU_ARCHS)]
