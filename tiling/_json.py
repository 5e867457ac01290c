"""Frozen dataclasses of ints, strings, tuples and each other, to JSON and back."""

import json
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["from_json", "parse_object", "to_json"]

T = TypeVar("T")


def to_json(plan: Any) -> str:
    """JSON text of a dataclass; tuples become lists."""
    return json.dumps(asdict(plan))


def from_json(cls: type[T], text: str) -> T:
    """The object of ``cls`` that ``to_json`` wrote; its constructors check it again."""
    built: T = _build(cls, parse_object(text, f"for {cls.__name__}"))
    return built


def parse_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object that ``text`` is."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {text!r}")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"text: expected a JSON object {what}, got {text!r} ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"text: expected a JSON object {what}, got {text!r}")
    return data


def _build(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        cls: Any = hint
        return cls(**{name: _build(hints.get(name), v) for name, v in value.items()})
    if get_origin(hint) is tuple:
        args = get_args(hint)
        items = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_build(item, v) for item, v in zip(items, value, strict=True))
    return value
