"""The fields of a JSON object; a `ValueError` that names the field if it is missing or of another type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["list_in", "number_in", "object_in", "seconds_in", "short", "string_in"]

_MISSING = object()
_MAX_NUMBER = 2.0**63


def short(value: object) -> str:
    """A value as an error shows it."""
    return "none" if value is _MISSING else repr(value)[:80]


def object_in(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object."""
    value = holder.get(name, _MISSING)
    if not isinstance(value, dict):
        raise ValueError(f"{name}: an object, got {short(value)}")
    return value


def list_in(holder: Mapping[str, Any], name: str) -> list[Any]:
    """A list."""
    value = holder.get(name, _MISSING)
    if not isinstance(value, list):
        raise ValueError(f"{name}: a list, got {short(value)}")
    return value


def string_in(holder: Mapping[str, Any], name: str, default: object = _MISSING) -> str:
    """A string; `default` if it is missing."""
    value = holder.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name}: a string, got {short(value)}")
    return value


def number_in(holder: Mapping[str, Any], name: str, kind: type = float, default: object = _MISSING) -> Any:
    """A number of at least 0; `default`, if there is one, for a missing field."""
    value = holder.get(name, default)
    if value is None and default is None:
        return None
    fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not fits or not 0 <= value <= _MAX_NUMBER:
        raise ValueError(f"{name}: a number from 0 to 2**63, got {short(value)}")
    return value


def seconds_in(stats: Mapping[str, Any], name: str) -> float:
    """A time above 0."""
    seconds: float = number_in(stats, name)
    if not seconds:
        raise ValueError(f"{name}: seconds, got 0")
    return seconds
