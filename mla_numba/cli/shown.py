"""How the command line shows shares, sizes and tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..tuning.limit import FROM_CACHES, SLOW_PROBES

__all__ = [
    "BEYOND_LIMIT",
    "TABLE_WIDTH",
    "beyond_limit",
    "folder_size",
    "megabytes",
    "no_share",
    "print_wide",
    "quantity",
    "share_text",
]

TABLE_WIDTH = 110  # characters
_MARK = "(!)"


def share_text(share: float | None, decimals: int = 0) -> str:
    """A share of the limit as text; for None and above 100 % a mark, which `no_share` explains."""
    return _MARK if share is None or share > 1 else f"{share:.{decimals}%}"


def no_share(reasons: Iterable[str]) -> str:
    """What the mark of `share_text` means, with the reasons; nothing where there are none."""
    said = " or ".join(dict.fromkeys(filter(None, reasons)))
    told = f"{_MARK} more than 100 %: faster than the rates measured beside it allow, so it is no share of the limit"
    return f"{told}: {said}" if said else ""


BEYOND_LIMIT = no_share([FROM_CACHES, SLOW_PROBES])


def beyond_limit(shares: Iterable[float | None]) -> str:
    """`BEYOND_LIMIT` where it is needed for one of these shares, else nothing."""
    return BEYOND_LIMIT if any(share is not None and share > 1 for share in shares) else ""


def folder_size(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files in a folder and below; (0, 0) if it is not there."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def quantity(n: int, noun: str) -> str:
    """A number of things: 0 plans, 1 plan, 2 plans."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def megabytes(n_bytes: int) -> str:
    """Bytes as text in MB (10^6)."""
    return f"{n_bytes / 1e6:.2f} MB"


def print_wide(table: Table, width: int) -> None:
    """Prints a table at least `width` wide: a file or pipe has no width of its own, and names must not be cut."""
    console = Console()
    Console(width=max(console.width, width)).print(table)
