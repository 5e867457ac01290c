"""Which instructions PyTorch's int8 operators may use: those of the CPU, within the limit that the environment sets."""

from __future__ import annotations

import os

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

__all__ = ["cpu_has", "int8_caveat", "onednn_has_vnni", "onednn_limit", "separate_compiler_cache"]

# Values of oneDNN's own limit below which it has no VNNI; every other one allows it.
_WITHOUT_VNNI = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}


def separate_compiler_cache() -> None:
    """Give graphs that are compiled under ATEN_CPU_CAPABILITY a folder of their own.

    The compiler's cache does not ask for which instruction set a graph was compiled: one of another set gives wrong
    results or ends the process.
    """
    capability, common = os.environ.get("ATEN_CPU_CAPABILITY"), default_cache_dir()
    # Importing torch's compiler may have put the common folder there.
    if capability and os.environ.get("TORCHINDUCTOR_CACHE_DIR", common) == common:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{common}_{capability}"


def onednn_limit() -> str:
    """The instruction set that the environment holds oneDNN to, empty where to none."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()


def cpu_has(*names: str) -> bool:
    """Whether the CPU has all of these features, by PyTorch's names."""
    found = torch.cpu.get_capabilities()
    return all(found.get(name, False) for name in names)


def onednn_has_vnni() -> bool:
    """Whether oneDNN's int8 products are exact: without VNNI sums of two products saturate at 16 bits."""
    return (cpu_has("avx512_vnni") or cpu_has("avx_vnni")) and onednn_limit() not in _WITHOUT_VNNI


def int8_caveat(dtype: torch.dtype) -> str:
    """Why products of activations of that type may be wrong here, in front of what was found; else empty."""
    int8 = dtype in (torch.int8, torch.uint8)
    return "its int8 products saturate without VNNI: " if int8 and not onednn_has_vnni() else ""
