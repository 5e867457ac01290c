"""The kernels. Nothing outside this package imports numba or llvmlite."""

from ._jit import cache_folder, max_threads
from .isa import ISA, ISAS, Isa

__all__ = ["ISA", "ISAS", "Isa", "cache_folder", "max_threads"]
