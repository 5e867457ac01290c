"""Sizes of caches, as Linux describes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.system.cores import Core
from tiling.system.text import cpu_list, number, read

__all__ = ["Caches", "cache_sizes"]

_MAX_BYTES = 2**40


@dataclass(frozen=True)
class Caches:
    """Bytes of L1d and of L2 that one core has for itself, and of the whole L3; 0 where the system does not say."""

    l1d_bytes: int = 0
    l2_bytes: int = 0
    l3_bytes: int = 0


def cache_sizes(cpus: Path, cores: Sequence[Core]) -> Caches:
    """The smallest of each kind of core, for a plan's blocks have to fit whichever core takes a task.

    A cache that several cores share counts by a core's share of it, but for L3.
    """
    first_of_kind = {core.kind: core for core in reversed(cores)}
    found = [_of_cpu(cpus / f"cpu{core.cpus[0]}" / "cache", cores) for core in first_of_kind.values()]
    levels = [[sizes[level] for sizes in found if sizes.get(level)] for level in (1, 2, 3)]
    return Caches(*(min(sizes, default=0) for sizes in levels))


def _of_cpu(folder: Path, cores: Sequence[Core]) -> dict[int, int]:
    """By level; entries that do not parse are left out."""
    sizes: dict[int, int] = {}
    for index in folder.glob("index*"):
        level, size = number(read(index / "level")), read(index / "size")
        unit = {"K": 1024, "M": 1024**2}.get(size[-1:], 1)
        n_bytes = number(size.rstrip("KM")) * unit
        if level <= 0 or not 0 < n_bytes <= _MAX_BYTES or read(index / "type") not in ("Data", "Unified"):
            continue
        sharing = cpu_list(read(index / "shared_cpu_list")) if level < 3 else frozenset()
        n_cores = sum(not sharing.isdisjoint(core.cpus) for core in cores)
        sizes[level] = n_bytes // max(n_cores, 1)
    return sizes
