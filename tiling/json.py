"""Frozen dataclasses of ints, strings, tuples and each other, to JSON and back."""

import json
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from tiling.check import check_str

__all__ = ["JsonText", "parse_object"]

_SHOWN = 200  # characters of a text that is refused


class JsonText:
    """Base of the dataclasses that are written as JSON and read back."""

    def to_json(self) -> str:
        """JSON text of every field; tuples become lists."""
        return json.dumps(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The object that ``to_json`` wrote, checked again.

        Args:
            text: JSON; fields that have a default may be missing.

        Returns:
            An equal object.

        Raises:
            TypeError: A field is of another type.
            ValueError: The text is no JSON, has other fields, or one with another value.
        """
        built: Self = _build(cls, parse_object(check_str("text", text), "text"), "text")
        return built


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object that ``text`` is; ``where`` begins the message of an error.

    Raises ``ValueError`` for text that is no JSON or no UTF-8, another kind of value, NaN and Infinity, which JSON does
    not know, a number of thousands of digits, and nesting that is too deep for Python.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{where}: expected a JSON object, got one that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"the number {name}")


def _short(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r} and {len(text) - _SHOWN} characters more"


def _build(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) is UnionType and is_dataclass(get_args(hint)[0]):  # or None
        return None if value is None else _build_dataclass(get_args(hint)[0], value, name)
    if is_dataclass(hint):
        return _build_dataclass(hint, value, name)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name}: expected a list, got {_short(json.dumps(value))}")
        args = get_args(hint)
        items = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(items) != len(value):
            raise ValueError(f"{name}: expected a list of {len(items)}, got one of {len(value)}")
        return tuple(_build(item, v, f"{name}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
    return value


def _build_dataclass(cls: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object for {cls.__name__}, got {_short(json.dumps(value))}")
    known = {f.name for f in fields(cls)}
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    for what, names in (("without", needed - set(value)), ("with", set(value) - known)):
        if names:
            raise ValueError(f"{name}: expected the fields of {cls.__name__}, got an object {what} {min(names)!r}")
    hints = get_type_hints(cls)
    return cls(**{key: _build(hints[key], v, key) for key, v in value.items()})
