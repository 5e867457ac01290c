"""What searches found on this machine: tilings and rates, kept as small JSON files in the user's cache folder.

Each file holds one entry and is named by a digest of its key, so processes need no lock: an entry is written beside its
place and moved there at once, and of two writers of one entry the later stays. A file that is missing, unreadable, of
another key or of another form counts as no entry.

`MLA_NUMBA_TUNED` in the environment names another folder. Where there is neither that nor a home, there is no entry.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_cache_dir

from tiling import CpuTiling, Machine, PlanDims, Rates
from tiling.check import MAX_COUNT

from ..base.checks import check_int, check_number
from ..base.json_file import read_object
from ..base.modes import QuantMode
from ..base.output_file import output_file

__all__ = [
    "FOLDER_VARIABLE",
    "Entry",
    "Stored",
    "Tuned",
    "bucket_of",
    "count_stored",
    "forget",
    "forget_search",
    "load_rates",
    "load_tuned",
    "machine_key",
    "make_store_folder",
    "save_rates",
    "save_tuned",
    "search_path",
    "store_folder",
    "stored",
    "unfinished",
]

FOLDER_VARIABLE = "MLA_NUMBA_TUNED"

Key = dict[str, Any]

_KINDS = ("tuned", "rates")
_MAX_BYTES = 1 << 20  # an entry has some hundred
_MAX_NUMBER = 1e9


@dataclass(frozen=True)
class Tuned:
    """The result of a search: `tiling` took `ratio` of the time of the planner's own plan at `t` tokens.

    `tiling` is empty where no better one was found, `ratio` then 1. `n_trials` were tried in `seconds`. Raises
    `TypeError` for a field of another type, `ValueError` for a number that none of them can be.
    """

    tiling: CpuTiling
    t: int
    ratio: float
    n_trials: int
    seconds: float
    date: str

    def __post_init__(self) -> None:
        if not isinstance(self.tiling, CpuTiling):
            raise TypeError(f"tiling: expected CpuTiling, got {type(self.tiling).__name__}")
        if not isinstance(self.date, str):
            raise TypeError(f"date: expected str, got {type(self.date).__name__}")
        check_int("t", self.t, 1, MAX_COUNT)
        check_int("n_trials", self.n_trials, 0, MAX_COUNT)
        for name in ("ratio", "seconds"):
            value = getattr(self, name)
            if not 0 <= check_number(name, value) <= _MAX_NUMBER:
                raise ValueError(f"{name}: expected a number from 0 to {_MAX_NUMBER:.0e}, got {value}")

    def __str__(self) -> str:
        """One line."""
        found = (
            f"{self.ratio:.3f} of the time of the planner's own plan at {self.t} tokens"
            if self.tiling.given()
            else f"nothing faster than the planner's own plan at {self.t} tokens"
        )
        return f"{found}, {self.n_trials} trials in {self.seconds:.0f} s on {self.date}"


def store_folder() -> Path:
    """Where entries are kept: `$MLA_NUMBA_TUNED`, else `mla_numba/tuned` in the user's cache folder.

    Raises `OSError` where the user has neither.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given)
    try:
        root = Path(user_cache_dir("mla_numba"))
    except RuntimeError:  # older versions of platformdirs leave a home that is not known as "~"
        root = Path("~")
    if not root.is_absolute():
        raise OSError(f"{FOLDER_VARIABLE}: expected a folder to keep results in, for this user has no home; got none")
    return root / "tuned"


def make_store_folder() -> Path:
    """The folder of `store_folder`, made where it is missing; raises `OSError` where nothing can be written there."""
    folder = store_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: expected a folder that can be written ({FOLDER_VARIABLE} names another)")
    return folder


def bucket_of(t: int) -> int:
    """The least power of two that is not below `t`: numbers of tokens that share a tuned tiling.

    >>> [bucket_of(t) for t in (1, 2, 3, 100, 128, 129)]
    [1, 2, 4, 128, 128, 256]
    """
    return 1 << (check_int("t", t, 1, MAX_COUNT) - 1).bit_length()


def load_tuned(
    machine: Machine, version: str, dims: PlanDims, quant: QuantMode, n_threads: int, t: int
) -> Tuned | None:
    """What was found for `t`'s bucket by this `version` of the kernels, None if nothing was."""
    entry = _load(_tuned_key(machine, version, dims, quant, n_threads, t))
    return None if entry is None else _tuned_in(entry)


def _tuned_in(entry: dict[str, Any]) -> Tuned | None:
    try:
        return Tuned(**(entry | {"tiling": CpuTiling(**entry["tiling"])}))
    except (KeyError, TypeError, ValueError):
        return None


def save_tuned(machine: Machine, version: str, dims: PlanDims, quant: QuantMode, n_threads: int, tuned: Tuned) -> Path:
    """Keep `tuned` for the bucket of its `t`; the file it is in. Raises `OSError` where that fails."""
    return _save(_tuned_key(machine, version, dims, quant, n_threads, tuned.t), asdict(tuned))


def load_rates(machine: Machine, version: str, n_threads: int) -> Rates | None:
    """The rates that were measured of `n_threads` threads of `machine`, None if there are none."""
    entry = _load(_rates_key(machine, version, n_threads))
    try:
        return None if entry is None else Rates(**entry)
    except (TypeError, ValueError):
        return None


def save_rates(machine: Machine, version: str, n_threads: int, rates: Rates) -> Path:
    """Keep what `n_threads` threads reach; the file it is in. Raises `OSError` where nothing can be written."""
    return _save(_rates_key(machine, version, n_threads), asdict(rates))


class Entry(NamedTuple):
    """A file of the store: what it is kept for, and what; `tuned` is None for rates and for what cannot be read."""

    path: Path
    key: Key
    tuned: Tuned | None


def stored() -> list[Entry]:
    """Every entry of the store that this or another machine or version kept, in the order of their keys.

    A file that is no entry is left out. Raises `OSError` where there is no folder to look into.
    """
    folder, found = store_folder(), []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            kept = read_object(path, _MAX_BYTES)
        except (OSError, ValueError):
            continue
        key, entry = kept.get("key"), kept.get("entry")
        if not isinstance(key, dict) or not isinstance(entry, dict) or key.get("kind") not in _KINDS:
            continue
        if path == _path(key):
            found.append(Entry(path, key, _tuned_in(entry) if key["kind"] == "tuned" else None))
    return sorted(found, key=lambda entry: json.dumps(entry.key, sort_keys=True))


def forget(entry: Entry) -> None:
    """Removes an entry. Raises `OSError` where that fails; one that is gone already is no error."""
    entry.path.unlink(missing_ok=True)


def search_path(spec: Mapping[str, Any]) -> Path:
    """Where the journal of a search for this is kept until it is finished."""
    return store_folder() / f"search-{_digest(spec)}.journal"


def unfinished() -> list[Path]:
    """The journals of searches that were interrupted. Raises `OSError` where there is no folder to look into."""
    return sorted(store_folder().glob("search-*.journal"))


def forget_search(path: Path) -> None:
    """Removes a journal and its lock. Raises `OSError` where that fails."""
    for each in (path, path.with_name(f"{path.name}.lock")):
        each.unlink(missing_ok=True)


class Stored(NamedTuple):
    """Numbers of entries in the folder: tilings and rates of one machine and version, and all of others."""

    n_tilings: int
    n_rates: int
    n_others: int


def count_stored(machine: Machine, version: str) -> Stored:
    """How many entries this `version` of the kernels finds for `machine`. Raises `OSError` where there is no folder."""
    keys = [entry.key for entry in stored()]
    ours = (machine_key(machine), version)
    kinds = [key["kind"] if (key.get("machine"), key.get("version")) == ours else "" for key in keys]
    return Stored(kinds.count("tuned"), kinds.count("rates"), kinds.count(""))


def machine_key(machine: Machine) -> dict[str, Any]:
    """A machine as keys have it, read back from JSON."""
    read: dict[str, Any] = json.loads(machine.to_json())
    return read


def _tuned_key(machine: Machine, version: str, dims: PlanDims, quant: QuantMode, n_threads: int, t: int) -> Key:
    key = {"kind": "tuned", "machine": machine_key(machine), "version": version, "dims": asdict(dims)}
    return key | {"quant": quant, "n_threads": n_threads, "bucket": bucket_of(t)}


def _rates_key(machine: Machine, version: str, n_threads: int) -> Key:
    return {"kind": "rates", "machine": machine_key(machine), "version": version, "n_threads": n_threads}


def _path(key: Key) -> Path:
    return store_folder() / f"{key['kind']}-{_digest(key)}.json"


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def _load(key: Key) -> dict[str, Any] | None:
    try:
        stored = read_object(_path(key), _MAX_BYTES)
    except (OSError, ValueError):
        return None
    if stored.get("key") != key or not isinstance(stored.get("entry"), dict):
        return None
    entry: dict[str, Any] = stored["entry"]
    return entry


def _save(key: Key, entry: dict[str, Any]) -> Path:
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with output_file(path) as file:
        file.write(json.dumps({"key": key, "entry": entry}, indent=1).encode())
    return path
