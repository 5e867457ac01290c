"""Scores of the lightning index on AArch64, in a CPU that QEMU emulates, against what they are to be."""

import subprocess
from pathlib import Path

import helpers
import numpy as np
import pytest
from helpers.aarch64 import COMPILER, QEMU, TRIPLE, missing_tools

from mla_numba.kernels import ISAS
from mla_numba.kernels.lightning.emitter import define_lightning
from mla_numba.kernels.lightning.panel import half_of, plain_dots
from mla_numba.kernels.micro.assembly import Target

CPUS = {"neon": "cortex-a72", "neondot": "neoverse-n1", "neoni8mm": "max"}
DRIVER = Path(helpers.__file__).with_name("aarch64_scores.c")


def make_case(isa, n_heads, n_panels, steps, seed):
    """The sizes of a call, its arrays, and the scores that it is to leave."""
    rng, k = np.random.default_rng(seed), steps * isa.kr_int8
    a = rng.integers(-128, 128, (n_heads, k)).astype(np.int8)
    b = rng.choice(np.array([-128, -3, 0, 5, 127], np.int8), n_panels * isa.nr * k)
    weights = (rng.standard_normal(n_heads) / 2048).astype(np.float16).astype(np.float32)
    scores = rng.standard_normal(n_panels * isa.nr).astype(np.float32)
    offsets = -(a.astype(np.int32) @ np.resize(np.array(isa.surplus, np.int32), k))
    arrays = (a, b, weights, offsets, scores)
    sizes = [n_heads, n_panels, steps, k, isa.kr_int8, *(array.nbytes for array in arrays)]
    want = scores.copy()
    for p in range(n_panels):
        dots = plain_dots(isa, a, b[p * isa.nr * k :][: isa.nr * k]) + offsets[:, None]
        of_panel = want[p * isa.nr : (p + 1) * isa.nr]
        for i in range(n_heads):
            of_panel += weights[i] * half_of(np.maximum(dots[i], 0).astype(np.float32))
    return np.array(sizes, np.int64).tobytes() + b"".join(x.tobytes() for x in arrays), want


@pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {missing_tools()}")
@pytest.mark.parametrize("name", CPUS)
def test_scores_are_exact(name, tmp_path):
    isa = ISAS[name].of_keys
    code = Target(TRIPLE, "generic")
    machine, module = code._compiled(lambda module: define_lightning(module, isa))
    (tmp_path / "scores.o").write_bytes(machine.emit_object(module))
    program = tmp_path / "driver"
    command = [COMPILER, "-O1", "-static", "-Wall", "-Werror", f"-DSCORES=mla_numba_scores_{name}", "-o", program]
    subprocess.run([*command, DRIVER, tmp_path / "scores.o"], check=True)
    cases = [
        make_case(isa, n_heads, n_panels, steps, seed=n_heads * 100 + n_panels * 10 + steps)
        for n_heads in range(1, 2 * isa.mr + 2)
        for n_panels in (1, 2, 3)
        for steps in (4, 8, 16)
    ]
    (tmp_path / "cases").write_bytes(b"".join(given for given, _ in cases))
    subprocess.run([QEMU, "-cpu", CPUS[name], program, tmp_path / "cases", tmp_path / "results"], check=True)
    got = np.fromfile(tmp_path / "results", np.float32)
    assert got.tobytes() == b"".join(want.tobytes() for _, want in cases)
