"""Which scheduling settings apply, and looking them up by stage ordinal."""

from collections.abc import Mapping
from dataclasses import replace

from tiling.pypto.config import MlaTileConfig, PassOptions

__all__ = ["MODE_FLAG", "REST", "effective_options", "setting_of"]

REST = -1
MODE_FLAG = -2


def setting_of(setting: Mapping[int, int], ordinal: int) -> int | None:
    """The count of stage ``ordinal``: its own, else that of the rest, else None."""
    return setting.get(ordinal, setting.get(REST))


def effective_options(config: MlaTileConfig | None, options: PassOptions | None) -> PassOptions:
    """The settings of ``options``, completed from ``config`` where a mapping of ``options`` is empty."""
    merged = PassOptions() if options is None else replace(options)  # checks again what was changed in place
    if config is None:
        return merged
    return replace(
        merged,
        cube_l1_reuse_setting=merged.cube_l1_reuse_setting or config.cube_l1_reuse_setting,
        cube_nbuffer_setting=merged.cube_nbuffer_setting or config.cube_nbuffer_setting,
        vec_nbuffer_setting=merged.vec_nbuffer_setting or config.vec_nbuffer_setting,
    )
