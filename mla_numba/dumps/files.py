"""The files of a folder of dumps, by the argument that each holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..base.checks import Array
from .elements import as_kind, load_npy, read_bin
from .kinds import Kind, Shape
from .names import OUTPUTS, meaning_of
from .torch_file import load_tensors

__all__ = ["SUFFIXES", "DumpFile", "DumpFiles", "find_files"]

SUBFOLDERS = ("", "input", "inputs", "output", "outputs", "golden", "goldens")
COLLECTIONS = (*SUBFOLDERS[1:], "dump")  # names of a .pt that holds several tensors
SUFFIXES = (".npy", ".bin", ".pt")


class DumpFile(NamedTuple):
    """A file by its path in the folder, which of its tensors where it holds several, and what their names say."""

    path: Path
    entry: str | None
    is_golden: bool
    is_nz: bool

    def __str__(self) -> str:
        return str(self.path) if self.entry is None else f"{self.path}[{self.entry!r}]"


@dataclass
class DumpFiles:
    """The files of a folder by the argument that they hold; `unread` are those that no argument is."""

    folder: Path
    inputs: dict[str, DumpFile] = field(default_factory=dict)
    outputs: dict[str, list[DumpFile]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    tensors: dict[Path, dict[str | None, Array]] = field(default_factory=dict)

    def shape(self, name: str) -> Shape | None:
        """The shape of an input; None for a `.bin`, which does not tell."""
        file = self.inputs[name]
        return None if file.path.suffix == ".bin" else self._array(name, file).shape

    def has_elements(self, name: str) -> bool:
        """Whether an input is more than empty."""
        file = self.inputs[name]
        if file.path.suffix == ".bin":
            return (self.folder / file.path).stat().st_size > 0
        return self._array(name, file).size > 0

    def read(self, name: str, file: DumpFile, kinds: Iterable[Kind]) -> Array:
        """The file as the first of `kinds` that it can be.

        Raises `ValueError` for another size or shape or for float32 values that bf16 does not hold, `TypeError` for
        other elements, both with the argument's and the file's name.
        """
        label = f"{name} ({file})"
        if file.path.suffix == ".bin":
            return read_bin(self.folder / file.path, label, kinds)
        return as_kind(self._array(name, file), label, kinds)

    def _array(self, name: str, file: DumpFile) -> Array:
        if file.path.suffix == ".pt":
            return self.tensors[file.path][file.entry]
        return load_npy(self.folder / file.path, f"{name} ({file})")


def find_files(folder: Path) -> DumpFiles:
    """The `.npy`, `.bin` and `.pt` files of a folder and of the subfolders that are known.

    A `.pt` with several tensors counts as a folder of its own name: those of `inputs.pt` are inputs. One that is called
    neither as an argument nor as in `COLLECTIONS` is not opened. Of a weight that is there in ND and in FRACTAL_NZ, the
    ND one is taken. Raises `ValueError` for two files that are the same input
    and for one that is no regular file, `FileNotFoundError` for a folder that is not there, and what `load_tensors`
    raises.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder, got none")
    files = DumpFiles(folder)
    paths = [path for sub in SUBFOLDERS for path in (folder / sub).glob("*") if path.suffix in SUFFIXES]
    for path in sorted(paths):
        inside = path.relative_to(folder)
        of_folder = path.parent.name if path.parent != folder else ""
        for entry, name, sub in _names(files, path, inside, of_folder):
            meaning = meaning_of(name, sub)
            if meaning is None:
                files.unread.append(str(DumpFile(inside, entry, False, False)))
                continue
            if not path.is_file():
                raise ValueError(f"{meaning.argument} ({inside}): expected a regular file, got another kind")
            file = DumpFile(inside, entry, meaning.is_golden, meaning.is_nz)
            if meaning.argument in OUTPUTS:
                files.outputs.setdefault(meaning.argument, []).append(file)
            else:
                _add_input(files, meaning.argument, file)
    return files


def _names(files: DumpFiles, path: Path, inside: Path, of_folder: str) -> Iterator[tuple[str | None, str, str]]:
    """What a file holds: which tensor of several, its name, and the folder that the name counts in."""
    known = meaning_of(path.stem, of_folder)
    if path.suffix != ".pt" or not path.is_file() or (known is None and path.stem not in COLLECTIONS):
        yield None, path.stem, of_folder
        return
    files.tensors[inside] = tensors = load_tensors(path, str(inside))
    for entry in tensors:
        if entry is None:
            yield None, path.stem, of_folder
        else:
            yield entry, entry, path.stem if path.stem in SUBFOLDERS else of_folder


def _add_input(files: DumpFiles, name: str, file: DumpFile) -> None:
    other = files.inputs.setdefault(name, file)
    if other is file:
        return
    if other.is_nz == file.is_nz:
        raise ValueError(f"{name}: expected one file, got {other} and {file}")
    nd, nz = (file, other) if other.is_nz else (other, file)
    files.inputs[name] = nd
    files.unread.append(str(nz))
