"""Which outputs of a folder `write_dump` wrote itself: a mark with their digests, so that they pass for nobody's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..base.json_file import read_object
from ..base.output_file import write_text

__all__ = ["MARK_FILE", "GoldenMark"]

MARK_FILE = "golden.json"


@dataclass(frozen=True)
class GoldenMark:
    """SHA-256 digests of the golden outputs of a folder, by their paths in it; empty where there is no mark."""

    digests: dict[str, str]

    @classmethod
    def of(cls, folder: Path, paths: Iterable[Path]) -> GoldenMark:
        """The mark of these files as they are."""
        return cls({str(path.relative_to(folder)): _digest(path) for path in paths})

    @classmethod
    def read(cls, folder: Path) -> GoldenMark:
        """The mark that lies in a folder. Raises `ValueError` naming the file for one of another form."""
        path = folder / MARK_FILE
        if not path.exists():
            return cls({})
        digests = read_object(path).get("sha256")
        if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
            raise ValueError(f"{path}: expected sha256 to hold a digest for each file, got another form")
        return cls(digests)

    def write(self, folder: Path) -> None:
        """Leaves the mark in a folder."""
        text = json.dumps({"sha256": self.digests}, indent=1) + "\n"
        write_text(folder / MARK_FILE, text)

    def is_as_written(self, folder: Path, path: Path) -> bool:
        """Whether a file, by its path in the folder, is still the golden that `write_dump` wrote."""
        return str(path) in self.digests and self.digests[str(path)] == _digest(folder / path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
