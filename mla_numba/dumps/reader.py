"""The inputs of a folder of dumps as arrays, by this library's names for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..base.checks import FP16, FP32, Array, check_slots, renamed
from ..base.dims import MlaDims
from ..layouts import from_fractal_nz
from .arguments import ARGUMENTS, Arguments
from .files import SUFFIXES, DumpFiles
from .kinds import Kind, Shape, exactly, fractals, rows, vector
from .settings import DumpSettings

__all__ = ["INT32", "INT64", "InputReader"]

INT64, INT32 = np.dtype(np.int64), np.dtype(np.int32)


@dataclass(frozen=True)
class InputReader:
    """Reads the inputs of a call, each by its key in `ARGUMENTS`."""

    files: DumpFiles
    settings: DumpSettings

    @property
    def arguments(self) -> Arguments:
        """Those of the folder's operator."""
        return ARGUMENTS[self.files.operator]

    def name(self, key: str) -> str:
        """What the operator calls an argument."""
        return self.arguments.by_key[key].name

    def label(self, key: str) -> str:
        """How messages call an input that is there."""
        return f"{self.name(key)} ({self.files.inputs[self.name(key)]})"

    def has(self, key: str) -> bool:
        """Whether an input is there, and more than empty."""
        return self.files.has_elements(self.name(key))

    def shape(self, key: str) -> Shape | None:
        """The shape of an input; None where it is a `.bin`, which does not tell, or missing."""
        name = self.name(key)
        return self.files.shape(name) if name in self.files.inputs else None

    def read(self, key: str, *kinds: Kind) -> Array:
        """An input as the first of `kinds` that it can be; raises as `DumpFiles.read` does."""
        return self.files.read(self.name(key), self.files.inputs[self.name(key)], kinds)

    def slots(self, t: int, capacity: int) -> Array:
        """The input `cache_index` of t tokens, whose slots are in a cache of `capacity`."""
        index = self.read("cache_index", *(rows(t, dtype=dtype) for dtype in (INT64, INT32)))
        with renamed({"cache_index": self.name("cache_index")}):
            return check_slots(index, t, capacity)

    def scales(self, key: str, n: int) -> Array | None:
        """n scales as float32; None where they are missing or their file is empty."""
        return self.read(key, *vector(n, FP32, FP16)).astype(FP32) if self.has(key) else None

    def weight(self, key: str, k: int, n: int, dtype: np.dtype[Any]) -> Array:
        """A (k, n) weight in ND from ND or FRACTAL_NZ; which of them a `.npy` has, its axes tell."""
        file = self.files.inputs[self.name(key)]
        is_bin = file.path.suffix == ".bin"
        nd, nz = exactly((k, n), dtype), fractals(k, n, dtype)
        is_nz = file.is_nz or (is_bin and self.settings.nz)
        array = self.read(key, *([nz] if is_nz else [nd] if is_bin else [nd, nz]))
        if array.ndim == 2:
            return array
        with renamed({"fractals": self.label(key)}):
            return from_fractal_nz(array, k, n)

    def expect_all(self, optional: Iterable[str] = ()) -> None:
        """Raises `ValueError` that lists the numbered inputs that are missing, but those of the keys `optional`."""
        files, inputs, free = self.files, self.arguments.inputs, set(optional)
        missing = [a for a in inputs if a.name not in files.inputs and a.key not in free]
        if not missing:
            return
        there = [str(file) for file in files.inputs.values()]
        there += [str(file) for found in files.outputs.values() for file in found] + files.unread
        others = {a.name: dict.fromkeys((*a.others, f"input_{inputs.index(a)}")) for a in missing}
        lines = [f"{name}, or {', '.join(other for other in others[name] if other != name)}" for name in others]
        got = ", ".join(sorted(there)) or "none of them"
        raise ValueError(
            f"{files.folder}: of {files.operator} expected {', '.join(a.name for a in inputs)} as "
            f"{' or '.join(SUFFIXES)}, got {got}; missing are\n  " + "\n  ".join(lines)
        )

    def dims(self) -> MlaDims:
        """The prolog's dimensions: those of the settings, else what arrays show, else DeepSeek-V3.2's."""
        return self.settings.dims or self._shown_dims() or MlaDims.deepseek_v32()

    def _shown_dims(self) -> MlaDims | None:
        """None where one of the arrays that show dimensions is a `.bin` or of another rank."""
        x, w_uk, gamma_cq, cos = (self.shape(key) for key in ("x", "w_uk", "gamma_cq", "cos"))
        if not x or not gamma_cq or not cos or w_uk is None or len(w_uk) != 3:
            return None
        heads, nope, latent = w_uk
        return MlaDims(x[-1], heads, prod(gamma_cq), latent, nope, cos[-1])
