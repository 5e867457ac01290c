"""The kernels. Nothing outside this package imports numba or llvmlite."""

from ._cache import cache_folder
from ._jit import max_threads
from .isa import ISA, ISAS, Isa

__all__ = ["ISA", "ISAS", "Isa", "cache_folder", "max_threads"]
