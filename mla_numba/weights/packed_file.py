"""Packed products and vectors in one file: what the files of a prolog and of an indexer have in common."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ..base.checks import Array
from ..kernels import ISA
from .mapped_file import read_arrays, write_arrays
from .packed_facts import FACTS, integers_of, object_of
from .packed_gemm import PackedGemm, check_packing, panel_packing

__all__ = ["Kind", "PackedParts", "read_packed", "write_packed"]

Kind = Literal["prolog", "indexer"]
_KINDS: dict[Kind, str] = {"prolog": "a prolog", "indexer": "an indexer"}
_PARTS = ("panels", "offset", "col_scale")


class PackedParts(NamedTuple):
    """Products and vectors by name, and what else is said of them, which JSON holds. A vector may have no elements."""

    gemms: dict[str, PackedGemm]
    vectors: dict[str, Array]
    facts: Mapping[str, Any]


def write_packed(path: str | os.PathLike[str], kind: Kind, packed: PackedParts) -> None:
    """Writes a file of this kind, by `write_arrays`, whose errors are raised. Arrays without elements are left out."""
    arrays = {f"{name}.{part}": getattr(gemm, part) for name, gemm in packed.gemms.items() for part in _PARTS}
    arrays |= packed.vectors
    facts: dict[str, Any] = {
        "kind": kind,
        "isa": ISA.name,
        "packing": panel_packing(),
        "gemms": {name: {fact: getattr(gemm, fact) for fact in FACTS} for name, gemm in packed.gemms.items()},
    }
    write_arrays(path, {**facts, **packed.facts}, {name: array for name, array in arrays.items() if array.size})


def read_packed(
    path: str | os.PathLike[str], kind: Kind, products: tuple[str, ...], vectors: tuple[str, ...], verify: bool
) -> PackedParts:
    """Maps a file of this kind, with the products and vectors of these names, as `read_arrays` does.

    Raises `ValueError` naming the file where it is of another kind, packed for other panels, holds other arrays, or
    says of a product what is no integer. Whether arrays have the right sizes is for `GemmSize.fits`.
    """
    facts, arrays = read_arrays(path, verify)
    found = facts.get("kind", "prolog")  # older files, from before there were indexers, have no kind
    if found != kind:
        other = _KINDS[found] if found in tuple(_KINDS) else reprlib.repr(found)
        raise ValueError(f"{path}: expected the packed weights of {_KINDS[kind]}, got those of {other}")
    isa, packing = facts.get("isa"), object_of(str(path), "packing", facts)
    if not isinstance(isa, str):
        raise ValueError(f"{path}: expected isa, a string, got {reprlib.repr(isa)}")
    check_packing(path, packing, isa[:40])
    known = {*vectors, *(f"{name}.{part}" for name in products for part in _PARTS)}
    for name, array in arrays.items():
        if name not in known or not array.size:
            raise ValueError(f"{path}: expected arrays of packed weights, got {name[:40]} of shape {array.shape}")
    nothing, sizes = PackedGemm.nothing(), object_of(str(path), "gemms", facts)

    def product(name: str) -> PackedGemm:
        panels, offset, col_scale = (arrays.get(f"{name}.{part}", getattr(nothing, part)) for part in _PARTS)
        kp, n_parts, least = integers_of(str(path), f"gemms.{name}", object_of(str(path), name, sizes), FACTS).values()
        return PackedGemm(panels, offset, col_scale, kp, n_parts, least)

    no_elements = np.zeros(0, np.float32)
    return PackedParts(
        {name: product(name) for name in products}, {name: arrays.get(name, no_elements) for name in vectors}, facts
    )
