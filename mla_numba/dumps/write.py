"""Golden data: the inputs of a call and the oracle's outputs, as a folder of dumps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

from ..base.checks import check_choice
from ..base.modes import DUMP_FORMATS, DumpFormat, DumpStyle, QuantMode
from ..base.output_file import write_text
from .elements import write_array
from .golden_call import CallChoices, GoldenCall
from .goldens import MARK_FILE, GoldenMark
from .names import INPUTS, OUTPUTS, STYLES, name_in
from .settings import SETTINGS_FILE, DumpSettings
from .torch_file import import_torch

__all__ = ["FORMATS", "write_dump"]

FORMATS = DUMP_FORMATS
_ONLY_INT8 = ("q_norm_scale_out", "k_scale_cache_out")
_ALWAYS = [
    name for name in (*INPUTS, *OUTPUTS) if name not in ("dequant_scale", "cache_index", "k_scale_cache", *_ONLY_INT8)
]


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

    It also writes `dims.json` with the settings, and `golden.json`, by which `read_dump` recognises these outputs.

    `choices` of the call:

    - `smooth` (default False): with SmoothQuant scales on the normalised query.
    - `seed` (0): of weights, inputs and caches, which are random. Caches hold random rows.
    - `n_blocks`: blocks of the cache; by default one more than the tokens need.
    - `scale_dtype` ("float32"): elements of k_scale_cache, "float32" or "float16".

    Args:
        folder: It may exist, the files may not.
        t: Tokens of the call.
        quant: "none", "a", "b" or "ab".
        settings: Dimensions, cache and numerics; with `nz` w_dq, w_uq_qr and w_dkv_kr are written as FRACTAL_NZ.
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
    """
    folder = Path(folder)
    settings = settings or DumpSettings()
    check_choice("file_format", file_format, FORMATS)
    check_choice("style", style, STYLES)
    if file_format == "pt":
        import_torch("file_format")
    own = [folder / SETTINGS_FILE, folder / MARK_FILE]

    def path_of(name: str) -> Path:
        return folder / f"{name_in(style, name)}.{file_format}"

    _refuse_existing([*map(path_of, _ALWAYS), *own])  # before weights are made, which takes seconds
    call = GoldenCall.random(settings, t, quant, **choices)
    arrays = call.inputs(settings.nz)
    names = [*arrays, *(name for name in OUTPUTS if "b" in quant or name not in _ONLY_INT8)]
    paths = {name: path_of(name) for name in names}
    content = asdict(call.weights.dims) | {k: v for k, v in asdict(settings).items() if k != "dims"}
    with _all_or_none(folder) as begun:
        _prepare(folder, [*paths.values(), *own])
        arrays |= call.outputs(settings.numerics)
        for name, path in paths.items():
            begun.append(path)
            write_array(path, arrays[name])
            finished(name)
        begun.append(folder / SETTINGS_FILE)
        write_text(begun[-1], json.dumps(content, indent=1) + "\n")
        begun.append(folder / MARK_FILE)
        GoldenMark.of(folder, [path for name, path in paths.items() if name in OUTPUTS]).write(folder)
    return begun


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
