"""What macOS says of cores and caches."""

import subprocess
from collections.abc import Callable

from tiling.system.cores import Core, CoreKind
from tiling.system.text import number

__all__ = ["first_count", "macos_cores", "sysctl"]

_MAX_COUNT = 2**40
_MAX_CORES = 2**16


def sysctl(key: str) -> str:
    """The text of a key, empty where it is not there."""
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def first_count(ask: Callable[[str], str], *keys: str) -> int:
    """The first of some keys that is a count from 1 on, 0 where none is."""
    return next((n for n in map(number, map(ask, keys)) if 0 < n <= _MAX_COUNT), 0)


def macos_cores(ask: Callable[[str], str]) -> tuple[Core, ...]:
    """The cores, at least one; those of the second performance level are efficiency cores."""
    n_cores = min(first_count(ask, "hw.physicalcpu") or 1, _MAX_CORES)
    n_cpus = min(max(n_cores, first_count(ask, "hw.logicalcpu")), _MAX_CORES)
    n_fast = first_count(ask, "hw.perflevel0.physicalcpu") or n_cores
    kinds: list[CoreKind] = ["performance" if core < n_fast else "efficiency" for core in range(n_cores)]
    return tuple(Core(tuple(range(core, n_cpus, n_cores)), kind) for core, kind in enumerate(kinds))
