"""The fields that a study can vary, of `CpuTiling` and of `MlaTileConfig`."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches

from tiling import CpuTiling, CubeTile, MlaTileConfig

__all__ = ["CONFIG_FIELDS", "CPU_FIELDS", "CUBES", "CUBE_ENTRIES", "PLAIN_CONFIG_FIELDS", "unknown_field"]

CPU_FIELDS = tuple(f.name for f in fields(CpuTiling))
PLAIN_CONFIG_FIELDS = tuple(f.name for f in fields(MlaTileConfig))
CUBES = tuple(name for name in PLAIN_CONFIG_FIELDS if isinstance(getattr(MlaTileConfig(), name), CubeTile))
CUBE_ENTRIES = tuple(f.name for f in fields(CubeTile))
CONFIG_FIELDS = (*PLAIN_CONFIG_FIELDS, *(f"{cube}.{entry}" for cube in CUBES for entry in CUBE_ENTRIES))


def unknown_field(name: str) -> str:
    """What to say of a name that is no field: the fields that are near it, of both kinds, or all of them."""
    near = get_close_matches(name, [*dict.fromkeys(CPU_FIELDS + CONFIG_FIELDS)], n=4)
    if near:
        return f"{name}: expected a field of CpuTiling or of MlaTileConfig, got none; near it: {', '.join(near)}"
    return (
        f"{name}: expected a field of CpuTiling ({', '.join(CPU_FIELDS)}) or of MlaTileConfig "
        f"({', '.join(CONFIG_FIELDS)}), got none"
    )
