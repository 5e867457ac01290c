"""What ``repr`` says of settings with defaults: those that were changed."""

from dataclasses import MISSING, fields
from typing import Any

__all__ = ["changed_repr"]


def changed_repr(value: Any) -> str:
    """``Name(field=value, ...)`` of a dataclass without what is a default: Python makes the same of it."""
    texts = []
    for f in fields(value):
        given = getattr(value, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if given != default:
            texts.append(f"{f.name}={given!r}")
    return f"{type(value).__name__}({', '.join(texts)})"
