"""The kernels. Nothing outside this package imports numba or llvmlite."""

from .isa import Isa
from .jit.cache import cache_folder
from .launch import max_threads
from .micro.table import ISA, ISAS

__all__ = ["ISA", "ISAS", "Isa", "cache_folder", "max_threads"]
