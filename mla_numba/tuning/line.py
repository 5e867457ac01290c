"""The line of Python that prescribes a candidate's plan."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tiling import CpuTiling, CubeTile, MlaTileConfig, preset

from ..base.modes import NpuArch
from .space import Candidate

__all__ = ["line_of"]


def line_of(candidate: Candidate, base: str | None = None, npuarch: NpuArch = "DAV_3510") -> str:
    """An expression that makes the candidate's config, of names of `mla_numba`; empty for one that was refused.

    `base`: the preset that gave the fields which the candidate does not set; `npuarch` its NPU generation.

    >>> line_of(Candidate((("down_kc", 512),), CpuTiling(down_kc=512)))
    'CpuTiling(down_kc=512)'
    """
    config, values = candidate.config, dict(candidate.values)
    if config is None:
        return ""
    if isinstance(config, CpuTiling):
        return f"CpuTiling({_arguments(config.given())})"
    name = values.get("preset", base)
    if name is None:
        return f"MlaTileConfig({_arguments(_changes(config, MlaTileConfig()))})"
    made = f"preset({name!r}, {npuarch!r})" if npuarch != "DAV_3510" else f"preset({name!r})"
    changes = _changes(config, preset(name, npuarch))
    return f"{made}.replace({_arguments(changes)})" if changes else made


def _changes(config: MlaTileConfig, base: MlaTileConfig) -> dict[str, Any]:
    """The fields in which a config differs from another."""
    names = [f.name for f in fields(MlaTileConfig)]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(base, name)}


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    """A value as Python text; a cube tile as the list of its entries."""
    if isinstance(value, CubeTile):
        return repr([getattr(value, f.name) for f in fields(CubeTile)])
    return repr(value)
