"""The files of a folder of dumps, by the argument that each holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..base.checks import Array
from ..base.modes import DUMP_OPERATORS, DumpOperator
from .arguments import ARGUMENTS
from .elements import as_kind, load_npy, read_bin
from .kinds import Kind, Shape
from .names import meaning_of
from .torch_file import load_tensors

__all__ = ["SUFFIXES", "DumpFile", "DumpFiles", "find_files", "guess_operator"]

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
    """The files of a folder by the argument of the operator that they hold; `unread` are those that no argument is."""

    folder: Path
    operator: DumpOperator
    inputs: dict[str, DumpFile] = field(default_factory=dict)
    outputs: dict[str, list[DumpFile]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    tensors: dict[Path, dict[str | None, Array]] = field(default_factory=dict)

    def shape(self, name: str) -> Shape | None:
        """The shape of an input; None for a `.bin`, which does not tell."""
        file = self.inputs[name]
        return None if file.path.suffix == ".bin" else self._array(name, file).shape

    def has_elements(self, name: str) -> bool:
        """Whether an input is there, and more than empty."""
        if name not in self.inputs:
            return False
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


def find_files(folder: Path, operator: DumpOperator) -> DumpFiles:
    """The `.npy`, `.bin` and `.pt` files of a folder and of the subfolders that are known, by the operator's arguments.

    A `.pt` with several tensors counts as a folder of its own name: those of `inputs.pt` are inputs. One that is called
    neither as an argument nor as in `COLLECTIONS` is not opened. Of a weight that is there in ND and in FRACTAL_NZ, the
    ND one is taken. Raises `ValueError` for two files that are the same input
    and for one that is no regular file, `FileNotFoundError` for a folder that is not there, and what `load_tensors`
    raises.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder, got none")
    files = DumpFiles(folder, operator)
    inputs = {argument.name for argument in ARGUMENTS[operator].all_inputs}
    for path in _paths(folder):
        inside = path.relative_to(folder)
        for entry, name, sub in _names(files, path, inside):
            meaning = meaning_of(name, sub, operator)
            if meaning is None:
                files.unread.append(str(DumpFile(inside, entry, False, False)))
                continue
            if not path.is_file():
                raise ValueError(f"{meaning.argument} ({inside}): expected a regular file, got another kind")
            file = DumpFile(inside, entry, meaning.is_golden, meaning.is_nz)
            if meaning.argument in inputs:
                _add_input(files, meaning.argument, file)
            else:
                files.outputs.setdefault(meaning.argument, []).append(file)
    return files


def guess_operator(folder: Path) -> DumpOperator:
    """The operator whose inputs a folder has, by the names of its files.

    Of those whose inputs are all there it is the one with the most inputs, and so it is of all where none is complete.
    In doubt it is the first of `DUMP_OPERATORS`. Raises what `load_tensors` raises for a `.pt` of several tensors.
    """
    names: list[tuple[str, str]] = []
    for path in _paths(folder):
        sub = _folder_of(path, folder)
        names.append((path.stem, sub))
        if path.suffix == ".pt" and path.stem in COLLECTIONS and path.is_file():
            tensors = load_tensors(path, str(path.relative_to(folder)))
            names += [(entry, _folder_in(path, sub)) for entry in tensors if entry is not None]

    def rank(operator: DumpOperator) -> tuple[bool, int]:
        meanings = [meaning_of(stem, sub, operator) for stem, sub in names]
        there = {meaning.argument for meaning in meanings if meaning is not None}
        inputs = ARGUMENTS[operator].all_inputs
        complete = all(argument.name in there for argument in inputs if not argument.optional)
        return complete, sum(argument.name in there for argument in inputs)

    return max(DUMP_OPERATORS, key=rank)


def _paths(folder: Path) -> list[Path]:
    return sorted(path for sub in SUBFOLDERS for path in (folder / sub).glob("*") if path.suffix in SUFFIXES)


def _folder_of(path: Path, folder: Path) -> str:
    return path.parent.name if path.parent != folder else ""


def _folder_in(path: Path, of_folder: str) -> str:
    """The folder that the tensors of a `.pt` count in."""
    return path.stem if path.stem in SUBFOLDERS else of_folder


def _names(files: DumpFiles, path: Path, inside: Path) -> Iterator[tuple[str | None, str, str]]:
    """What a file holds: which tensor of several, its name, and the folder that the name counts in."""
    of_folder = _folder_of(path, files.folder)
    known = meaning_of(path.stem, of_folder, files.operator)
    if path.suffix != ".pt" or not path.is_file() or (known is None and path.stem not in COLLECTIONS):
        yield None, path.stem, of_folder
        return
    files.tensors[inside] = tensors = load_tensors(path, str(inside))
    for entry in tensors:
        if entry is None:
            yield None, path.stem, of_folder
        else:
            yield entry, entry, _folder_in(path, of_folder)


def _add_input(files: DumpFiles, name: str, file: DumpFile) -> None:
    other = files.inputs.setdefault(name, file)
    if other is file:
        return
    if other.is_nz == file.is_nz:
        raise ValueError(f"{name}: expected one file, got {other} and {file}")
    nd, nz = (file, other) if other.is_nz else (other, file)
    files.inputs[name] = nd
    files.unread.append(str(nz))
