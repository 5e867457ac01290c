"""The instruction sets that there are kernels for, and which of them this process runs.

`MLA_NUMBA_ISA` names one. Without it, it is the most capable that this CPU has, within what Numba is told to compile
for: `NUMBA_CPU_NAME=haswell` chooses the AVX2 kernels on an AVX-512 machine, and `generic` the portable ones.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from numba.core import config

from ..isa import Isa
from .avx2 import AVX2
from .avx512 import AVX512
from .avx512bf16 import AVX512BF16
from .avx512vnni import AVX512VNNI
from .avxvnni import AVXVNNI
from .cpu_features import host_features, named_features
from .neon import NEON
from .neondot import NEONDOT
from .neoni8mm import NEONI8MM
from .portable import PORTABLE

__all__ = ["CHOICE", "ISA", "ISAS", "ISA_VARIABLE", "Choice", "choose_isa", "say_if_none_fits", "target_features"]

ISA_VARIABLE = "MLA_NUMBA_ISA"

# From the most capable on
ISAS = {
    isa.name: isa
    for isa in (AVX512BF16, AVX512VNNI, AVX512, AVXVNNI, AVX2, NEONI8MM, NEONDOT, NEON, PORTABLE)
}  # fmt: skip
_FEATURES = frozenset().union(*(isa.features for isa in ISAS.values()))

log = logging.getLogger("mla_numba")


@dataclass(frozen=True)
class Choice:
    """The instruction set of this process, and why it is this one.

    `within` are Numba's settings that hold LLVM back ("NUMBA_CPU_NAME=haswell"), empty if there are none, and
    `features` what is left of this CPU's; `named` says that the user asked for it by name.
    """

    isa: Isa
    within: str
    features: frozenset[str]
    named: bool

    @property
    def reason(self) -> str:
        """Why it was chosen."""
        if self.named:
            return f"{ISA_VARIABLE}={self.isa.name}"
        if self.isa.features:
            return f"the most capable that {self.within or 'this CPU'} has"
        return f"none of the others is in {self.within or 'this CPU'}"

    @property
    def others(self) -> tuple[str, ...]:
        """The other instruction sets that can run, from the most capable on."""
        return tuple(name for name, isa in ISAS.items() if isa is not self.isa and not self.lacking(isa))

    def lacking(self, isa: Isa) -> tuple[str, ...]:
        """What an instruction set needs and cannot have, by LLVM's names."""
        return tuple(sorted(isa.features - self.features))


def choose_isa(asked: str, settings: Mapping[str, str], features: frozenset[str]) -> Choice:
    """The instruction set of a target that has these features: the one that is `asked` for or, of "", the best.

    `settings` are those of Numba that led to the features, by name. Raises `ValueError` for an instruction set that
    there is not, or that needs other features.
    """
    within = " ".join(f"{name}={value}" for name, value in settings.items())
    if not asked:
        best = next(isa for isa in ISAS.values() if features >= isa.features)
        return Choice(best, within, features, named=False)
    if asked not in ISAS:
        raise ValueError(f"{ISA_VARIABLE}: expected one of {', '.join(ISAS)}, got {asked!r}")
    choice = Choice(ISAS[asked], within, features, named=True)
    lacking = choice.lacking(choice.isa)
    if lacking:
        raise ValueError(
            f"{ISA_VARIABLE}: expected an instruction set that {within or 'this CPU'} has "
            f"({', '.join(choice.others)}), got {asked}, which needs {', '.join(lacking)}"
        )
    return choice


def target_features(
    cpu_name: str | None, cpu_features: str | None, host: frozenset[str], *, avx: bool = True
) -> frozenset[str]:
    """What code may use that Numba compiles with these settings, of what this CPU (`host`) has.

    `cpu_name`, `cpu_features` and `avx` are Numba's settings `NUMBA_CPU_NAME`, `NUMBA_CPU_FEATURES` (both None where
    unset) and `NUMBA_ENABLE_AVX`. Beside a name, features add to its own and take from them ("+avx2,-fma"); alone they
    are the whole list.
    """
    if not avx:
        host = frozenset(name for name in host if not name.startswith("avx"))
    named = cpu_name not in (None, "host")
    if not named and cpu_features is None:
        return host
    return host & named_features(cpu_name if named and cpu_name else "generic", cpu_features or "", _FEATURES & host)


def _settings() -> dict[str, str]:
    """Numba's settings that hold LLVM back, where they are set."""
    found = {} if config.CPU_NAME is None else {"NUMBA_CPU_NAME": config.CPU_NAME}
    if config.CPU_FEATURES or (config.CPU_FEATURES is not None and not found):
        found["NUMBA_CPU_FEATURES"] = config.CPU_FEATURES
    return found if config.ENABLE_AVX else found | {"NUMBA_ENABLE_AVX": "0"}


@functools.cache  # once a process
def say_if_none_fits() -> None:
    """Says in the log that the portable kernels run, if that is because this CPU has nothing that others need."""
    if ISA is PORTABLE and not CHOICE.named and not CHOICE.within:
        log.warning(
            "this CPU has none of the instruction sets that there are vector kernels for; the portable kernels run, "
            "which are slower (`mla-numba info --json` lists what each needs)"
        )


CHOICE = choose_isa(
    os.environ.get(ISA_VARIABLE, ""),
    _settings(),
    target_features(config.CPU_NAME, config.CPU_FEATURES, host_features(), avx=bool(config.ENABLE_AVX)),
)
ISA = CHOICE.isa
