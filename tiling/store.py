"""What searches found on this machine: tilings and rates, kept as small JSON files in the user's cache folder.

Each file holds one entry and is named by a digest of its key, so processes need no lock: an entry is written beside its
place and moved there at once, and of two writers of one entry the later stays. A file that is missing, unreadable or of
another key counts as no entry.

``MLA_NUMBA_TUNED`` in the environment names another folder.
"""

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiling._check import check_int
from tiling.cpu_tiling import CpuTiling
from tiling.machine import Machine
from tiling.rates import Rates
from tiling.stages import Dims, PlanDims

__all__ = [
    "FOLDER_VARIABLE",
    "Tuned",
    "bucket_of",
    "load_rates",
    "load_tuned",
    "save_rates",
    "save_tuned",
    "store_folder",
]

FOLDER_VARIABLE = "MLA_NUMBA_TUNED"

Key = dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    """The result of a search: ``tiling`` took ``ratio`` of the time of the planner's own plan at ``t`` tokens.

    ``tiling`` is empty where no better one was found, ``ratio`` then 1. ``n_trials`` were tried in ``seconds``.
    """

    tiling: CpuTiling
    t: int
    ratio: float
    n_trials: int
    seconds: float
    date: str

    def __str__(self) -> str:
        """One line."""
        found = (
            f"{self.ratio:.3f} of the time of the planner's own plan at {self.t} tokens"
            if self.tiling.given()
            else f"nothing faster than the planner's own plan at {self.t} tokens"
        )
        return f"{found}, {self.n_trials} trials in {self.seconds:.0f} s on {self.date}"


def store_folder() -> Path:
    """Where entries are kept: ``$MLA_NUMBA_TUNED``, else ``mla_numba/tuned`` in the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given)
    home = Path.home()
    if sys.platform == "darwin":
        root = home / "Library/Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or home / "AppData/Local")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return root / "mla_numba" / "tuned"


def bucket_of(t: int) -> int:
    """The least power of two that is not below ``t``: numbers of tokens that share a tuned tiling.

    >>> [bucket_of(t) for t in (1, 2, 3, 100, 128, 129)]
    [1, 2, 4, 128, 128, 256]
    """
    return 1 << (check_int("t", t, 1) - 1).bit_length()


def load_tuned(machine: Machine, version: str, dims: Dims, quant: str, n_threads: int, t: int) -> Tuned | None:
    """What was found for ``t``'s bucket by this ``version`` of the kernels, None if nothing was."""
    entry = _load(_tuned_key(machine, version, dims, quant, n_threads, t))
    if entry is None:
        return None
    try:
        return Tuned(**(entry | {"tiling": CpuTiling(**entry["tiling"])}))
    except (KeyError, TypeError, ValueError):
        return None


def save_tuned(machine: Machine, version: str, dims: Dims, quant: str, n_threads: int, tuned: Tuned) -> Path:
    """Keep ``tuned`` for the bucket of its ``t``; the file it is in. Raises ``OSError`` where that fails."""
    return _save(_tuned_key(machine, version, dims, quant, n_threads, tuned.t), asdict(tuned))


def load_rates(machine: Machine, version: str, n_threads: int) -> Rates | None:
    """What ``n_threads`` threads of ``machine`` were measured to reach, None if they were not."""
    entry = _load(_rates_key(machine, version, n_threads))
    try:
        return None if entry is None else Rates(**entry)
    except (TypeError, ValueError):
        return None


def save_rates(machine: Machine, version: str, n_threads: int, rates: Rates) -> Path:
    """Keep what ``n_threads`` threads reach; the file it is in. Raises ``OSError`` where nothing can be written."""
    return _save(_rates_key(machine, version, n_threads), asdict(rates))


def _tuned_key(machine: Machine, version: str, dims: Dims, quant: str, n_threads: int, t: int) -> Key:
    key = {"kind": "tuned", "machine": asdict(machine), "version": version, "dims": asdict(PlanDims.of(dims))}
    return key | {"quant": quant, "n_threads": n_threads, "bucket": bucket_of(t)}


def _rates_key(machine: Machine, version: str, n_threads: int) -> Key:
    return {"kind": "rates", "machine": asdict(machine), "version": version, "n_threads": n_threads}


def _path(key: Key) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return store_folder() / f"{key['kind']}-{digest[:24]}.json"


def _load(key: Key) -> dict[str, Any] | None:
    try:
        stored = json.loads(_path(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.get("key") != key or not isinstance(stored.get("entry"), dict):
        return None
    entry: dict[str, Any] = stored["entry"]
    return entry


def _save(key: Key, entry: dict[str, Any]) -> Path:
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: expected a regular file or none, got another kind")
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"key": key, "entry": entry}, file, indent=1)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    return path
