"""What llvm-mca, LLVM's model of a CPU's core, predicts for a loop."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from functools import cache
from itertools import combinations, count
from typing import Any, NamedTuple

from mla_numba.kernels.micro.assembly import Target

from .inner_loops import InnerLoop
from .table_faults import put_right

__all__ = ["Prediction", "find_llvm_mca", "predict"]

_VERSIONS = range(40, 13, -1)
_TURNS = 200
_A_LOAD = {"x86_64": "vmovups (%rsi), %ymm1", "aarch64": "ldr q1, [x0]"}
_REGISTER = re.compile(r"(%[xyz]mm|\b[vqds])\d+\b")  # of vectors


class Prediction(NamedTuple):
    """Cycles of one turn of a loop, and the least that ports allow.

    `limit` is what its multiplications take at least on the ports that can do them, `limit_of_all` what all its
    instructions upon vectors take: what widens and spreads operands has to share these ports. Those of loads are apart.
    """

    cycles: float
    limit: float
    limit_of_all: float

    @property
    def share(self) -> float:
        """The share of the limit that the loop reaches."""
        return self.limit / self.cycles

    @property
    def share_of_all(self) -> float:
        """The share of the limit of all its instructions."""
        return self.limit_of_all / self.cycles


def find_llvm_mca() -> str | None:
    """The newest llvm-mca on the path, None where there is none."""
    names = (*(f"llvm-mca-{version}" for version in _VERSIONS), "llvm-mca")
    return next(filter(None, map(shutil.which, names)), None)


def predict(llvm_mca: str, target: Target, loop: InnerLoop, tables_right: bool = False) -> Prediction:
    """By llvm-mca's tables as they are or, with `tables_right`, where they are wrong by what is right.

    Raises `RuntimeError` with what llvm-mca says where it knows no such CPU or instruction.
    """
    products = tuple(map(_from_registers, loop.multiplies))
    lines = loop.instructions
    if tables_right:
        products, lines = put_right(target.cpu, products), put_right(target.cpu, lines)
    ends = [_run(llvm_mca, target, lines, turns)["SummaryView"]["TotalCycles"] for turns in (1, 2)]
    works = [_work(llvm_mca, target, line) for line in products]
    loads = _work(llvm_mca, target, _A_LOAD[target.triple.split("-")[0]]).keys()
    upon_vectors = [_work(llvm_mca, target, line) for line in lines if _REGISTER.search(line)]
    without_loads = [{port: cycles for port, cycles in work.items() if port not in loads} for work in upon_vectors]
    cycles = round((ends[1] - ends[0]) / _TURNS, 1)  # of a last turn that ends a few cycles sooner or later
    return Prediction(cycles, _least(works), _least(without_loads))


def _run(llvm_mca: str, target: Target, lines: tuple[str, ...], turns: int) -> dict[str, Any]:
    arguments = [llvm_mca, f"-mtriple={target.triple}", f"-mcpu={target.cpu}", "-json", f"-iterations={turns * _TURNS}"]
    done = subprocess.run(arguments, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llvm-mca: {done.stderr.strip()}")
    region: dict[str, Any] = json.loads(done.stdout)["CodeRegions"][0]
    return region


def _work(llvm_mca: str, target: Target, line: str) -> dict[int, float]:
    """The cycles that an instruction takes on each port, if it has them to itself."""
    number = count(1)  # of registers: which they are does not matter
    line = _REGISTER.sub(lambda register: f"{register[1]}{next(number)}", _without_prefix(line))
    return dict(_work_of_line(llvm_mca, target, line))


@cache
def _work_of_line(llvm_mca: str, target: Target, line: str) -> tuple[tuple[int, float], ...]:
    uses = _run(llvm_mca, target, (line,), 1)["ResourcePressureView"]["ResourcePressureInfo"]
    return tuple((use["ResourceIndex"], use["ResourceUsage"]) for use in uses if use["InstructionIndex"] == 0)


def _least(works: list[dict[int, float]]) -> float:
    """Of all sets of ports the most cycles that what runs on no other port takes, if spread evenly."""
    cycles: dict[frozenset[int], float] = defaultdict(float)
    for work in filter(None, works):
        cycles[frozenset(work)] += sum(work.values())
    unions = {frozenset().union(*some) for n in range(1, len(cycles) + 1) for some in combinations(cycles, n)}
    return max(sum(c for ports, c in cycles.items() if ports <= union) / len(union) for union in unions)


def _from_registers(line: str) -> str:
    """The instruction with a register for what it reads from memory."""
    line = _without_prefix(line)
    return re.sub(r"-?\w*\([^)]*\)(?:\{1to\d+\})?", "%zmm31" if "%zmm" in line else "%ymm15", line)


def _without_prefix(line: str) -> str:
    return line.removeprefix("{vex}").lstrip()
