"""Which instruction set the kernels are built for, and the register tile that follows from it.

The choice follows Numba's own target: `NUMBA_CPU_NAME=haswell` builds the AVX2 kernels on an AVX-512 machine and
`NUMBA_CPU_NAME=generic` the portable ones. A name that is not in the tables below gets the portable kernels, which
every CPU runs; the host's own name is never looked up, its features are.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import binding as llvm
from numba.core import config

_AVX2 = frozenset({"avx2", "fma"})
_VNNI = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}) | _AVX2
_BF16 = frozenset({"avx512bf16"}) | _VNNI

# LLVM does not tell which features a CPU name implies, so the names that users pretend with are listed.
_CPUS_AVX2 = {
    "haswell", "broadwell", "skylake", "skylake-avx512", "alderlake", "raptorlake", "znver1", "znver2", "znver3",
    "x86-64-v3", "x86-64-v4",
}  # fmt: skip
_CPUS_VNNI = {"cascadelake", "icelake-client", "icelake-server", "tigerlake", "rocketlake"}
_CPUS_BF16 = {"cooperlake", "sapphirerapids", "emeraldrapids", "graniterapids", "znver4", "znver5"}


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set and its register tile.

    A tile holds `mr` rows of `nr` columns; a packed weight interleaves `kr_bf16` or `kr_int8` steps of k. An int8
    activation is stored as `code + a_offset` in elements of `a_int8_bytes` bytes, a bf16 one as float32 or, with
    `bf16_dot`, as it is, in pairs like the weight.
    """

    name: str
    lanes: int
    mr: int
    nr: int
    kr_bf16: int
    kr_int8: int
    a_offset: int
    a_int8_bytes: int
    bf16_dot: bool = False

    @property
    def a_bf16_bytes(self) -> int:
        """Bytes of a packed bf16 activation."""
        return 2 if self.bf16_dot else 4


ISAS = {
    # 24 accumulators, 2 of B and a broadcast fill 27 of 32 registers; vpdpbusd wants u8 x s8, hence the offset.
    "avx512bf16": Isa(
        "avx512bf16", 16, mr=12, nr=32, kr_bf16=2, kr_int8=4, a_offset=128, a_int8_bytes=1, bf16_dot=True
    ),
    # Without vdpbf16ps both halves of B are held apart; 12 rows spill then and take twice as long, 10 reach the peak.
    "avx512vnni": Isa("avx512vnni", lanes=16, mr=10, nr=32, kr_bf16=2, kr_int8=4, a_offset=128, a_int8_bytes=1),
    # 12 accumulators, 2 of B and a broadcast fill 15 of 16 registers; vpmaddwd takes pairs of int16.
    "avx2": Isa("avx2", lanes=8, mr=6, nr=16, kr_bf16=2, kr_int8=2, a_offset=0, a_int8_bytes=2),
    # Plain loops: 64 columns are the shortest inner loop that LLVM vectorises instead of unrolling it whole.
    "portable": Isa("portable", lanes=4, mr=4, nr=64, kr_bf16=1, kr_int8=1, a_offset=0, a_int8_bytes=2),
}


def _features_of_name(cpu_name: str) -> frozenset[str]:
    if cpu_name in _CPUS_BF16:
        return _BF16
    if cpu_name in _CPUS_VNNI:
        return _VNNI
    return _AVX2 if cpu_name in _CPUS_AVX2 else frozenset()


def choose_isa(cpu_name: str | None, cpu_features: str | None, host_features: frozenset[str]) -> Isa:
    """The instruction set for Numba's target.

    `cpu_name` and `cpu_features` are Numba's settings of that name (None where unset, features as "+avx2,-fma"),
    `host_features` what this CPU has. A feature that the host lacks is never used, whatever the settings pretend.
    """
    features = host_features
    if cpu_name is not None and cpu_name != "host":
        features = _features_of_name(cpu_name)
    if cpu_features is not None:
        words = [word.strip() for word in cpu_features.split(",") if word.strip()]
        named = features if cpu_name not in (None, "host") else frozenset()
        features = (named | {w[1:] for w in words if w[0] == "+"}) - {w[1:] for w in words if w[0] == "-"}
    features &= host_features
    if features >= _BF16:
        return ISAS["avx512bf16"]
    if features >= _VNNI:
        return ISAS["avx512vnni"]
    return ISAS["avx2"] if features >= _AVX2 else ISAS["portable"]


def _host_features() -> frozenset[str]:
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


ISA = choose_isa(config.CPU_NAME, config.CPU_FEATURES, _host_features())
