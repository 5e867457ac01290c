"""Reading a folder of dumps: the arguments of a call, and the outputs that an operator left beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.short_repr import short_repr
from .call import Call, DumpedOutput
from .files import DumpFile, DumpFiles, find_files
from .goldens import GoldenMark
from .operators import OPERATORS
from .reader import InputReader
from .settings import DumpSettings, dump_settings

__all__ = ["Dump", "read_dump"]


@dataclass(frozen=True, slots=True, eq=False)
class Dump:
    """What a folder holds. `write_dump` has an example.

    `call` has the arguments of a call of the operator, and `settings` what the files don't say of it. Fields of `call`
    are attributes of the dump, too; `mla_numba.dumps` lists them. `outputs` are the outputs to check; `only_goldens` is
    true if `write_dump` wrote all of them, and no operator any. `missing` are outputs without a file,
    `goldens_left_out` goldens beside an operator's outputs, `unread` files with other names.
    """

    call: Call
    outputs: tuple[DumpedOutput, ...]
    only_goldens: bool
    missing: tuple[str, ...]
    goldens_left_out: tuple[str, ...]
    unread: tuple[str, ...]

    def __repr__(self) -> str:
        outputs = f"{len(self.outputs)} outputs{', all goldens' if self.only_goldens else ''}"
        return short_repr(self, self.call.operator, self.call.title, outputs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "call":  # copy and pickle ask for attributes before there is a call
            raise AttributeError(name)
        return getattr(self.call, name)

    @property
    def settings(self) -> DumpSettings:
        """What the files of the folder don't say."""
        return self.call.settings

    def reference(self) -> Any:
        """The oracle's outputs for these inputs, with the numerics of the settings: as the oracle returns them."""
        return self.call.reference()


def read_dump(folder: str | os.PathLike[str], settings: DumpSettings | None = None, *, goldens: bool = False) -> Dump:
    """Reads inputs and outputs from a folder. `write_dump` has an example.

    Outputs are the operator's. If it left none, they are the goldens of another oracle, and otherwise the goldens that
    `write_dump` wrote.

    Args:
        folder: The folder.
        settings: By default `dump_settings(folder)`.
        goldens: Take goldens of either kind, whatever else is in the folder.

    Returns:
        Arguments of a call, outputs, and what was left out.

    Raises:
        FileNotFoundError: There is no such folder.
        ImportError: There is a `.pt`, and torch is not installed.
        TypeError: A file has other elements.
        ValueError: Inputs are missing (all are named), there are two files for one, a size or shape does not fit, a
            setting is missing, or a file is broken.
    """
    folder = Path(folder)
    settings = dump_settings(folder) if settings is None else settings
    files = find_files(folder, settings.operator)
    call = OPERATORS[settings.operator].read(InputReader(files, settings))
    names = {argument.key: argument.name for argument in call.arguments().all_outputs}
    expected = {names[key]: kinds for key, kinds in call.expected().items()}
    chosen, left_out, only_goldens = _choose_outputs(files, expected, goldens)
    there = {name for name, _ in chosen}
    foreign = [str(file) for name in files.outputs if name not in expected for file in files.outputs[name]]
    return Dump(
        call=call,
        outputs=tuple(DumpedOutput(name, str(file), files.read(name, file, expected[name])) for name, file in chosen),
        only_goldens=only_goldens,
        missing=tuple(name for name in expected if name not in there),
        goldens_left_out=tuple(left_out),
        unread=tuple(sorted(files.unread + foreign)),
    )


def _choose_outputs(
    files: DumpFiles, expected: Iterable[str], goldens: bool
) -> tuple[list[tuple[str, DumpFile]], list[str], bool]:
    """The outputs to check, the goldens beside them, and whether those to check are `write_dump`'s own."""
    mark = GoldenMark.read(files.folder)
    found = [(name, file) for name in expected for file in files.outputs.get(name, [])]
    own = [(name, file) for name, file in found if mark.is_as_written(files.folder, file.path)]
    foreign = [(name, file) for name, file in found if (name, file) not in own and file.is_golden]
    # A golden that somebody replaced is no longer the one that was written: it counts as the operator's.
    replaced = [(name, file) for name, file in foreign if str(file.path) in mark.digests]
    operators = [pair for pair in found if pair in replaced or (pair not in own and pair not in foreign)]
    chosen = [pair for pair in found if pair[1].is_golden] if goldens else operators or foreign or own
    left_out = [str(file) for name, file in found if (name, file) not in chosen and file.is_golden]
    return chosen, left_out, bool(chosen) and all(pair in own for pair in chosen)
