"""The instruction sets that there are kernels for, and which of them this process runs.

The choice follows Numba's own target: `NUMBA_CPU_NAME=haswell` builds the AVX2 kernels on an AVX-512 machine and
`NUMBA_CPU_NAME=generic` the portable ones. A name that no instruction set lists gets the portable kernels, which every
CPU runs; the host's own name is never looked up, its features are.
"""

from __future__ import annotations

from llvmlite import binding as llvm
from numba.core import config

from ..isa import Isa
from .avx2 import AVX2
from .avx512bf16 import AVX512BF16
from .avx512vnni import AVX512VNNI
from .portable import PORTABLE

__all__ = ["ISA", "ISAS", "choose_isa"]

ISAS = {isa.name: isa for isa in (AVX512BF16, AVX512VNNI, AVX2, PORTABLE)}  # from the most capable on


def _features_of_name(cpu_name: str) -> frozenset[str]:
    return next((isa.features for isa in ISAS.values() if cpu_name in isa.cpus), frozenset())


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
    return next(isa for isa in ISAS.values() if features >= isa.features)


def _host_features() -> frozenset[str]:
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


ISA = choose_isa(config.CPU_NAME, config.CPU_FEATURES, _host_features())
