"""What the files of a folder of dumps don't say: the operator, dimensions, layout, numerics."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from tiling.short_repr import changed_repr

from ..base.checks import (
    check_choice,
    check_epsilon,
    check_flag,
    check_int,
    check_number,
)
from ..base.dims import MlaDims
from ..base.json_file import read_object
from ..base.model_config import MAX_DIM, read_model_config
from ..base.modes import (
    CACHE_MODES,
    DUMP_OPERATORS,
    NUMERICS,
    ROPE_STYLES,
    CacheMode,
    DumpOperator,
    Numerics,
    RecordOrder,
    RopeStyle,
)
from ..layouts import RECORD_ORDERS
from ..rope_table import softmax_scale
from .files import guess_operator

__all__ = ["SETTINGS_FILE", "DumpChanges", "DumpSettings", "dump_settings"]

SETTINGS_FILE = "dims.json"


@dataclass(frozen=True, slots=True)
class DumpSettings:
    """What the files of a folder don't say. `write_dump` has an example.

    An operator reads the fields that concern it; `mla_numba.dumps` has the operators.

    Args:
        dims: None: those of the arrays where the files are `.npy` in ND, else DeepSeek-V3.2's.
        block_size: Slots of a cache block (S in BSND), which a `.bin` and a flat cache need.
        cache_mode: As of `PagedCache`.
        nz: The weights of `.bin` files that may be FRACTAL_NZ are, whatever they are called.
        numerics: As of `MlaProlog`.
        epsilon_cq: As of `MlaWeights`.
        epsilon_ckv: As of `MlaWeights`.
        operator: The reference's operator whose arguments the folder holds.
        indexer_heads: Heads of the indexer. None: as the arrays of `.npy` files show, else DeepSeek-V3.2's.
        indexer_head_dim: Their width; None as above.
        epsilon_k: Epsilon of the indexer's LayerNorm.
        rope: As of `IndexerWeights`.
        k: Positions of a list of the lightning index. None: as many as the output has; `write_dump` takes 2048.
        softmax_scale: What attention multiplies its scores by. `write_dump` takes (D + R)^-0.5 for None.
        dense: Attention over all keys that a token sees: there are no lists.
        flash_tile: As of `sparse_attention_reference`.
        record_order: The order of a record of 656 bytes: "cann" or "flashmla".

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
    operator: DumpOperator = "mla_prolog_quant"
    indexer_heads: int | None = None
    indexer_head_dim: int | None = None
    epsilon_k: float = 1e-6
    rope: RopeStyle = "half"
    k: int | None = None
    softmax_scale: float | None = None
    dense: bool = False
    flash_tile: int | None = None
    record_order: RecordOrder = "cann"

    def __repr__(self) -> str:
        return changed_repr(self)

    def __post_init__(self) -> None:
        if self.dims is not None and not isinstance(self.dims, MlaDims):
            raise TypeError(f"dims: expected MlaDims or None, got {type(self.dims).__name__}")
        check_int("block_size", self.block_size, 1, MAX_DIM)
        check_choice("cache_mode", self.cache_mode, CACHE_MODES)
        check_flag("nz", self.nz)
        check_choice("numerics", self.numerics, NUMERICS)
        for name in ("epsilon_cq", "epsilon_ckv", "epsilon_k"):
            check_epsilon(name, getattr(self, name))
        check_choice("operator", self.operator, DUMP_OPERATORS)
        for name in ("indexer_heads", "indexer_head_dim", "k", "flash_tile"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1, MAX_DIM)
        check_choice("rope", self.rope, ROPE_STYLES)
        if self.softmax_scale is not None:
            value = check_number("softmax_scale", self.softmax_scale)
            if not abs(value) <= float(np.finfo(np.float32).max):
                raise ValueError(f"softmax_scale: expected a number that is finite in float32, got {value}")
        check_flag("dense", self.dense)
        check_choice("record_order", self.record_order, RECORD_ORDERS)

    def as_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The operator and those of these fields, as JSON holds them.

        Args:
            names: Fields.

        Returns:
            Values by field; `dims` is a dict of its own fields.
        """
        values = asdict(self)
        return {name: values[name] for name in ("operator", *names)}


class DumpChanges(TypedDict, total=False):
    """The fields of `DumpSettings`, by name."""

    dims: MlaDims | None
    block_size: int
    cache_mode: CacheMode
    nz: bool
    numerics: Numerics
    epsilon_cq: float
    epsilon_ckv: float
    operator: DumpOperator | None
    indexer_heads: int | None
    indexer_head_dim: int | None
    epsilon_k: float
    rope: RopeStyle
    k: int | None
    softmax_scale: float | None
    dense: bool
    flash_tile: int | None
    record_order: RecordOrder


_KNOWN = {field.name for field in fields(DumpSettings)} - {"dims"}
_OF_DIMS = {field.name for field in fields(MlaDims)}
_OF_INDEXER = {"index_n_heads": "indexer_heads", "index_head_dim": "indexer_head_dim"}  # in a config.json
_ATTENTION = ("sparse_flash_attention_quant", "sparse_attention_antiquant")


def dump_settings(folder: str | os.PathLike[str], **changes: Unpack[DumpChanges]) -> DumpSettings:
    """The settings that a folder's `dims.json` names, or what its `config.json` says of a model.

    `dims.json` holds the fields of `MlaDims`, and may hold those of `DumpSettings`. A model's configuration has the
    dimensions, and those of the indexer and the softmax_scale, too. If neither names the operator, it is the one whose
    inputs the folder has. `write_dump` has an example.

    Args:
        folder: The folder.
        **changes: Fields of `DumpSettings`, which come before what the files say; None says nothing.

    Returns:
        The settings.

    Raises:
        ImportError: There is a `.pt` of several tensors, no file names the operator, and torch is not installed.
        OSError: A file cannot be read.
        TypeError: A field, named in the message beside its file, is of another type.
        ValueError: It has another value.
    """
    folder = Path(folder)
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    found: dict[str, Any] = {}
    for name, read in ((SETTINGS_FILE, _of_dims_file), ("config.json", _of_model)):
        if not (folder / name).exists():
            continue
        content = read_object(folder / name)
        try:
            found = read(content, given, folder)
            DumpSettings(**found)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{folder / name}: {error}") from None
        break
    settings = DumpSettings(**(found | given))
    return settings if "operator" in found | given else replace(settings, operator=guess_operator(folder))


def _of_dims_file(content: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    found = {key: value for key, value in content.items() if key in _KNOWN}
    if "dims" not in given and not _OF_DIMS.isdisjoint(content):
        found["dims"] = MlaDims.from_hf({key: value for key, value in content.items() if key not in _KNOWN})
    return found


def _of_model(content: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    operator = given.get("operator") or guess_operator(folder)
    found: dict[str, Any] = {"operator": operator}
    if "dims" not in given:
        found["dims"] = MlaDims.from_hf(content)
    if operator != "mla_prolog_quant":
        found |= {ours: content.get(theirs) for theirs, ours in _OF_INDEXER.items()}
        found["rope"] = read_model_config(content).index_rope
    if operator in _ATTENTION and "softmax_scale" not in given:
        found["softmax_scale"] = softmax_scale(content)
    return found
