"""Keeps vector code to the instructions of its own instruction set where this CPU has those of a more capable one.

LLVM would use the latter: with AVX-512 it has twice as many registers for the AVX2 kernels, and with VNNI it makes one
instruction of their two. They would be other kernels then, with another speed, than where AVX2 is all there is.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core.registry import cpu_target

from .cpu_features import host_features
from .table import ISA, ISAS

__all__ = ["hold_back"]


def hold_back(function: ir.Function) -> None:
    """Takes from LLVM, in a function, what only instruction sets before this process's in `ISAS` need.

    Nothing is left to take where `Isa.attributes` lists what there is.
    """
    if ISA.attributes:
        return
    names = list(ISAS)
    before = [ISAS[name] for name in names[: names.index(ISA.name)]]
    barred = frozenset[str]().union(*(isa.features for isa in before)) - ISA.features
    without = sorted(barred & host_features())
    if without:
        _, _, features = cpu_target.target_context.codegen().magic_tuple()
        listed = ",".join([*filter(None, [features]), *(f"-{name}" for name in without)])
        set.add(function.attributes, f'"target-features"="{listed}"')  # llvmlite knows no attributes with values
