"""The machine a plan is made for: caches, cores and instruction set."""

import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tiling.check import MAX_THREADS, check_choice, check_int, check_ints, check_str
from tiling.json import JsonText
from tiling.modes import ISA_NAMES, IsaName
from tiling.system.caches import cache_sizes
from tiling.system.macos import first_count, sysctl
from tiling.system.text import read
from tiling.system.usable import Usable, any_usable, linux_usable, macos_usable, n_cpus

__all__ = ["ISA_NAMES", "Machine"]


_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl"}
# What each instruction set needs of a CPU, by Linux' names of flags.
CPU_FLAGS: dict[IsaName, frozenset[str]] = {
    "avx512bf16": _AVX512 | {"avx512_vnni", "avx512_bf16"},
    "avx512vnni": _AVX512 | {"avx512_vnni"},
    "avx512": _AVX512,
    "avxvnni": _AVX2 | {"avx_vnni"},
    "avx2": _AVX2,
    "neoni8mm": frozenset({"asimd", "asimddp", "i8mm", "bf16"}),
    "neondot": frozenset({"asimd", "asimddp"}),
    "neon": frozenset({"asimd"}),
    "portable": frozenset(),
}
# Where macOS names the same: on Intel in a list of words, on Apple's own CPUs one key each, which is "1".
_MACOS_FLAGS = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avxvnni": "avx_vnni"}
_MACOS_KEYS = {
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}

# Arm's own numbers of its cores
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}

# What nearly every core since 2010 has at least; used where the system does not say.
_FALLBACK_L1D_BYTES = 32 * 1024
_FALLBACK_L2_BYTES = 512 * 1024

_MAX_CACHE_BYTES = 2**40


@dataclass(frozen=True)
class Machine(JsonText):
    """Caches, cores and instruction set of one machine.

    ``l1d_bytes`` and ``l2_bytes`` are those of one core, or its share where cores share them; of two kinds of cores
    those of the kind that has less. ``l3_bytes`` is the shared one and 0 where there is none or it is not known.
    ``n_usable_cores`` counts the physical cores this process may run on, of either kind: hyperthreads of one core
    count once, and CPU affinity and a cgroup's quota are respected. Caches have at most 2^40 bytes, and there are at
    most 2^16 cores.

    - ``name, arch``: of the CPU; ``isa``: the instruction set of the kernels, one of ``machine.ISA_NAMES``.
    - ``n_physical_cores``: cores of the machine.
    - ``node_cores``: of several NUMA nodes, the cores of each that this process may run on, in the order of their CPUs;
      empty where there is one node or none is known.

    Examples:
        >>> from tiling import Machine
        >>> small = Machine("a CPU", "x86_64", "avx2", 32 << 10, 512 << 10, 8 << 20, 4, n_usable_cores=2)
        >>> print(small)
        a CPU (x86_64, avx2): L1d 32 KiB, L2 512 KiB, L3 8192 KiB, 2 of 4 cores
        >>> Machine.from_json(small.to_json()) == small
        True
    """

    name: str
    arch: str
    isa: IsaName
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    n_physical_cores: int
    n_usable_cores: int
    node_cores: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("name", "arch"):
            check_str(name, getattr(self, name))
        check_choice("isa", self.isa, ISA_NAMES)
        check_int("l1d_bytes", self.l1d_bytes, 1, _MAX_CACHE_BYTES)
        check_int("l2_bytes", self.l2_bytes, 1, _MAX_CACHE_BYTES)
        check_int("l3_bytes", self.l3_bytes, 0, _MAX_CACHE_BYTES)
        check_int("n_usable_cores", self.n_usable_cores, 1, MAX_THREADS)
        check_int("n_physical_cores", self.n_physical_cores, self.n_usable_cores, MAX_THREADS)
        object.__setattr__(self, "node_cores", tuple(check_ints("node_cores", self.node_cores, 1)))
        if sum(self.node_cores) > self.n_physical_cores:
            raise ValueError(
                f"node_cores: expected at most {self.n_physical_cores} cores together, got {sum(self.node_cores)}"
            )

    @staticmethod
    @lru_cache(maxsize=1)
    def detect() -> "Machine":
        """This machine, as far as the operating system describes it; asked once per process."""
        if sys.platform == "linux":
            return linux_machine(Path("/"), Usable.detect())
        if sys.platform == "darwin":
            return detect_macos(sysctl)
        return fallback_machine()

    def __str__(self) -> str:
        """One line."""
        nodes = f" on {len(self.node_cores)} NUMA nodes" if len(self.node_cores) > 1 else ""
        return (
            f"{self.name} ({self.arch}, {self.isa}): L1d {self.l1d_bytes // 1024} KiB, L2 {self.l2_bytes // 1024} KiB, "
            f"L3 {self.l3_bytes // 1024} KiB, {self.n_usable_cores} of {self.n_physical_cores} cores{nodes}"
        )


def isa_of(flags: Iterable[str]) -> IsaName:
    """The best instruction set of ``ISA_NAMES`` that the CPU flags (lower case, as in /proc/cpuinfo) allow."""
    flags = set(flags)
    return next(name for name in ISA_NAMES if flags >= CPU_FLAGS[name])


def detect_linux(root: Path, affinity: Iterable[int]) -> Machine:
    """The machine described by ``proc`` and ``sys`` under ``root``, for a process that may run on CPUs ``affinity``."""
    return linux_machine(root, linux_usable(root, frozenset(affinity)))


def linux_machine(root: Path, usable: Usable) -> Machine:
    """The same, for a process of which it is known what it may use."""
    info = _cpuinfo(root / "proc/cpuinfo")
    caches = cache_sizes(root / "sys/devices/system/cpu", usable.usable_cores)
    return Machine(
        name=_cpu_name(info),
        arch=platform.machine(),
        isa=isa_of(info.get("flags", info.get("Features", "")).split()),
        l1d_bytes=caches.l1d_bytes or _FALLBACK_L1D_BYTES,
        l2_bytes=caches.l2_bytes or _FALLBACK_L2_BYTES,
        l3_bytes=caches.l3_bytes,
        n_physical_cores=len(usable.cores),
        n_usable_cores=usable.n_threads,
        node_cores=usable.node_cores,
    )


def detect_macos(ask: Callable[[str], str]) -> Machine:
    """The machine that ``ask`` describes: a function from a key of sysctl to its text, empty where there is none."""
    words = f"{ask('machdep.cpu.features')} {ask('machdep.cpu.leaf7_features')}".lower().split()
    flags = [_MACOS_FLAGS.get(word, word) for word in words]
    flags += [flag for key, flag in _MACOS_KEYS.items() if ask(key) == "1"]
    usable = macos_usable(ask)
    levels = ["perflevel0."] + ["perflevel1."] * (usable.n_usable("efficiency") > 0)

    def of_a_core(cache: str, sharing: str) -> int:
        shares = [
            first_count(ask, f"hw.{level}{cache}") // (first_count(ask, f"hw.{level}{sharing}") or 1)
            for level in levels
        ]
        return min((share for share in shares if share), default=first_count(ask, f"hw.{cache}"))

    return Machine(
        name=ask("machdep.cpu.brand_string") or platform.machine(),
        arch=platform.machine(),
        isa=isa_of(flags),
        l1d_bytes=of_a_core("l1dcachesize", "cpusperl1d") or _FALLBACK_L1D_BYTES,
        l2_bytes=of_a_core("l2cachesize", "cpusperl2") or _FALLBACK_L2_BYTES,
        l3_bytes=first_count(ask, "hw.l3cachesize"),
        n_physical_cores=len(usable.cores),
        n_usable_cores=usable.n_threads,
    )


def fallback_machine() -> Machine:
    """A modest machine with this one's number of CPUs, where the system does not say more."""
    arch, n_cores = platform.machine() or "unknown", any_usable(n_cpus()).n_threads
    return Machine(arch, arch, "portable", _FALLBACK_L1D_BYTES, _FALLBACK_L2_BYTES, 0, n_cores, n_cores)


def _cpuinfo(path: Path) -> dict[str, str]:
    """The fields of the first processor."""
    first = read(path).partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_name(info: dict[str, str]) -> str:
    """What the first processor is called; AArch64 has numbers in place of a name."""
    if "model name" in info or "CPU part" not in info:
        return info.get("model name", platform.machine())
    implementer, part = info.get("CPU implementer", ""), info["CPU part"]
    return (
        _ARM_PARTS.get(part, f"Arm {part}") if implementer == "0x41" else f"{platform.machine()} {implementer} {part}"
    )
