"""The kernels. Nothing outside this package imports numba or llvmlite."""

from .isa import Isa
from .jit.folder import cache_folder, make_cache_folder, why_not_kept
from .launch import max_threads, threading_layer
from .micro.table import CHOICE, ISA, ISA_VARIABLE, ISAS

__all__ = [
    "CHOICE", "ISA", "ISAS", "ISA_VARIABLE", "Isa", "cache_folder", "make_cache_folder", "max_threads",
    "threading_layer", "why_not_kept",
]  # fmt: skip
