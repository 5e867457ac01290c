"""What a model's `config.json` says of its quantised weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..base.checks import check_int

__all__ = ["block_of", "method_of"]

_FIELD = "config.quantization_config"
DEFAULT_BLOCK = (128, 128)


def block_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of a block that shares a scale: 128 x 128 where the configuration is silent.

    From `weight_block_size`, or the `block_structure` of the groups of compressed-tensors. Raises `TypeError` or
    `ValueError` naming the field.
    """
    settings = _settings(config)
    size = settings.get("weight_block_size")
    if size is not None:
        return _two_numbers(f"{_FIELD}.weight_block_size", size)
    groups = settings.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise TypeError(f"{_FIELD}.config_groups: expected an object, got {type(groups).__name__}")
    sizes = set()
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        structure = weights.get("block_structure") if isinstance(weights, Mapping) else None
        if structure is not None:
            sizes.add(_two_numbers(f"{_FIELD}.config_groups.{name}.weights.block_structure", structure))
    if len(sizes) > 1:
        raise ValueError(f"{_FIELD}.config_groups: expected one block_structure, got {sorted(sizes)}")
    return sizes.pop() if sizes else DEFAULT_BLOCK


def method_of(config: Mapping[str, Any]) -> str:
    """The quantisation's name and format, as in "compressed-tensors, pack-quantized"; "" where nothing is said."""
    settings = _settings(config)
    said = [settings.get(key) for key in ("quant_method", "quant_algo", "format")]
    return ", ".join(dict.fromkeys(value for value in said if isinstance(value, str) and value))


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    settings = config.get("quantization_config")
    if settings is None and isinstance(text, Mapping):
        settings = text.get("quantization_config")
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise TypeError(f"{_FIELD}: expected an object, got {type(settings).__name__}")
    return settings


def _two_numbers(name: str, value: object) -> tuple[int, int]:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}x[0-9]{1,9}", value):
        value = [int(number) for number in value.split("x")]  # as compressed-tensors also writes it
    if not isinstance(value, list):
        raise TypeError(f"{name}: expected a list of two numbers, got {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected two numbers, got {value}")
    rows, columns = (check_int(name, number, 1) for number in value)
    return rows, columns
