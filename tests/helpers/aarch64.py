"""Register tiles of AArch64 run on any machine: compiled by LLVM, linked by Debian's cross compiler, run by QEMU."""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mla_numba.kernels.isa import Isa
from mla_numba.kernels.llvm_ir import F32, I16
from mla_numba.kernels.micro.assembly import Target
from mla_numba.kernels.micro.emitter import TileFunction

TRIPLE = "aarch64-unknown-linux-gnu"
COMPILER, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
DRIVER = Path(__file__).with_name("aarch64_driver.c")


def missing_tools():
    """What is not installed, empty if all is there."""
    packages = {COMPILER: "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross", QEMU: "qemu-user-static"}
    return ", ".join(f"{tool} (Debian: {packages[tool]})" for tool in packages if shutil.which(tool) is None)


def tile_functions(isa):
    """The functions of an instruction set by name."""
    stores = (I16,) if isa.bf16_dot else (I16, F32)
    kernels = [(kernel, store) for store in stores for kernel in (isa.bf16, isa.int8)]
    kernels += [(isa.bf16_subnormal, I16)] if isa.bf16_subnormal else []
    tiles = [TileFunction(isa, kernel, store) for kernel, store in kernels]
    tiles += [tile._replace(panels=2) for tile in tiles if tile.kernel.two_panels]
    return {tile.name: tile for tile in tiles}


@dataclass
class Case:
    """A call of one register tile: the name of its function, and its operands as `aarch64_driver.c` takes them."""

    function: str
    mr: int
    steps: int
    lda: int
    a_step: int
    carry: bool
    locality: int
    ldy: int
    b_step: int  # to a second panel, and to its sums
    c_step: int
    arrays: dict = field(default_factory=dict)  # a, b, c, y, row_scale, col_scale, offset


@dataclass(frozen=True)
class Program:
    """The microkernels of one instruction set, linked with the driver."""

    isa: Isa
    path: Path

    @classmethod
    def build(cls, isa, folder):
        functions = tile_functions(isa)
        (folder / "tiles.h").write_text("".join(f"TILE({name})\n" for name in functions))
        (folder / "tiles.o").write_bytes(Target(TRIPLE, "generic").object_code(isa))
        path = folder / "driver"
        command = [
            COMPILER,
            "-O1",
            "-static",
            "-Wall",
            "-Werror",
            f"-I{folder}",
            "-o",
            path,
            DRIVER,
            folder / "tiles.o",
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return cls(isa, path)

    def run(self, cases, cpu):
        """What each case leaves in c and y, on a CPU that QEMU knows."""
        names = list(tile_functions(self.isa))
        given, made = self.path.with_name("cases"), self.path.with_name("results")
        with given.open("wb") as file:
            for case in cases:
                settings = [names.index(case.function), case.mr, case.steps, case.lda, case.a_step, case.carry]
                sizes = [array.nbytes for array in case.arrays.values()]
                file.write(
                    np.array([*settings, case.locality, case.ldy, case.b_step, case.c_step, *sizes], np.int64).tobytes()
                )
                for array in case.arrays.values():
                    file.write(array.tobytes())
        done = subprocess.run([QEMU, "-cpu", cpu, self.path, given, made], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"
        data = made.read_bytes()
        results, at = [], 0
        for case in cases:
            pair = []
            for name in ("c", "y"):
                array = case.arrays[name]
                pair.append(np.frombuffer(data, array.dtype, array.size, at))
                at += array.nbytes
            results.append(tuple(pair))
        assert at == len(data)
        return results
