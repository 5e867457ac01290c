"""What this process may use of the machine, and how many threads follow."""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiling.system.cgroup import Quota, cpu_quota
from tiling.system.cores import Core, CoreKind, NumaNode, find_cores, find_nodes
from tiling.system.macos import macos_cores, sysctl

__all__ = ["Usable", "any_usable", "linux_usable", "macos_usable", "n_cpus"]


@dataclass(frozen=True)
class Usable:
    """The cores of a machine, the CPUs that this process may run on, its quota of their time, and NUMA nodes.

    ``tells_threads`` says whether hyperthreads are told apart: where they are not, each CPU counts as a core.
    """

    cores: tuple[Core, ...]
    allowed: frozenset[int]
    quota: Quota | None = None
    nodes: tuple[NumaNode, ...] = ()
    tells_threads: bool = True

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def detect() -> "Usable":
        """Of this process, as far as the operating system says.

        Asked once: OpenMP binds the main thread to a single core when it is loaded, if it is told to bind any.
        """
        if sys.platform == "linux":
            return linux_usable(Path("/"), frozenset(os.sched_getaffinity(0)))
        return macos_usable(sysctl) if sys.platform == "darwin" else any_usable(n_cpus())

    @functools.cached_property
    def usable_cores(self) -> tuple[Core, ...]:
        """The cores of which at least one CPU is allowed."""
        return tuple(core for core in self.cores if not self.allowed.isdisjoint(core.cpus))

    def n_usable(self, kind: CoreKind) -> int:
        """How many of them are of a kind."""
        return sum(core.kind == kind for core in self.usable_cores)

    @functools.cached_property
    def n_threads(self) -> int:
        """A thread for each usable core of either kind, and no more than the quota has whole CPUs; at least 1."""
        n_cores = len(self.usable_cores)
        return n_cores if self.quota is None else max(1, min(n_cores, int(self.quota.cpus)))

    @property
    def reason(self) -> str:
        """Why so many threads."""
        n_cores = len(self.usable_cores)
        if self.n_threads < n_cores:
            return f"the quota of {self.quota}, rounded down: a thread that is put off holds up all"
        each = "a CPU" if not self.tells_threads else "a core" if self._most_cpus < 2 else "a core, not a hyperthread"
        if not self.n_usable("efficiency"):
            return f"one {each}"
        return f"one {each}, of either kind: threads draw tasks, so slower cores take fewer"

    @property
    def _most_cpus(self) -> int:
        return max(len(core.cpus) for core in self.usable_cores)

    def lines(self) -> dict[str, str]:
        """What was found, by heading."""
        return {"cores": self._cores_line(), "CPU quota": str(self.quota or "none"), "NUMA nodes": self._nodes_line()}

    def _cores_line(self) -> str:
        cpus = sorted(cpu for core in self.cores for cpu in core.cpus)
        n_cores, n_allowed = len(self.usable_cores), len(self.allowed)
        if not self.tells_threads:
            return f"{n_cores} CPUs; this system does not say which are hyperthreads of one core"
        text = f"{n_cores} of {len(self.cores)}"
        if n_cores and self.n_usable("efficiency"):
            text += f" ({self.n_usable('performance')} performance, {self.n_usable('efficiency')} efficiency)"
        if len(cpus) > len(self.cores):
            text += f", up to {self._most_cpus} CPUs each"
        return text + (f"; affinity allows {n_allowed} of {len(cpus)} CPUs" if n_allowed < len(cpus) else "")

    def cores_near(self, node: NumaNode) -> tuple[Core, ...]:
        """The usable cores of a NUMA node."""
        return tuple(core for core in self.usable_cores if not set(core.cpus).isdisjoint(node.cpus))

    @property
    def node_cores(self) -> tuple[int, ...]:
        """Where several NUMA nodes have usable cores, how many each has, in the order of their CPUs; else nothing."""
        cores = [self.cores_near(node) for node in sorted(self.nodes, key=lambda node: node.cpus)]
        found = tuple(len(near) for near in cores if near)
        return found if len(found) > 1 else ()

    def _nodes_line(self) -> str:
        nodes = [
            f"node {node.number}: {len(self.cores_near(node))} usable cores, {node.memory_bytes / 1e9:.1f} GB"
            for node in self.nodes
        ]
        return "; ".join(nodes) or "not known"


def n_cpus() -> int:
    """CPUs of this process where Python asks the system for that, which it does since 3.13; else of the machine."""
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def linux_usable(root: Path, allowed: frozenset[int]) -> Usable:
    """What ``proc`` and ``sys`` under ``root`` say, for a process that may run on the CPUs ``allowed``."""
    system = root / "sys/devices/system"
    return Usable(find_cores(system / "cpu", allowed), allowed, cpu_quota(root), find_nodes(system / "node"))


def macos_usable(ask: Callable[[str], str]) -> Usable:
    """What ``ask`` says, a function from a key of sysctl to its text."""
    cores = macos_cores(ask)
    return Usable(cores, frozenset(cpu for core in cores for cpu in core.cpus))


def any_usable(n_cpus: int) -> Usable:
    """Of a system that says no more than its number of CPUs."""
    return Usable(tuple(Core((cpu,)) for cpu in range(n_cpus)), frozenset(range(n_cpus)), tells_threads=False)
