"""Cores, their hyperthreads and their kinds, and NUMA nodes, as Linux describes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tiling.system.text import cpu_list, number, read

__all__ = ["Core", "CoreKind", "NumaNode", "find_cores", "find_nodes"]

CoreKind = Literal["performance", "efficiency"]

# Of the fastest core's speed. Cores that a machine prefers are some percent faster than their neighbours; an efficiency
# core has half to three quarters of a performance core's speed.
_SLOWER = 0.8


@dataclass(frozen=True)
class Core:
    """A physical core: its CPUs, which are hyperthreads if there are several, and its kind.

    Where all cores are alike they are performance cores.
    """

    cpus: tuple[int, ...]
    kind: CoreKind = "performance"


@dataclass(frozen=True)
class NumaNode:
    """Memory, and the CPUs that are near it."""

    number: int
    cpus: tuple[int, ...]
    memory_bytes: int


def find_cores(cpus: Path, allowed: frozenset[int]) -> tuple[Core, ...]:
    """The cores that ``cpus``, /sys/devices/system/cpu, describes; a CPU of ``allowed`` that it does not is a core."""
    cpus_of: dict[object, set[int]] = {}
    for folder in cpus.glob("cpu[0-9]*"):
        cpu = number(folder.name[3:])
        siblings = _siblings(folder / "topology", cpu)
        if cpu >= 0 and siblings is not None:
            cpus_of.setdefault(siblings, set()).add(cpu)
    for cpu in allowed - set().union(*cpus_of.values()):
        cpus_of[cpu] = {cpu}
    cores = sorted(tuple(sorted(found)) for found in cpus_of.values())
    slow = _slow_cpus(cpus, [core[0] for core in cores])
    return tuple(Core(core, "efficiency" if core[0] in slow else "performance") for core in cores)


def _siblings(topology: Path, cpu: int) -> object:
    """What the CPUs of one core have in common, None where the system does not say."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        siblings = cpu_list(read(topology / name))
        if cpu in siblings:
            return siblings
    core = read(topology / "core_id")
    return (
        (*(read(topology / f"{level}_id") for level in ("physical_package", "die", "cluster")), core) if core else None
    )


def _slow_cpus(cpus: Path, first_of_core: list[int]) -> frozenset[int]:
    """CPUs of efficiency cores: those that the kernel calls so, or that are much slower than the fastest."""
    kinds = cpus.parent.parent  # Linux has a device for each kind of core of a hybrid Intel CPU
    if (kinds / "cpu_core/cpus").exists():
        return frozenset().union(*(cpu_list(read(kinds / name / "cpus")) for name in ("cpu_atom", "cpu_lowpower")))
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        if not first_of_core or not (cpus / f"cpu{first_of_core[0]}" / name).exists():
            continue
        speeds = {cpu: number(read(cpus / f"cpu{cpu}" / name)) for cpu in first_of_core}
        return frozenset(cpu for cpu, speed in speeds.items() if 0 < speed < _SLOWER * max(speeds.values()))
    return frozenset()


def find_nodes(nodes: Path) -> tuple[NumaNode, ...]:
    """The NUMA nodes that ``nodes``, /sys/devices/system/node, describes, but for those without memory and CPUs."""
    found = []
    for folder in nodes.glob("node[0-9]*"):
        total = next((line.split() for line in read(folder / "meminfo").splitlines() if "MemTotal:" in line), [])
        n_bytes = max(0, number(total[-2]) * 1024) if len(total) >= 2 else 0
        node = NumaNode(number(folder.name[4:]), tuple(sorted(cpu_list(read(folder / "cpulist")))), n_bytes)
        if node.number >= 0 and (node.cpus or node.memory_bytes):
            found.append(node)
    return tuple(sorted(found, key=lambda node: node.number))
