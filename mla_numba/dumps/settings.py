"""What the files of a folder of dumps don't say: dimensions, layout, numerics."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict, Unpack

from tiling.short_repr import changed_repr

from ..base.checks import (
    check_choice,
    check_epsilon,
    check_flag,
    check_int,
)
from ..base.dims import MlaDims
from ..base.json_file import read_object
from ..base.model_config import MAX_DIM
from ..base.modes import CACHE_MODES, NUMERICS, CacheMode, Numerics

__all__ = ["SETTINGS_FILE", "DumpChanges", "DumpSettings", "dump_settings"]

SETTINGS_FILE = "dims.json"


@dataclass(frozen=True, slots=True)
class DumpSettings:
    """What the files of a folder don't say. `write_dump` has an example.

    Args:
        dims: None: those of the arrays where the files are `.npy` in ND, else DeepSeek-V3.2's.
        block_size: Slots of a cache block (S in BSND), which only a `.bin` needs.
        cache_mode: As of `PagedCache`.
        nz: The w_dq, w_uq_qr and w_dkv_kr of `.bin` files are FRACTAL_NZ whatever they are called.
        numerics: As of `MlaProlog`.
        epsilon_cq: As of `MlaWeights`.
        epsilon_ckv: As of `MlaWeights`.

    Raises:
        TypeError: A field is of another type.
        ValueError: It has another value.
    """

    dims: MlaDims | None = None
    block_size: int = 128
    cache_mode: CacheMode = "PA_BSND"
    nz: bool = False
    numerics: Numerics = "pypto"
    epsilon_cq: float = 1e-5
    epsilon_ckv: float = 1e-5

    def __repr__(self) -> str:
        return changed_repr(self)

    def __post_init__(self) -> None:
        if self.dims is not None and not isinstance(self.dims, MlaDims):
            raise TypeError(f"dims: expected MlaDims or None, got {type(self.dims).__name__}")
        check_int("block_size", self.block_size, 1, MAX_DIM)
        check_choice("cache_mode", self.cache_mode, CACHE_MODES)
        check_flag("nz", self.nz)
        check_choice("numerics", self.numerics, NUMERICS)
        check_epsilon("epsilon_cq", self.epsilon_cq)
        check_epsilon("epsilon_ckv", self.epsilon_ckv)


class DumpChanges(TypedDict, total=False):
    """The fields of `DumpSettings`, by name."""

    dims: MlaDims | None
    block_size: int
    cache_mode: CacheMode
    nz: bool
    numerics: Numerics
    epsilon_cq: float
    epsilon_ckv: float


def dump_settings(folder: str | os.PathLike[str], **changes: Unpack[DumpChanges]) -> DumpSettings:
    """The settings that a folder's `dims.json` names, or dimensions by its `config.json`.

    `dims.json` holds the fields of `MlaDims`, and may hold those of `DumpSettings`. `write_dump` has an example.

    Args:
        folder: The folder.
        **changes: Fields of `DumpSettings`, which come before what the files say.

    Returns:
        The settings.

    Raises:
        OSError: A file cannot be read.
        TypeError: A field, named in the message beside its file, is of another type.
        ValueError: It has another value.
    """
    folder = Path(folder)
    known = {field.name for field in fields(DumpSettings)} - {"dims"}
    found: dict[str, Any] = {}
    for name in (SETTINGS_FILE, "config.json"):
        if not (folder / name).exists():
            continue
        content = read_object(folder / name)
        try:
            if changes.get("dims") is None:
                found["dims"] = MlaDims.from_hf(content)
            if name == SETTINGS_FILE:
                found |= {key: value for key, value in content.items() if key in known}
            DumpSettings(**found)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{folder / name}: {error}") from None
        break
    given = {key: value for key, value in changes.items() if (key, value) != ("dims", None)}
    return DumpSettings(**(found | given))
