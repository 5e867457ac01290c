"""The loop over k of a microkernel, found in assembly language, and which of its instructions multiply."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mla_numba.kernels import Isa
from mla_numba.kernels.isa import MicroKernel

__all__ = ["MULTIPLIES", "InnerLoop", "inner_loop", "loops_of"]

# What multiplies, and adds the products: the rest of a loop feeds these.
MULTIPLIES = re.compile(
    r"vfmadd\d+ps|vdpbf16ps|vpdpbusd|vpdpwssd|vpmaddwd|vpaddd"
    r"|fmla|bfmlal[bt]|sdot|smmla|smull2?|smlsl2?|sadalp"
)
_JUMPS = re.compile(r"(?:j[a-z]+|b|b\.[a-z]+|cbn?z|tbn?z)(?=\s)")
_INTO_L1 = re.compile(r"prefetcht0|pldl1keep")
_STACK = re.compile(r"\((?:.*,)?%rsp\b|\[(?:sp|x29)\b")


class InnerLoop(NamedTuple):
    """The instructions of one turn, from the block on that multiplies most; those that jump are left out."""

    instructions: tuple[str, ...]

    @property
    def multiplies(self) -> tuple[str, ...]:
        """Those that multiply, and add the products."""
        return tuple(line for line in self.instructions if MULTIPLIES.match(_without_prefix(line)))

    @property
    def on_the_stack(self) -> tuple[str, ...]:
        """Those that read or write what found no register."""
        return tuple(line for line in self.instructions if _STACK.search(line))

    def count(self, mnemonic: str) -> int:
        """How many instructions begin so; their encoding is not looked at."""
        return sum(_without_prefix(line).startswith(mnemonic) for line in self.instructions)


class _Block(NamedTuple):
    """Instructions that run one after the other, and what may run next."""

    instructions: list[str]
    followers: list[int]


def loops_of(isa: Isa, assembly: str) -> Iterator[tuple[MicroKernel, InnerLoop]]:
    """The loops of an instruction set's microkernels, for all rows of the register tile, in its assembly language."""
    for kernel in (isa.int8, isa.bf16):
        assert kernel is not None
        yield kernel, inner_loop(assembly, f"mla_numba_{kernel.name}_{isa.name}_i16_{isa.mr}")


def inner_loop(assembly: str, function: str) -> InnerLoop:
    """The way round the loop of a function that multiplies most; where prefetches differ, that into L1.

    Raises `ValueError` where there is none.
    """
    blocks = _blocks(assembly, function)
    busiest_first = sorted(range(len(blocks)), key=lambda i: -_n_multiplies(blocks[i]))
    some = (list(_ways_round(blocks, i)) for i in busiest_first if _n_multiplies(blocks[i]))
    ways = next(filter(None, some), None)
    if ways is None:
        raise ValueError(f"function: expected one with a loop that multiplies, got {function}")
    lines = max(([line for i in way for line in blocks[i].instructions] for way in ways), key=_prefetches_first)
    return InnerLoop(tuple(line for line in lines if not _JUMPS.match(line)))


def _without_prefix(line: str) -> str:
    return line.removeprefix("{vex}").lstrip()


def _n_multiplies(block: _Block) -> int:
    return len(InnerLoop(tuple(block.instructions)).multiplies)


def _prefetches_first(lines: list[str]) -> tuple[int, int]:
    return sum(bool(_INTO_L1.search(line)) for line in lines), -len(lines)


def _blocks(assembly: str, function: str) -> list[_Block]:
    found = re.search(rf"^{function}:$(.*?)^\.Lfunc_end", assembly, re.M | re.S)
    if found is None:
        raise ValueError(f"function: expected one of the assembly, got {function}")
    labels: dict[str, int] = {}
    parts: list[list[str]] = [[]]
    for raw in found[1].splitlines():
        line = re.sub(r"(?:#+\s|//).*", "", raw).strip()
        if line.endswith(":"):
            parts.append([])
            labels[line[:-1]] = len(parts) - 1
        elif line and not line.startswith("."):
            parts[-1].append(re.sub(r"\s+", " ", line))
            if _JUMPS.match(line):
                parts.append([])
    return [_Block(part, _followers(part, i, labels, len(parts))) for i, part in enumerate(parts)]


def _followers(part: list[str], i: int, labels: dict[str, int], n: int) -> list[int]:
    last = part[-1] if part else ""
    here = [labels[target] for target in re.findall(r"\.LBB\w+$", last) if _JUMPS.match(last)]
    ends = re.match(r"(?:jmp|b|ret[a-z]*)(?=\s|$)", last)
    return here if ends or i + 1 == n else [*here, i + 1]


def _ways_round(blocks: list[_Block], start: int) -> Iterator[list[int]]:
    """All ways from a block back to it that come to no other block twice."""
    ways = [[start]]
    while ways:
        way = ways.pop()
        for follower in blocks[way[-1]].followers:
            if follower == start:
                yield way
            elif follower not in way:
                ways.append([*way, follower])
