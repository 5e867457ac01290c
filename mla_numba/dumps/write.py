"""Golden data: the inputs of a call and the oracle's outputs, as a folder of dumps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Unpack

from ..base.checks import check_choice
from ..base.modes import DUMP_FORMATS, DumpFormat, DumpStyle, QuantMode
from ..base.output_file import write_text
from ..layouts import to_fractal_nz
from .call import Call, CallChoices, Choices
from .elements import write_array
from .goldens import MARK_FILE, GoldenMark
from .names import STYLES, name_in
from .operators import OPERATORS
from .settings import SETTINGS_FILE, DumpSettings
from .torch_file import import_torch

__all__ = ["FORMATS", "write_dump"]

FORMATS = DUMP_FORMATS


def write_dump(
    folder: str | os.PathLike[str],
    t: int,
    quant: QuantMode = "b",
    *,
    settings: DumpSettings | None = None,
    file_format: DumpFormat = "npy",
    style: DumpStyle = "reference",
    finished: Callable[[str], None] = lambda name: None,
    **choices: Unpack[CallChoices],
) -> list[Path]:
    """Writes inputs of `t` tokens and the oracle's outputs (`*_golden`) into a folder; the files' paths.

    `settings.operator` is the operator of the call, by default the prolog. What it has no use for is refused.

    It also writes `dims.json` with the settings, and `golden.json`, by which `read_dump` recognises these outputs.

    `choices` of the call:

    - `smooth` (default False): with SmoothQuant scales on the normalised query.
    - `seed` (0): of weights, inputs and caches, which are random. Caches hold random rows.
    - `n_blocks`: blocks of the cache; by default one more than the tokens need.
    - `scale_dtype` ("float32"): elements of k_scale_cache, "float32" or "float16".
    - `sequences` (1): whose newest tokens these are, for the lightning index and sparse attention.
    - `context` (4096): keys of the first sequence; the others have as many or less.

    Args:
        folder: It may exist, the files may not.
        t: Tokens of the call.
        quant: "none", "a", "b" or "ab" of the prolog, "b" or "ab" of both prologs in one. Of sparse attention "b" is a
            cache of int8, "none" one of bf16. Others have "b" only.
        settings: Operator, dimensions, cache and numerics; with `nz` weights that may be FRACTAL_NZ are.
        file_format: "npy", "bin", or "pt" for a tensor of torch a file.
        style: "reference", "pypto" or "numbers", see `mla_numba.dump_names.name_in`.
        finished: Called with the argument's name after each file.
        **choices: Of the call, see above.

    Returns:
        The files' paths.

    Raises:
        FileExistsError: A file, which the message names, exists; nothing is written.
        ImportError: The format is "pt", and torch is not installed.
        OSError: A file cannot be written; no file of the dump is left then.
        TypeError: An argument is of another type.
        ValueError: It has another value.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.dumps import DumpSettings, check_dump, dump_settings, read_dump, write_dump
        >>> settings = DumpSettings(dims=mla.MlaDims(256, 4, 96, 64, 32, 32), block_size=16)
        >>> paths = write_dump("golden", 4, "b", settings=settings)
        >>> dump_settings("golden").block_size
        16
        >>> dump = read_dump("golden")
        >>> dump.outputs[0]
        <DumpedOutput: q_norm_out, (4, 96) int8, of q_norm_golden.npy>
        >>> all(agreement.exact for agreement in check_dump(dump))
        True
        >>> index = DumpSettings(operator="lightning_indexer_quant", indexer_heads=4, indexer_head_dim=32, k=8)
        >>> paths = write_dump("lists", 4, settings=index, sequences=2, context=40)
        >>> print(check_dump(read_dump("lists"))[0])
        topk_res: 4 of 4 lists equal, 0 in another order, 0 with others of close scores, 0 wrong
    """
    folder = Path(folder)
    settings = settings or DumpSettings()
    check_choice("file_format", file_format, FORMATS)
    check_choice("style", style, STYLES)
    operator = OPERATORS[settings.operator]
    chosen = Choices(t=t, quant=quant, **choices)
    chosen.check(settings.operator, operator.modes, operator.choices_read)
    if file_format == "pt":
        import_torch("file_format")
    arguments = operator.arguments()
    own = [folder / SETTINGS_FILE, folder / MARK_FILE]

    def path_of(key: str) -> Path:
        return folder / f"{name_in(style, arguments.by_key[key].name, settings.operator)}.{file_format}"

    sure = [argument.key for argument in arguments.by_key.values() if not argument.optional]
    _refuse_existing([*map(path_of, sure), *own])  # before weights are made, which takes seconds
    call = operator.random(settings, chosen)
    inputs = {key: array for key, array in call.inputs().items() if array is not None}
    keys = [*inputs, *call.expected()]
    with _all_or_none(folder) as begun:
        _prepare(folder, [*map(path_of, keys), *own])
        arrays = inputs | call.goldens()
        for key in keys:
            begun.append(path_of(key))
            is_nz = settings.nz and arguments.by_key[key].may_be_nz
            write_array(begun[-1], to_fractal_nz(arrays[key]) if is_nz else arrays[key])
            finished(arguments.by_key[key].name)
        begun.append(folder / SETTINGS_FILE)
        write_text(begun[-1], json.dumps(_content(call), indent=1) + "\n")
        begun.append(folder / MARK_FILE)
        GoldenMark.of(folder, map(path_of, call.expected())).write(folder)
    return begun


def _content(call: Call) -> dict[str, Any]:
    """What `dims.json` says: dimensions field by field, and the other settings that concern the operator."""
    settings = call.settings.as_dict(call.settings_read)
    dims = settings.pop("dims", None) or {}
    return dims | {name: value for name, value in settings.items() if value is not None}


@contextmanager
def _all_or_none(folder: Path) -> Iterator[list[Path]]:
    """A list for the files that are begun; they, and folders that were made, are removed again if an error comes."""
    begun: list[Path] = []
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield begun
    except BaseException:
        for path in begun:
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise FileExistsError(f"{path}: expected no such file, got one")


def _prepare(folder: Path, paths: Iterable[Path]) -> None:
    """Makes the folder, or raises what would otherwise be raised once everything is computed."""
    _refuse_existing(paths)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder, got another kind of file")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: expected a folder that can be written, got one that cannot")
