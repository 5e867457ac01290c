"""How the command line shows shares, sizes and tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["BEYOND_LIMIT", "PICTURE_WIDTH", "beyond_limit", "folder_size", "megabytes", "print_wide", "share_text"]

PICTURE_WIDTH = 10.0  # inches; with 100 dots each 1000 pixels
BEYOND_LIMIT = (
    "(!) more than 100 %: faster than the rates measured beside it allow, since part of the weights came from caches, "
    "or the machine was slower while the rates were measured; no share of the limit"
)


def share_text(share: float, decimals: int = 0) -> str:
    """A share of the limit as text; one above 100 % is marked, and `BEYOND_LIMIT` says why it is none."""
    return f"{share:.{decimals}%}" + (" (!)" if share > 1 else "")


def beyond_limit(shares: Iterable[float | None]) -> str:
    """`BEYOND_LIMIT` where it is needed for one of these shares, else nothing."""
    return BEYOND_LIMIT if any(share is not None and share > 1 for share in shares) else ""


def folder_size(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files in a folder and below; (0, 0) if it is not there."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def megabytes(n_bytes: int) -> str:
    """Bytes as text in MB (10^6)."""
    return f"{n_bytes / 1e6:.2f} MB"


def print_wide(table: Table, width: int) -> None:
    """Prints a table at least so wide: a file has no width, and names take room."""
    console = Console()
    Console(width=max(console.width, width)).print(table)
