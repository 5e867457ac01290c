"""Checks at the door, shared by the package: each error reads ``name: expected what, got what``."""

from collections.abc import Iterable, Mapping

__all__ = ["check_choice", "check_flag", "check_int", "check_ints", "check_setting"]


def check_int(name: str, value: object, minimum: int | None = None) -> int:
    """Return ``value`` if it is an int (bool is none) of at least ``minimum``, else raise."""
    expected = "an int" if minimum is None else f"an int >= {minimum}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return value


def check_ints(name: str, values: object, minimum: int, length: int | None = None) -> list[int]:
    """Return ``values`` as a list of ints of at least ``minimum``; ``length`` is how many, if that is fixed."""
    expected = f"a sequence of {'' if length is None else f'{length} '}ints >= {minimum}"
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        raise TypeError(f"{name}: expected {expected}, got {values!r}")
    try:
        items = list(values)
    except TypeError:  # an array without axes is an Iterable by its type only
        raise TypeError(f"{name}: expected {expected}, got {values!r}") from None
    ints = [check_int(f"{name}[{i}]", value, minimum) for i, value in enumerate(items)]
    if length is not None and len(ints) != length:
        raise ValueError(f"{name}: expected {expected}, got {len(ints)} of them")
    return ints


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool, else raise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {value!r}")
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``choices``, else raise an error that lists them."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {value!r}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


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
