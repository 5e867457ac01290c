"""Where llvm-mca's tables are wrong, put right: instructions are asked for by others that have the ports of these.

LLVM 19 lets nobody change a table. Each fault says whence it is known; docs/instruction_sets.md has the measurements.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["put_right"]


class _Fault(NamedTuple):
    """`line`, a pattern of instructions that the tables of `cpus` are wrong about, and what has the right ports."""

    cpus: frozenset[str]
    line: re.Pattern[str]
    instead: str


_SKYLAKE_512 = frozenset({"skylake-avx512", "cascadelake", "icelake-server"})
_FAULTS = (
    # A vector port beside that of the load. Zen 5 takes none, and Zen 3 and 4 were faster than with it they could be.
    # Intel's take none for 256 bits by the same tables, and for 512 bits by that of Sapphire Rapids.
    _Fault(
        _SKYLAKE_512 | {"znver3", "znver4"},
        re.compile(r"vp?broadcast[ds]s? (\S+\)), %[yz]mm(\d+)"),
        r"vmovups \1, %ymm\2",
    ),
    # The same of whole vectors.
    _Fault(_SKYLAKE_512, re.compile(r"vmov(?:dqu64|ups) (\S+\)), %zmm(\d+)"), r"vmovups \1, %ymm\2"),
    # Port 1 is closed to 512 bits. The tables know that of `vpandq`, and that of Sapphire Rapids of `vpaddd` too.
    _Fault(_SKYLAKE_512, re.compile(r"vpaddd (%zmm\d+, %zmm\d+, %zmm\d+)"), r"vpandq \1"),
    # Three cycles of two vector ports. Zen 5 takes one of one, and so does the table of Zen 4 where the operand is a
    # register; int8 products of AVX2 on Zen 3 were faster than with three they could be.
    _Fault(
        frozenset({"znver3", "znver4"}),
        re.compile(r"vpmovsxbw (\S+\)), %ymm(\d+)"),
        r"vpshufd $0, \1, %ymm\2",
    ),
)


def put_right(cpu: str, lines: tuple[str, ...]) -> tuple[str, ...]:
    """Instructions that have the right ports and latencies in llvm-mca's table of a CPU."""
    faults = [fault for fault in _FAULTS if cpu in fault.cpus]
    return tuple(_right(line, faults) for line in lines)


def _right(line: str, faults: list[_Fault]) -> str:
    for fault in faults:
        if fault.line.fullmatch(line):
            return fault.line.sub(fault.instead, line)
    return line
