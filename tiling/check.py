"""Checks at the door, shared by the package: each error reads ``name: expected what, got what``."""

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import TypeVar

__all__ = [
    "MAX_COUNT",
    "MAX_ITEMS",
    "MAX_THREADS",
    "MAX_TOKENS",
    "check_choice",
    "check_flag",
    "check_int",
    "check_ints",
    "check_rate",
    "check_setting",
    "check_str",
    "short_int",
]

MAX_COUNT = 2**31 - 1  # of elements, rows, panels or tasks: sums and products of two stay far below what int64 holds
MAX_TOKENS = 1 << 22  # a plan lists its tiles, which may be of one token each
MAX_THREADS = 1 << 16  # each has buffers of its own
MAX_ITEMS = 4096  # of a list: each size of a tile has a plan of its own
Choice = TypeVar("Choice", bound=str)
_MAX_RATE = 1e30  # and least 1e-30: quotients and products of two stay finite


def check_int(name: str, value: object, least: int | None = None, most: int | None = MAX_COUNT) -> int:
    """Return ``value`` if it is an int (bool is none) from ``least`` to ``most``, else raise; None is no bound."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected int, got {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}, got {short_int(value)}")
    if most is not None and value > most:
        raise ValueError(f"{name}: expected at most {most}, got {short_int(value)}")
    return value


def short_int(value: int) -> str:
    """The digits, or how many bits there are: Python writes no more than some thousand digits."""
    return str(value) if value.bit_length() <= 256 else f"an int of {value.bit_length()} bits"


def check_ints(
    name: str, values: object, least: int, length: int | None = None, most: int | None = MAX_COUNT
) -> list[int]:
    """Return ``values`` as a list of ints from ``least`` to ``most``.

    ``length`` is how many, if that is fixed; else there are at most ``MAX_ITEMS``.
    """
    expected = f"a sequence of {'' if length is None else f'{length} '}ints >= {least}"
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        raise TypeError(f"{name}: expected {expected}, got {values!r}")
    try:
        items = list(islice(values, MAX_ITEMS + 1))
    except TypeError:  # an array without axes is an Iterable by its type only
        raise TypeError(f"{name}: expected {expected}, got {values!r}") from None
    if len(items) > MAX_ITEMS:
        raise ValueError(f"{name}: expected at most {MAX_ITEMS if length is None else length} ints, got more")
    ints = [check_int(f"{name}[{i}]", value, least, most) for i, value in enumerate(items)]
    if length is not None and len(ints) != length:
        raise ValueError(f"{name}: expected {expected}, got {len(ints)} of them")
    return ints


def check_rate(name: str, value: object) -> float:
    """Return ``value`` if it is a number from 1e-30 to 1e30 (bool is none), else raise."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a float > 0, got {value!r}")
    if not 1 / _MAX_RATE <= value <= _MAX_RATE:  # NaN is not
        got = short_int(value) if isinstance(value, int) else value
        bounds = f", from {1 / _MAX_RATE:.0e} to {_MAX_RATE:.0e}" if 0 < value < float("inf") else ""
        raise ValueError(f"{name}: expected a float > 0{bounds}, got {got}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool, else raise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected bool, got {type(value).__name__}")
    return value


def check_str(name: str, value: object) -> str:
    """Return ``value`` if it is a str, else raise."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected str, got {type(value).__name__}")
    return value


def check_choice(name: str, value: object, choices: Collection[Choice]) -> Choice:
    """Return the one of ``choices`` that ``value`` is, else raise an error that lists them."""
    text = check_str(name, value)
    for choice in choices:
        if choice == text:
            return choice
    raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {text!r}")


def check_setting(name: str, value: object, lowest_key: int) -> dict[int, int]:
    """Return a copy of a scheduling setting: stage ordinal -> count, key -1 for the rest, key -2 a mode flag.

    ``lowest_key`` is -1, or -2 where the mode flag is allowed. Counts are at least 1, the flag at least 0.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping of int to int, got {value!r}")
    checked = {}
    for key, count in value.items():
        check_int(f"{name} key", key, lowest_key)
        checked[key] = check_int(f"{name}[{key}]", count, 0 if key == -2 else 1)
    return checked
