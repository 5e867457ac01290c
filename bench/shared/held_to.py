"""The environment that holds this library and PyTorch to an instruction set that is less than the CPU's."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HELD_TO", "LIMITS", "limits_set", "variables"]

# What each library reads when it is loaded. FBGEMM and MKL do not follow PyTorch's own.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "FBGEMM_ENABLE_INSTRUCTIONS")


class HeldTo(NamedTuple):
    """A CPU of that instruction set, by LLVM's name, and each library's own name of what it has."""

    cpu: str
    aten: str
    onednn: str
    mkl: str
    fbgemm: str


HELD_TO = {
    "avx512vnni": HeldTo("cascadelake", "avx512", "AVX512_CORE_VNNI", "AVX512", "AVX512_E1"),
    "avx512": HeldTo("skylake-avx512", "avx512", "AVX512_CORE", "AVX512", "AVX512"),
    "avxvnni": HeldTo("alderlake", "avx2", "AVX2_VNNI", "AVX2", "AVX2"),
    "avx2": HeldTo("haswell", "avx2", "AVX2", "AVX2", "AVX2"),
}


def variables(isa: str) -> dict[str, str]:
    """What to set: kernels of `isa`, all other code that Numba compiles for that CPU alone, and PyTorch's libraries."""
    held = HELD_TO[isa]
    ours = {"MLA_NUMBA_ISA": isa, "NUMBA_CPU_NAME": held.cpu, "NUMBA_CPU_FEATURES": ""}
    return ours | dict(zip(LIMITS, (held.aten, held.onednn, held.mkl, held.fbgemm), strict=True))


def limits_set(environment: dict[str, str]) -> str:
    """The limits of PyTorch's libraries in an environment, as a shell takes them."""
    return " ".join(f"{name}={environment[name]}" for name in LIMITS if environment.get(name))
