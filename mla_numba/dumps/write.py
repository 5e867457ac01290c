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
from .names import OUTPUTS, STYLES, name_in
from .settings import SETTINGS_FILE, DumpSettings
from .torch_file import import_torch

__all__ = ["FORMATS", "write_dump"]

FORMATS = DUMP_FORMATS
_ONLY_INT8 = ("q_norm_scale_out", "k_scale_cache_out")


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

    `file_format`: "npy", "bin", or "pt" for a tensor of torch a file; `style`: see `mla_numba.dump_names.name_in`. With
    `settings.nz` w_dq, w_uq_qr and w_dkv_kr are written as FRACTAL_NZ. `finished(argument)` is called after each file.
    `choices` of the call:

    - `smooth` (default False): with SmoothQuant scales on the normalised query.
    - `seed` (0): of weights, inputs and caches, which are random. Caches hold random rows.
    - `n_blocks`: blocks of the cache; by default one more than the tokens need.
    - `scale_dtype` ("float32"): elements of k_scale_cache, "float32" or "float16".

    The folder may exist, the files may not. Raises `TypeError` or `ValueError` naming the argument that does not fit,
    `FileExistsError` naming the first file that exists, `OSError` if one cannot be written; no file of the dump is left
    then. `ImportError` for "pt" without torch.
    """
    folder = Path(folder)
    settings = settings or DumpSettings()
    check_choice("file_format", file_format, FORMATS)
    check_choice("style", style, STYLES)
    if file_format == "pt":
        import_torch("file_format")
    call = GoldenCall.random(settings, t, quant, **choices)
    arrays = call.inputs(settings.nz)
    names = [*arrays, *(name for name in OUTPUTS if "b" in quant or name not in _ONLY_INT8)]
    paths = {name: folder / f"{name_in(style, name)}.{file_format}" for name in names}
    content = asdict(call.weights.dims) | {k: v for k, v in asdict(settings).items() if k != "dims"}
    with _all_or_none(folder) as begun:
        _prepare(folder, [*paths.values(), folder / SETTINGS_FILE, folder / MARK_FILE])
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


def _prepare(folder: Path, paths: Iterable[Path]) -> None:
    """Makes the folder, or raises what would otherwise be raised once everything is computed."""
    for path in paths:
        if os.path.lexists(path):
            raise FileExistsError(f"{path}: expected no such file, got one")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder, got another kind of file")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: expected a folder that can be written, got one that cannot")
