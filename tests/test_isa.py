"""Every instruction set gives the reference's bits, and Numba's target settings choose it."""

import json
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import SCRIPTS, run_python

from mla_numba.kernels import ISA, ISAS
from mla_numba.kernels.micro.assembly import Target
from mla_numba.kernels.micro.table import choose_isa
from tiling import machine

SCRIPT = str(SCRIPTS / "isa_script.py")
HASWELL_FEATURES = "+avx2,+fma,+bmi,+bmi2,+f16c,+popcnt,+avx,+sse4.2"
RUNS = {
    "haswell": ("avx2", "all modes", {"NUMBA_CPU_NAME": "haswell"}),
    "generic": ("portable", "all modes", {"NUMBA_CPU_NAME": "generic"}),
    "cascadelake": ("avx512vnni", "two modes", {"NUMBA_CPU_NAME": "cascadelake"}),
    "features": ("avx2", "one mode", {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": HASWELL_FEATURES}),
    "python": (ISA.name, "plain Python", {"NUMBA_DISABLE_JIT": "1"}),
    "python cann": (ISA.name, "plain Python, cann", {"NUMBA_DISABLE_JIT": "1"}),
    "python haswell": ("avx2", "plain Python", {"NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "haswell"}),
    "python generic": ("portable", "plain Python", {"NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "generic"}),
    "python cascadelake": ("avx512vnni", "plain Python", {"NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "cascadelake"}),
}
AVX2 = frozenset({"avx2", "fma", "avx", "sse2"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512dq"}
BF16 = AVX512 | {"avx512bf16"}


# A name asks for instructions, and one that this CPU lacks would end the process.
WITHIN = [name for name, (isa, *_) in RUNS.items() if list(ISAS).index(isa) >= list(ISAS).index(ISA.name)]


@pytest.fixture(scope="module")
def runs():
    """All runs that this machine can do, two at a time: most of their time they compile, on one core each."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(run_python, "-W", "error", SCRIPT, isa, scope, **environment)
            for name, (isa, scope, environment) in RUNS.items()
            if name in WITHIN
        }


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPU names are those of x86-64")
@pytest.mark.parametrize("name", RUNS)
def test_other_instruction_sets_are_exact(runs, name):
    if name not in WITHIN:
        pytest.skip(f"this CPU has no {RUNS[name][0]}, or Numba's settings do without it")
    runs[name].result()


@pytest.mark.parametrize(
    ("cpu_name", "features", "host", "expected"),
    [
        (None, None, AVX512, "avx512vnni"),
        ("host", None, AVX512, "avx512vnni"),
        (None, None, BF16, "avx512bf16"),
        (None, None, BF16 - {"avx512vnni"}, "avx2"),
        ("znver5", None, BF16, "avx512bf16"),
        ("sapphirerapids", None, AVX512, "avx512vnni"),
        ("cascadelake", None, BF16, "avx512vnni"),
        ("haswell", None, BF16, "avx2"),
        ("host", "-avx512bf16", frozenset(), "portable"),
        ("znver5", "-avx512bf16", BF16, "avx512vnni"),
        ("cascadelake", "+avx512bf16", BF16, "avx512bf16"),
        (None, None, AVX2, "avx2"),
        (None, None, frozenset({"sse2"}), "portable"),
        (None, None, frozenset(), "portable"),
        (None, None, AVX512 - {"avx512vnni"}, "avx2"),
        (None, None, AVX512 - {"avx512vl"}, "avx2"),
        (None, None, AVX2 - {"fma"}, "portable"),
        ("generic", None, AVX512, "portable"),
        ("haswell", None, AVX512, "avx2"),
        ("x86-64-v3", None, AVX512, "avx2"),
        ("skylake-avx512", None, AVX512, "avx2"),  # it has AVX-512 without VNNI
        ("cascadelake", None, AVX512, "avx512vnni"),
        ("znver4", None, AVX512, "avx512vnni"),
        ("x86-64", None, AVX512, "portable"),
        ("a name of tomorrow", None, AVX512, "portable"),
        # what the host lacks is never used, whatever the settings pretend
        ("cascadelake", None, AVX2, "avx2"),
        ("haswell", None, frozenset({"sse2"}), "portable"),
        (None, "+avx2,+fma,+avx512f,+avx512bw,+avx512vl,+avx512vnni", AVX2, "avx2"),
        # features alone are the whole list, beside a name they add to it and take from it
        (None, "+avx2,+fma", AVX512, "avx2"),
        (None, "", AVX512, "portable"),
        (None, "+sse2", AVX512, "portable"),
        ("host", "+avx2, +fma", AVX512, "avx2"),
        ("haswell", HASWELL_FEATURES, AVX512, "avx2"),
        ("haswell", "-fma", AVX512, "portable"),
        ("haswell", "+avx512f,+avx512bw,+avx512vl,+avx512vnni", AVX512, "avx512vnni"),
        ("cascadelake", "-avx512vnni", AVX512, "avx2"),
        ("generic", "+avx2,+fma", AVX512, "avx2"),
        (None, "+avx2,+fma,-fma", AVX512, "portable"),
    ],
)
def test_choice(cpu_name, features, host, expected):
    assert choose_isa(cpu_name, features, host) is ISAS[expected]


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_register_tiles(isa):
    assert ISAS[isa.name] is isa
    assert isa.nr == isa.vectors.n * isa.lanes
    assert min(isa.mr, isa.kr_bf16, isa.kr_int8) > 0


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_each_element_of_a_block_has_a_place_of_its_own(isa, is_int8):
    kr = isa.kr_int8 if is_int8 else isa.kr_bf16
    places = isa.places(is_int8)
    assert places.shape == (kr, isa.nr)
    assert sorted(places.reshape(-1)) == list(range(kr * isa.nr))


@pytest.mark.parametrize(
    ("isa", "triple", "cpu", "instructions"),
    [
        ("avx512bf16", "x86_64-unknown-linux-gnu", "znver4", ("vdpbf16ps", "vpdpbusd")),
        ("avx512vnni", "x86_64-unknown-linux-gnu", "cascadelake", ("vfmadd", "vpdpbusd")),
        ("avx2", "x86_64-unknown-linux-gnu", "haswell", ("vfmadd", "vpmaddwd")),
    ],
)
def test_code_for_another_cpu(isa, triple, cpu, instructions):
    assembly = Target(triple, cpu).assembly(ISAS[isa])
    assert all(instruction in assembly for instruction in instructions)


def test_plain_loops_have_no_vector_code():
    with pytest.raises(ValueError, match=r"^isa: expected an instruction set with vector code, got portable$"):
        Target("x86_64-unknown-linux-gnu", "x86-64").assembly(ISAS["portable"])


def test_facts_are_plain():
    assert json.loads(json.dumps(ISAS["avx2"].facts)) == {
        "name": "avx2", "lanes": 8, "mr": 6, "nr": 16, "kr_bf16": 2, "kr_int8": 2, "a_offset": 0, "a_int8_bytes": 2,
        "bf16_dot": False,
    }  # fmt: skip


def test_the_planner_knows_the_same_instruction_sets():
    assert tuple(ISAS) == machine.ISA_NAMES


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_the_planner_needs_the_same_features(isa):
    names = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}  # in Linux
    flags = {names.get(feature, feature) for feature in isa.features}
    weaker = list(ISAS.values())[list(ISAS).index(isa.name) + 1 :]
    own = isa.features.difference(*(other.features for other in weaker))
    assert machine.isa_of(flags) == isa.name
    assert all(machine.isa_of(flags - {names.get(feature, feature)}) != isa.name for feature in own)


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_names_of_cpus_choose_the_instruction_set(isa):
    assert all(choose_isa(name, None, BF16) is isa for name in isa.cpus)
