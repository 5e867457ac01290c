"""The rope's settings in a model's configuration, in whichever of its forms they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import check_number
from .model_config import ModelConfig, is_set, shown

__all__ = ["Yarn", "read_count", "read_theta", "read_yarn"]

_PLAIN = ("default", "none")
_YARN = ("yarn", "deepseek_yarn")
_OF_EVERY_TYPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "max_position_embeddings"}
_OF_YARN = {
    "apply_yarn_scaling", "attention_factor", "beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim",
    "original_max_position_embeddings", "truncate",
}  # fmt: skip
_DEFAULT_THETA = 10000.0  # transformers'
_MAX_FLOAT = float(np.finfo(np.float32).max)
_MAX_COUNT = 2**20  # of a head's columns


@dataclass(frozen=True, slots=True)
class Yarn:
    """A YaRN scaling. `trained` is the number of positions that the model was trained with before it.

    `mscale` and `mscale_all_dim` are 0 where the configuration has none, `attention_factor` is None.
    `scales_scores`: whether `mscale_all_dim` scales the scores (`apply_yarn_scaling`).
    """

    factor: float
    trained: float
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    attention_factor: float | None
    truncate: bool
    scales_scores: bool


def read_count(model: ModelConfig, name: str) -> int:
    """A number of a head's columns, at least 1.

    Raises `TypeError` for another type, `ValueError` for none, no whole number, or one below 1 or above 2^20.
    """
    value = _number(f"{model.name}.{name}", model.get(name), 1, _MAX_COUNT)
    if value != int(value):
        raise ValueError(f"{model.name}.{name}: expected an int, got {value}")
    return int(value)


def read_theta(model: ModelConfig) -> float:
    """The base of the rope's wavelengths: of the mapping that holds the rope, or of the configuration itself.

    Raises `TypeError` for no number, `ValueError` for none, and for one that is at most 1 or not finite in float32.
    """
    where, chosen, other = _mappings(model)
    name = f"{model.name}.rope_theta"
    theta = next((t for t in (chosen.get("rope_theta"), model.get("rope_theta")) if t is not None), None)
    passed_over = other.get("rope_theta") if theta is None else None
    value = _number(name, theta if passed_over is None else passed_over, most=_MAX_FLOAT)
    if passed_over is not None and value != _DEFAULT_THETA:  # transformers takes the default
        raise ValueError(f"{name}: expected a number in {where}, got {value} in rope_parameters beside it")
    if not value > 1:
        raise ValueError(f"{name}: expected a number above 1, got {value}")
    return value


def read_yarn(model: ModelConfig) -> Yarn | None:
    """The YaRN scaling of a configuration, None for a rope without scaling.

    What transformers takes: `rope_scaling` before `rope_parameters`, in it `rope_type` before `type`, and
    `original_max_position_embeddings` of the configuration itself before the scaling's.

    Raises `TypeError` or `ValueError` naming the field that is missing, of another type or out of range, for another
    kind of scaling, and for a setting that the kind does not have.
    """
    where, scaling, _ = _mappings(model)
    kind = _kind(model, where, scaling)
    if kind is None:
        return None

    def number(name: str, default: float | None = None, above: bool = False) -> float:
        value = scaling.get(name)
        return _number(f"{model.name}.{name}", default if value is None else value, 0, _MAX_FLOAT, above)

    longest = model.get("max_position_embeddings")
    longest = scaling.get("max_position_embeddings") if longest is None else longest
    name = "original_max_position_embeddings"
    trained = next((n for n in (model.get(name), scaling.get(name)) if n is not None), None)
    if trained is None:
        name, trained = "max_position_embeddings", longest
    trained = _number(f"{model.name}.{name}", trained, 0, _MAX_FLOAT, above=True)
    if scaling.get("factor") is None:
        factor = _number(f"{model.name}.max_position_embeddings", longest, 0, _MAX_FLOAT, above=True) / trained
    else:
        factor = number("factor", above=True)
    given = scaling.get("attention_factor")
    return Yarn(
        factor=factor,
        trained=trained,
        beta_fast=number("beta_fast", 32.0) or 32.0,
        beta_slow=number("beta_slow", 1.0) or 1.0,
        mscale=number("mscale", 0.0),
        mscale_all_dim=number("mscale_all_dim", 0.0),
        attention_factor=None if given is None else number("attention_factor", above=True),
        truncate=_flag(model, scaling, "truncate", null=False),  # transformers takes a null for false
        scales_scores=_flag(model, scaling, "apply_yarn_scaling", null=True),
    )


def _mappings(model: ModelConfig) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """The mapping that holds the rope's settings, its name, and the one that it takes the place of."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = model.get(name)
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{model.name}.{name}: expected a mapping or none, got {type(given).__name__}")
        found[name] = given or {}
    where = "rope_scaling" if found["rope_scaling"] else "rope_parameters"
    return where, found[where], found["rope_parameters"]


def _kind(model: ModelConfig, where: str, scaling: Mapping[str, Any]) -> str | None:
    """The type of a scaling, None for none; raises for a setting that it does not have."""
    kind = next((k for k in (scaling.get("rope_type"), scaling.get("type")) if k is not None), None)
    if kind is not None and (not isinstance(kind, str) or kind not in _PLAIN + _YARN):
        raise ValueError(f"{model.name}.rope_scaling.type: expected yarn, default or no scaling, got {shown(kind)}")
    is_yarn = kind in _YARN
    for name, value in scaling.items():
        if name in _OF_EVERY_TYPE or (name in _OF_YARN and is_yarn):
            continue
        place = f"{model.name}.{where}.{str(name)[:60]}"
        if name not in _OF_YARN and is_set(value):
            known = ", ".join(sorted(_OF_EVERY_TYPE | (_OF_YARN if is_yarn else set())))
            raise ValueError(f"{place}: expected no settings but {known}, got {shown(value)}")
        is_one = name == "factor" and isinstance(value, (int, float)) and value == 1
        if name in _OF_YARN and value is not None and not is_one:
            said = "without a rope_type" if kind is None else f"beside rope_type {kind}"
            raise ValueError(f"{place}: expected it beside rope_type yarn, got {shown(value)} {said}")
    return str(kind) if is_yarn else None


def _flag(model: ModelConfig, scaling: Mapping[str, Any], name: str, null: bool) -> bool:
    value = scaling.get(name, True)
    value = null if value is None else value
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{model.name}.{name}: expected bool, got {type(value).__name__}")
    return bool(value)


def _number(name: str, value: Any, least: float = -_MAX_FLOAT, most: float = _MAX_FLOAT, above: bool = False) -> float:
    """`value` if it is a number from `least` to `most`, without `least` where it is to be above it."""
    if value is None:
        raise ValueError(f"{name}: expected a number, got none")
    number = check_number(name, value)
    if above and not number > least:
        raise ValueError(f"{name}: expected a number above {least:g}, got {shown(value)}")
    if not least <= number <= most:
        wanted = f"of at least {least:g}" if number < least else f"of at most {most:g}"
        raise ValueError(f"{name}: expected a number {wanted}, got {shown(value)}")
    return number
