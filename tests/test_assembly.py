"""The loop over k of each microkernel, compiled for CPUs that may not be here."""

import re

import pytest
from port_limits import TARGETS, X86
from shared.inner_loops import loops_of

from mla_numba.kernels import ISAS
from mla_numba.kernels.isa import Isa
from mla_numba.kernels.micro.assembly import Target

# What multiplies int8 and bf16, and how many products one instruction makes.
MULTIPLY = {
    "avx512bf16": (("vpdpbusd", 64), ("vdpbf16ps", 32)),
    "avx512vnni": (("vpdpbusd", 64), ("vfmadd", 16)),
    "avx512": (("vpmaddwd", 32), ("vfmadd", 16)),
    "avxvnni": (("vpdpbusd", 32), ("vfmadd", 8)),
    "avx2": (("vpmaddwd", 16), ("vfmadd", 8)),
    "neoni8mm": (("smmla", 32), ("bfmlal", 4)),
    "neondot": (("sdot", 16), ("fmla", 4)),
    "neon": (("smull|smlsl", 8), ("fmla", 4)),
}
# Code that is tuned for a CPU is of its own features also on one that has more.
WITH_MORE = [
    (name, Target(X86, "znver5")) for name, targets in TARGETS.items() if ISAS[name].tune and X86 in targets[0]
]
CASES = [(isa, target) for isa, targets in TARGETS.items() for target in targets] + WITH_MORE
ONLY_WITH_AVX512 = re.compile(r"%zmm|%[xy]mm(?:1[6-9]|2\d|3[01])\b|%k[0-7]\b")


@pytest.fixture(scope="module", params=CASES, ids=[f"{isa}-{target.cpu}" for isa, target in CASES])
def compiled(request) -> tuple[Isa, list]:
    name, target = request.param
    return ISAS[name], list(loops_of(ISAS[name], target.assembly(ISAS[name])))


def test_every_instruction_set_is_looked_at():
    assert set(TARGETS) == set(MULTIPLY) == set(ISAS) - {"portable"}


def test_each_product_is_made_once(compiled):
    isa, loops = compiled
    for kernel, loop in loops:
        mnemonics, products = MULTIPLY[isa.name][not kernel.is_int8]
        made, wanted = sum(map(loop.count, mnemonics.split("|"))) * products, isa.mr * isa.nr * isa.kr(kernel)
        assert made >= wanted, "\n".join(loop.instructions)
        assert made % wanted == 0, "\n".join(loop.instructions)  # the compiler may unroll steps


def test_nothing_is_spilt(compiled):
    """Neither sums nor addresses."""
    for _, loop in compiled[1]:
        assert not loop.on_the_stack, "\n".join(loop.instructions)


def test_no_instruction_of_avx512_without_it(compiled):
    isa, loops = compiled
    used = [line for _, loop in loops for line in loop.instructions if ONLY_WITH_AVX512.search(line)]
    assert bool(used) == isa.name.startswith("avx512")
    assert not any(loop.count("vpdpwssd") for _, loop in loops)  # vpmaddwd and vpaddd in one, of VNNI


def test_vpdpbusd_is_encoded_as_of_avx_vnni(compiled):
    isa, ((_, int8), _) = compiled
    dots = [line for line in int8.instructions if "vpdpbusd" in line]
    assert bool(dots) == (isa.int8.multiply is ISAS["avxvnni"].int8.multiply)
    assert {line.startswith("{vex}") for line in dots} <= {isa.name == "avxvnni"}
