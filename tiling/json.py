"""Frozen dataclasses of ints, strings, tuples and each other, to JSON and back."""

import json
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["from_json", "parse_object", "to_json"]

T = TypeVar("T")

_SHOWN = 200  # characters of a text that is refused


def to_json(plan: Any) -> str:
    """JSON text of a dataclass; tuples become lists."""
    return json.dumps(asdict(plan))


def from_json(cls: type[T], text: str) -> T:
    """The object of ``cls`` that ``to_json`` wrote; its constructors check it again."""
    built: T = _build(cls, parse_object(text, f"for {cls.__name__}"), "text")
    return built


def parse_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object that ``text`` is."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {text!r}")
    expected = f"text: expected a JSON object {what}, got"
    try:
        data = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{expected} one that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{expected} {_short(text)} ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{expected} {_short(text)}")
    return data


def _refuse(name: str) -> Any:
    raise ValueError(f"the number {name}")


def _short(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r} and {len(text) - _SHOWN} characters more"


def _build(hint: Any, value: Any, name: str) -> Any:
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
