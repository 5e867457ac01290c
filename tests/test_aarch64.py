"""The microkernels of AArch64, in a CPU that QEMU emulates, against what they are to compute."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import product

import ml_dtypes
import numpy as np
import platformdirs
import pytest
from helpers import SCRIPTS
from helpers.aarch64 import QEMU, TRIPLE, Case, Program, missing_tools, tile_functions

from mla_numba.kernels import ISAS, peaks
from mla_numba.kernels.isa import Isa
from mla_numba.kernels.llvm_ir import F32, I32, IN_L1, IN_L2, ONCE
from mla_numba.kernels.micro.assembly import Target
from mla_numba.kernels.micro.epilogue import store_tile
from mla_numba.kernels.micro.operands import A, B, C, Y
from mla_numba.kernels.micro.plain import add_products

BF16 = ml_dtypes.bfloat16
# What each needs, and no CPU that has more: an instruction of another would end the process.
CPUS = {"neon": "cortex-a72", "neondot": "neoverse-n1", "neoni8mm": "max"}
LOCALITIES = (ONCE, IN_L2, IN_L1)
needs_qemu = pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {missing_tools()}")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The program of an instruction set, made once."""
    return cache(lambda isa: Program.build(ISAS[isa], tmp_path_factory.mktemp(isa)))


def bf16(rng, n, kind):
    if kind == "tiny":  # sums are subnormal, and products, which float32 still holds exactly
        return (rng.uniform(1, 2, n) * rng.choice([-1, 1], n) * 2.0**-66).astype(BF16)
    return (rng.standard_normal(n) * (2.0**62 if kind == "huge" else 1)).astype(BF16)


class Values:
    """Operands of one kind: of bf16 weights or int8 ones, what A and B hold, and sums to go on from."""

    def __init__(self, isa: Isa, is_int8: bool, kind: str, seed: int) -> None:
        self.isa, self.is_int8, self.kind, self.rng = isa, is_int8, kind, np.random.default_rng(seed)

    def a(self, mr, lda):
        n = (mr - 1) * lda[0] + lda[1]
        if self.is_int8:
            codes = self.rng.integers(-128, 128, n)
            if self.kind == "extreme":
                codes = self.rng.choice([-128, -127, 127], n)
            return codes.astype(np.int8)
        values = bf16(self.rng, n, self.kind)
        if self.kind == "special":
            values[:: 3 * lda[0] + 1] = np.inf
            values[5 :: 7 * lda[0]] = np.nan
        return values.view(np.uint16) if self.isa.bf16_dot else values.astype(np.float32)

    def b(self, k, panels):
        n = k * self.isa.nr * panels
        if self.is_int8:
            codes = self.rng.integers(-128, 128, n) if self.kind == "random" else self.rng.choice([-128, 127], n)
            return codes.astype(np.int8)
        values = bf16(self.rng, n, self.kind)
        if self.kind == "special":
            values[3::97] = -np.inf
        return values.view(np.uint16)

    def c(self, mr, panels):
        n = mr * self.isa.nr * panels
        if self.is_int8:
            return self.rng.integers(-(2**31), 2**31, n).astype(np.int32)
        values = self.rng.standard_normal(n).astype(np.float32) * (2.0**-132 if self.kind == "tiny" else 1)
        if self.kind == "special":
            values[:3] = (np.nan, np.inf, -np.inf)
        return values.astype(np.float32)


def cases_of(isa):
    """Every function, row count, edge of k, carry and kind of store, of every kind of values."""
    seed = 0
    for name, tile in tile_functions(isa).items():
        kernel = tile.kernel
        kinds = ("random", "extreme") if kernel.is_int8 else ("random", "tiny", "huge", "special")
        kr = isa.kr(kernel)
        for mr, n_steps, kind, (carry, stores) in product(
            range(1, tile.most_rows + 1),
            (1, 2, 3, 17),
            kinds,
            ((False, False), (True, False), (False, True), (True, True)),
        ):
            if n_steps in (2, 3) and kind not in kinds[:2]:
                continue
            seed += 1
            yield make_case(name, Values(isa, kernel.is_int8, kind, seed), mr, n_steps * kr, carry, stores)


def make_case(name, values, mr, k, carry, stores):
    isa, rng = values.isa, values.rng
    tile = tile_functions(isa)[name]
    kernel, nr = tile.kernel, isa.nr * tile.panels
    lda, ldy = k + 4 * (mr % 3), nr + 5 * (mr % 2)
    a = values.a(mr, (lda, k))
    y_dtype = np.float32 if tile.store == F32 else np.uint16
    y = np.full((mr - 1) * ldy + nr if stores else 0, 77, y_dtype)
    row_scale, col_scale = (rng.uniform(0.001, 1, n).astype(np.float32) for n in (mr, nr))
    if values.kind == "extreme":
        row_scale[0], col_scale[:4] = 1e-38, (1e-30, 0, 1e38, -1)
    b = values.b(k, tile.panels)
    arrays = {
        "a": a, "b": b, "c": values.c(mr, tile.panels), "y": y, "row_scale": row_scale, "col_scale": col_scale,
        "offset": rng.integers(-(2**20), 2**20, nr).astype(np.int32),
    }  # fmt: skip
    return Case(
        name, mr, k // isa.kr(kernel), lda * a.itemsize, isa.a_bytes(kernel), carry, LOCALITIES[mr % 3],
        ldy * y.itemsize if stores else -1, b.nbytes // tile.panels, mr * isa.nr * 4, arrays,
    )  # fmt: skip


def expected(isa, case):
    """What the case is to leave in c, or in y."""
    tile = tile_functions(isa)[case.function]
    arrays = case.arrays
    k, nr, zero = case.steps * isa.kr(tile.kernel), isa.nr, 0
    c, y, step = arrays["c"].copy(), arrays["y"].copy(), case.ldy // arrays["y"].itemsize
    a = A(arrays["a"], zero, case.lda // arrays["a"].itemsize)
    with np.errstate(all="ignore"):
        for panel in range(tile.panels):
            sums = panel * case.mr * nr
            b = B(arrays["b"], panel * k * nr, zero, zero, zero)
            add_products(isa, case.mr, k, a, b, C(c, sums, case.carry))
            for i in range(case.mr if case.ldy >= 0 else 0):
                rest = (step, arrays["row_scale"], i, arrays["col_scale"], arrays["offset"], panel * nr)
                row = c[sums + i * nr : sums + (i + 1) * nr]
                store_tile(1, nr, C(row, zero, False), Y(y, i * step + panel * nr, *rest))
    return c if case.ldy < 0 else y


def same(got, want):
    """Bit for bit; of a number that is none only that it is none, since CPUs give it signs of their own."""
    if got.dtype == np.uint16:
        got, want = got.view(BF16), want.view(BF16)
    if got.dtype != np.int32:
        nan = np.isnan(want)
        if not np.isnan(got[nan]).all():
            return False
        got, want = got[~nan], want[~nan]
    return got.tobytes() == want.tobytes()


@needs_qemu
@pytest.mark.parametrize("name", CPUS)
def test_microkernels_equal_their_oracle(programs, name):
    isa = ISAS[name]
    cases = list(cases_of(isa))
    for case, (c, y) in zip(cases, programs(name).run(cases, CPUS[name]), strict=True):
        want = expected(isa, case)
        got = c if case.ldy < 0 else y
        assert same(got, want), (case.function, case.mr, case.steps, case.carry, got, want)


@needs_qemu
@pytest.mark.parametrize(("isa", "cpu"), [("neondot", "cortex-a72"), ("neoni8mm", "neoverse-n1")])
def test_an_older_cpu_lacks_the_instructions(programs, isa, cpu):
    """So the CPUs of the other tests prove that nothing newer is used."""
    (name, *_) = (name for name, tile in tile_functions(ISAS[isa]).items() if tile.kernel.is_int8)
    values = Values(ISAS[isa], True, "random", 0)
    case = make_case(name, values, 1, ISAS[isa].kr_int8, False, False)
    with pytest.raises(AssertionError, match=r"exit code -4\b"):  # SIGILL
        programs(isa).run([case], cpu)


def test_two_products_of_codes_fit_int16():
    """As the microkernel of plain NEON adds them, for all codes; without the complement they would not."""
    codes = np.arange(-128, 128)
    products, complemented = (a[:, None] * codes for a in (codes, ~codes))
    assert (products.min() - complemented.max(), products.max() - complemented.min()) == (-32640, 32640)
    assert 2 * products.max() == 2**15


# Of a step of the largest tile: what multiplies, how often, and which other vector instructions there may be.
STEPS = {
    ("neon", "bf16"): (r"fmla\tv\d+\.4s, v\d+\.4s, v\d+\.s\[", 48, {"shll": 3, "shll2": 3}),
    ("neon", "int8"): ("sm(?:ul|ls)l2?", 48, {"sadalp": 24, "dup": 16, "mvn": 8}),
    ("neondot", "bf16"): (r"fmla\tv\d+\.4s, v\d+\.4s, v\d+\.s\[", 48, {"shll": 2, "shll2": 2}),
    ("neondot", "int8"): (r"sdot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[", 48, {}),
    ("neoni8mm", "bf16"): (r"bfmlal[tb]\tv\d+\.4s, v\d+\.8h, v\d+\.h\[", 48, {}),
    ("neoni8mm", "int8"): ("smmla", 24, {"mov": 3}),
}


@pytest.fixture(scope="module")
def assembly():
    """As for a CPU in whose own order of instructions sums would be stored and loaded in the loop."""
    return {isa: Target(TRIPLE, "neoverse-n1").assembly(ISAS[isa]) for isa in CPUS}


@pytest.mark.parametrize(("isa", "kind"), STEPS)
def test_the_loop_over_k_multiplies_and_does_little_else(assembly, isa, kind):
    """Which it does whatever CPU LLVM compiles for: `Isa.tune` says in which order."""
    multiply, n_multiply, others = STEPS[isa, kind]
    for store in ("i16",) if ISAS[isa].bf16_dot else ("i16", "float"):
        loop = inner_loop(assembly[isa], f"mla_numba_ukernel_{kind}_{isa}_{store}_{ISAS[isa].mr}", multiply)
        vector = [line for line in loop if re.search(r"\bv\d+\.", line)]
        assert sum(bool(re.match(multiply, line)) for line in loop) == n_multiply, "\n".join(loop)
        assert Counter(line.split()[0] for line in vector if not re.match(multiply, line)) <= Counter(others)
        assert not [line for line in loop if "[sp" in line], "\n".join(loop)  # all sums stay in registers


@pytest.mark.parametrize(("isa", "kind"), [*STEPS, ("neoni8mm", "fma")])
def test_probes_multiply_and_do_little_else(monkeypatch, isa, kind):
    """So that no microkernel beats them."""
    for name, value in (("ISA", ISAS[isa]), ("LANES", 4), ("CHAINS", 24)):
        monkeypatch.setattr(peaks, name, value)
    element, step = {
        "fma": (F32, peaks._step_fma),
        "bf16": (F32, peaks._step_bf16 if ISAS[isa].bf16_dot else peaks._step_fma),
        "int8": (I32, peaks._step_dot),
    }[kind]

    def define(module):
        peaks._chain_function(module, "probe", element, step).linkage = ""

    multiply, times = {"neoni8mm bf16": ("bfmlal[tb]", 2), "neoni8mm int8": ("smmla", 1), "neondot int8": ("sdot", 1),
                       "neon int8": ("sm(?:ul|ls)l2?|sadalp", 3)}.get(f"{isa} {kind}", ("fmla", 1))  # fmt: skip
    loop = inner_loop("\n" + Target(TRIPLE, "generic").assembly_of(define), f"mla_numba_probe_{isa}", multiply)
    assert sum(bool(re.match(multiply, line)) for line in loop) == 24 * times, "\n".join(loop)
    assert len(loop) <= 24 * times + 3, "\n".join(loop)  # it counts steps, and goes on


def inner_loop(assembly, function, multiply):
    """The instructions from the first to the last of the loop that multiplies, what a prefetch branches to included."""
    body = assembly.partition(f"\n{function}:")[2].partition(".Lfunc_end")[0]
    lines = [line.strip() for line in body.splitlines()]
    labels = {line.partition(":")[0]: i for i, line in enumerate(lines) if re.match(r"\.\w+:", line)}
    at = next(i for i, line in enumerate(lines) if re.match(multiply, line))
    targets = [(labels.get(line.split()[-1], len(lines)), i) for i, line in enumerate(lines) if line]
    around = [(first, last) for first, last in targets if first <= at <= last]
    first, last = min(first for first, _ in around), max(last for _, last in around)
    return [line for line in lines[first : last + 1] if line and not line.startswith((".", "//"))]


@pytest.fixture(scope="module")
def system():
    """Where Python for AArch64 and its kernels are kept from one run to the next; some 600 MB."""
    missing = [tool for tool in ("apt-get", "dpkg-deb", QEMU) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return platformdirs.user_cache_path("mla_numba") / "aarch64"


@pytest.mark.nightly
@pytest.mark.parametrize("isa", CPUS)
def test_whole_calls_are_exact(system, isa):
    """Numba itself runs in the emulated CPU, and compiles there."""
    command = [sys.executable, SCRIPTS / "aarch64_python.py", "--cpu", CPUS[isa], system]
    subprocess.run([*command, SCRIPTS / "isa_script.py", isa, "two modes"], check=True)
