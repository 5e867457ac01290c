"""What llvm-mca, LLVM's model of a CPU's core, predicts for a loop."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from itertools import chain, combinations
from typing import Any, NamedTuple

from mla_numba.kernels.micro.assembly import Target

from .inner_loops import InnerLoop

__all__ = ["Prediction", "find_llvm_mca", "predict"]

_VERSIONS = range(40, 13, -1)
_TURNS = 200


class Prediction(NamedTuple):
    """Cycles of one turn of a loop, and the least that its multiplications take on the ports that can do them."""

    cycles: float
    limit: float

    @property
    def share(self) -> float:
        """The share of the limit that the loop reaches."""
        return self.limit / self.cycles


def find_llvm_mca() -> str | None:
    """The newest llvm-mca on the path, None where there is none."""
    names = (*(f"llvm-mca-{version}" for version in _VERSIONS), "llvm-mca")
    return next(filter(None, map(shutil.which, names)), None)


def predict(llvm_mca: str, target: Target, loop: InnerLoop) -> Prediction:
    """Raises `RuntimeError` with what llvm-mca says where it knows no such CPU or instruction."""
    cycles = [_run(llvm_mca, target, loop.instructions, turns)["SummaryView"]["TotalCycles"] for turns in (1, 2)]
    return Prediction((cycles[1] - cycles[0]) / _TURNS, _port_limit(llvm_mca, target, loop))


def _run(llvm_mca: str, target: Target, lines: tuple[str, ...], turns: int) -> dict[str, Any]:
    arguments = [llvm_mca, f"-mtriple={target.triple}", f"-mcpu={target.cpu}", "-json", f"-iterations={turns * _TURNS}"]
    done = subprocess.run(arguments, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llvm-mca: {done.stderr.strip()}")
    region: dict[str, Any] = json.loads(done.stdout)["CodeRegions"][0]
    return region


def _port_limit(llvm_mca: str, target: Target, loop: InnerLoop) -> float:
    """Of all sets of mnemonics the most cycles that their ports need, if work is spread evenly.

    Operands come from registers here: loads have ports of their own.
    """
    lines = tuple(map(_from_registers, loop.multiplies))
    region = _run(llvm_mca, target, lines, 1)
    cycles: dict[str, float] = defaultdict(float)
    ports: dict[str, set[int]] = defaultdict(set)
    for use in region["ResourcePressureView"]["ResourcePressureInfo"]:
        if use["InstructionIndex"] < len(lines):  # behind them there are sums
            mnemonic = lines[use["InstructionIndex"]].split()[0]
            cycles[mnemonic] += use["ResourceUsage"]
            ports[mnemonic].add(use["ResourceIndex"])
    sets = chain.from_iterable(combinations(cycles, n) for n in range(1, len(cycles) + 1))
    return max(sum(cycles[m] for m in some) / len(set.union(*(ports[m] for m in some))) for some in sets)


def _from_registers(line: str) -> str:
    """The instruction with a register for what it reads from memory."""
    line = line.removeprefix("{vex}").lstrip()
    return re.sub(r"-?\w*\([^)]*\)(?:\{1to\d+\})?", "%zmm31" if "%zmm" in line else "%ymm15", line)
