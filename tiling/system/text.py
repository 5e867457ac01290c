"""Reading what a system says: small texts, counts, lists of CPUs."""

from pathlib import Path

__all__ = ["cpu_list", "number", "read"]

_MAX_DIGITS = 15  # of a number in a system's file: more is no size and no count
_MAX_CPUS = 2**16


def read(path: Path) -> str:
    """The file's text without surrounding white space, empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(text: str) -> int:
    """The count that a system's file or key holds, -1 where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else -1


def cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list such as "0-3,8,10-11"; what is no number of a CPU is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        begin, end = number(first), number(last if dash else first)
        if 0 <= begin <= end < _MAX_CPUS:
            found.update(range(begin, end + 1))
    return frozenset(found)
