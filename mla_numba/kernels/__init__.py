"""The kernels. Nothing outside this package imports numba or llvmlite."""

from ._cache_folder import cache_folder, make_cache_folder, why_not_kept
from ._jit import max_threads
from .isa import ISA, ISAS, Isa

__all__ = ["ISA", "ISAS", "Isa", "cache_folder", "make_cache_folder", "max_threads", "why_not_kept"]
