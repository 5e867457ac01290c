"""Targets of Numba that stand for an instruction set: what several tests compile for it, is compiled once."""

import platform

from mla_numba.kernels import ISA

from .processes import python_environment

# All of them a haswell has anyway, so the code is the one for the name alone.
HASWELL_FEATURES = "+avx2,+fma,+bmi,+bmi2,+f16c,+popcnt,+avx,+sse4.2"
TARGETS = {
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": HASWELL_FEATURES},
    "avx512vnni": {"NUMBA_CPU_NAME": "cascadelake"},
    "portable": {"NUMBA_CPU_NAME": "generic"},
}


def environment_of(isa):
    """The environment of a fresh interpreter that runs an instruction set: by a target, or by its own name."""
    if isa != ISA.name and isa in TARGETS and platform.machine() == "x86_64":
        return python_environment(**TARGETS[isa])
    return python_environment(MLA_NUMBA_ISA=isa)
