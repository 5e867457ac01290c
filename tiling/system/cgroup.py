"""The quota of CPU time that Linux' control groups set, of either version."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tiling.system.text import number, read

__all__ = ["Quota", "cpu_quota"]


@dataclass(frozen=True)
class Quota:
    """So many CPUs' time, and the control group that says so."""

    cpus: float
    group: str

    def __str__(self) -> str:
        """A few words."""
        return f"{self.cpus:g} CPUs (cgroup {self.group})"


class _Mount(NamedTuple):
    """A hierarchy: the folder that shows it, and which of its groups that folder is."""

    folder: Path
    top: str


def cpu_quota(root: Path) -> Quota | None:
    """The tightest quota from this process's own group up to the topmost that is to be seen; None where none is set."""
    quotas = []
    lines = [line.split(":", 2) for line in read(root / "proc/self/cgroup").splitlines()]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = _mount(root, is_v2=not controllers)
        for group in _and_those_above(path, mount.top):
            cpus = _quota_of(mount.folder / group)
            if cpus is not None:
                quotas.append(Quota(cpus, f"/{group}" if group != "." else "/"))
    return min(quotas, key=lambda quota: quota.cpus, default=None)


def _mount(root: Path, is_v2: bool) -> _Mount:
    """Where a hierarchy is mounted; where it usually is if the system does not say."""
    for line in read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        is_ours = kind[0] == "cgroup2" if is_v2 else kind[0] == "cgroup" and "cpu" in kind[2].split(",")
        if is_ours:
            return _Mount(root / place[4].lstrip("/"), place[3])
    return _Mount(root / ("sys/fs/cgroup" if is_v2 else "sys/fs/cgroup/cpu"), "/")


def _and_those_above(path: str, top: str) -> list[str]:
    """A group and those above it, relative to `top`; of a group that is not below `top`, only `top` is to be seen."""
    group = PurePosixPath("/", path.lstrip("/"))
    if ".." in group.parts or not group.is_relative_to(top):
        group = PurePosixPath(top)
    below = group.relative_to(top)
    return list(map(str, (below, *below.parents)))


def _quota_of(folder: Path) -> float | None:
    v1 = f"{read(folder / 'cpu.cfs_quota_us')} {read(folder / 'cpu.cfs_period_us')}"
    parts = [number(part) for part in (read(folder / "cpu.max") or v1).split()]
    return parts[0] / parts[1] if len(parts) == 2 and parts[0] >= 0 and parts[1] > 0 else None
