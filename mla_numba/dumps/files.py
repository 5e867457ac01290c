"""One dumped file as an array: which shapes and elements it may have, and how a `.npy` or `.bin` is read as them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._checks import BF16, FP32, Array, dtype_text
from ..layouts import C0_BYTES, FRACTAL_ROWS
from .names import OUTPUTS, meaning_of

__all__ = [
    "DumpFile",
    "DumpFiles",
    "Kind",
    "cache_like",
    "exactly",
    "find_files",
    "first_cache",
    "fractals",
    "has_elements",
    "npy_shape",
    "read_file",
    "rows",
    "vector",
]

SUBFOLDERS = ("", "input", "inputs", "output", "outputs", "golden", "goldens")
_BITS = (np.dtype("V2"), np.dtype(np.uint16), np.dtype(np.int16))

Shape = tuple[int, ...]


class Kind(NamedTuple):
    """What a file may hold: elements of `dtype` in `shape`, where None stands for a length that its size tells.

    `fit` gives the shape in which to see a `.npy` of another shape, or None where it cannot be the same array.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    fit: Callable[[Shape], Shape | None]

    def __str__(self) -> str:
        return f"({', '.join('any' if n is None else str(n) for n in self.shape)}) {self.dtype}"

    @property
    def known_bytes(self) -> int:
        """Bytes of the file, or of which they are a multiple."""
        return prod(n for n in self.shape if n is not None) * self.dtype.itemsize


def exactly(shape: Shape, dtype: np.dtype[Any]) -> Kind:
    """An array of this shape only."""
    return Kind(shape, dtype, lambda got: shape if got == shape else None)


def vector(n: int, *dtypes: np.dtype[Any]) -> list[Kind]:
    """n elements with any axes of length 1."""
    return [Kind((n,), d, lambda got: (n,) if prod(got) == n and max(got, default=1) == n else None) for d in dtypes]


def rows(t: int | None, *tail: int, dtype: np.dtype[Any]) -> Kind:
    """A row a token, (T, *tail); (B, S, *tail) is the same, and (T,) is (T, 1)."""

    def fit(got: Shape) -> Shape | None:
        n_lead = len(got) - len(tail)
        if tail == (1,) and prod(got) == t:
            return (t, 1)
        if n_lead < 1 or got[n_lead:] != tail or t not in (None, prod(got[:n_lead])):
            return None
        return (prod(got[:n_lead]), *tail)

    return Kind((t, *tail), dtype, fit)


def fractals(k: int, n: int, dtype: np.dtype[Any]) -> Kind:
    """A (k, n) weight in FRACTAL_NZ; (ceil(n / c0), k padded to 16, c0) is the same."""
    c0 = C0_BYTES // dtype.itemsize
    shape = (-(-n // c0), -(-k // FRACTAL_ROWS), FRACTAL_ROWS, c0)
    flat = (shape[0], shape[1] * shape[2], c0)
    return Kind(shape, dtype, lambda got: shape if got in (shape, flat) else None)


def first_cache(d: int, dtype: np.dtype[Any], cache_mode: str, block_size: int) -> Kind:
    """A cache of any number of slots. A `.npy` shows its block size, unless it is flat: (slots, d)."""

    def fit(got: Shape) -> Shape | None:
        if cache_mode == "TND":
            return (prod(got[:-1]), 1, d) if got[-1:] == (d,) else None
        if len(got) in (3, 4) and got[-1] == d and got[2:-1] in ((), (1,)):
            return (*got[:2], 1, d)
        c0 = C0_BYTES // dtype.itemsize
        if cache_mode == "PA_NZ" and len(got) == 4 and got[1] * got[3] == d and got[3] == c0:
            return (got[0], got[2], 1, d)
        if len(got) == 2 and got[1] == d and got[0] % block_size == 0:
            return (got[0] // block_size, block_size, 1, d)
        return None

    return Kind((None, 1, d) if cache_mode == "TND" else (None, block_size, 1, d), dtype, fit)


def cache_like(kv: Array, d: int, dtype: np.dtype[Any], cache_mode: str) -> Kind:
    """A cache of d elements a slot with the slots of another."""
    shape = (*kv.shape[:-1], d)

    def fit(got: Shape) -> Shape | None:
        block_size = 1 if kv.ndim == 3 else kv.shape[1]
        return shape if first_cache(d, dtype, cache_mode, block_size).fit(got) == shape else None

    return Kind(shape, dtype, fit)


class DumpFile(NamedTuple):
    """A file by its path in the folder, and what its name says of it."""

    path: Path
    is_golden: bool
    is_nz: bool


class DumpFiles(NamedTuple):
    """The files of a folder by the argument that they hold; `unread` are those that no argument is."""

    inputs: dict[str, DumpFile]
    outputs: dict[str, list[DumpFile]]
    unread: list[str]


def find_files(folder: Path) -> DumpFiles:
    """The `.npy` and `.bin` files of a folder and of the subfolders that are known.

    Of a weight that is there in ND and in FRACTAL_NZ, the ND one is taken. Raises `ValueError` for two files that are
    the same input, `FileNotFoundError` for a folder that is not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder, got none")
    files = DumpFiles({}, {}, [])
    paths = [path for sub in SUBFOLDERS for path in (folder / sub).glob("*") if path.suffix in (".npy", ".bin")]
    for path in sorted(paths):
        meaning = meaning_of(path.stem, path.parent.name if path.parent != folder else "")
        inside = path.relative_to(folder)
        if meaning is None:
            files.unread.append(str(inside))
            continue
        file = DumpFile(inside, meaning.is_golden, meaning.is_nz)
        if meaning.argument in OUTPUTS:
            files.outputs.setdefault(meaning.argument, []).append(file)
            continue
        other = files.inputs.setdefault(meaning.argument, file)
        if other is file:
            continue
        if other.is_nz == file.is_nz:
            raise ValueError(f"{meaning.argument}: expected one file, got {other.path} and {file.path}")
        nd, nz = (file, other) if other.is_nz else (other, file)
        files.inputs[meaning.argument] = nd
        files.unread.append(str(nz.path))
    return files


def npy_shape(folder: Path, name: str, file: DumpFile) -> Shape | None:
    """The shape of a `.npy`; None for a `.bin`."""
    return None if file.path.suffix == ".bin" else _load(folder, name, file).shape


def has_elements(folder: Path, name: str, file: DumpFile) -> bool:
    """Whether the file is more than empty."""
    if file.path.suffix == ".bin":
        return (folder / file.path).stat().st_size > 0
    return _load(folder, name, file).size > 0


def read_file(folder: Path, name: str, file: DumpFile, kinds: Iterable[Kind]) -> Array:
    """The file as the first of `kinds` that it can be.

    Raises `ValueError` for another size or shape or for float32 values that bf16 does not hold, `TypeError` for other
    elements, both with the argument's and the file's name.
    """
    kinds = list(kinds)
    label = f"{name} ({file.path})"
    if file.path.suffix == ".npy":
        return _from_npy(label, _load(folder, name, file), kinds)
    n_bytes = (folder / file.path).stat().st_size
    for kind in kinds:
        n_known = kind.known_bytes
        if n_bytes == n_known or (None in kind.shape and n_bytes % n_known == 0):
            raw = np.fromfile(folder / file.path, f"<u{kind.dtype.itemsize}")
            bits = raw.astype(raw.dtype.newbyteorder("="), copy=False)
            array: Array = bits.view(kind.dtype).reshape([-1 if n is None else n for n in kind.shape])
            return array
    multiple = "a multiple of " if None in kinds[0].shape else ""
    wanted = " or ".join(f"{multiple}{kind.known_bytes} bytes, {kind}" for kind in kinds)
    raise ValueError(f"{label}: expected {wanted}, got {n_bytes} bytes")


def _load(folder: Path, name: str, file: DumpFile) -> Array:
    try:
        array: Array = np.load(folder / file.path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name} ({file.path}): expected a .npy of numbers, got one that fails: {error}") from None
    return array


def _from_npy(label: str, array: Array, kinds: list[Kind]) -> Array:
    fitting = [(kind, shape) for kind in kinds if (shape := kind.fit(array.shape)) is not None]
    if not fitting:
        wanted = " or ".join(dict.fromkeys(str(kind).rpartition(" ")[0] for kind in kinds))
        raise ValueError(f"{label}: expected shape {wanted}, got {array.shape}")
    for kind, shape in fitting:
        if array.dtype == kind.dtype and array.dtype.isnative:
            return np.array(array, order="C").reshape(shape)
        if kind.dtype == BF16 and array.dtype in _BITS and array.dtype.isnative:
            values: Array = np.array(array, order="C").view(BF16)
            return values.reshape(shape)
        if kind.dtype == BF16 and array.dtype == FP32 and array.dtype.isnative:
            return _rounded(label, array).reshape(shape)
    dtypes = list(dict.fromkeys(kind.dtype for kind, _ in fitting))
    more = " (|V2, its bits as uint16 or int16, or float32 that bf16 holds)" if BF16 in dtypes else ""
    raise TypeError(f"{label}: expected {' or '.join(map(str, dtypes))}{more}, got {dtype_text(array.dtype)}")


def _rounded(label: str, array: Array) -> Array:
    """float32 as bf16, which has to hold every value."""
    values = array.astype(BF16, order="C")
    lost = (values.astype(FP32) != array) & ~np.isnan(array)
    if lost.any():
        at = np.unravel_index(int(lost.argmax()), array.shape)
        raise ValueError(
            f"{label}: expected float32 values that bf16 holds, got {array[at]} at [{', '.join(map(str, at))}]"
        )
    return values
