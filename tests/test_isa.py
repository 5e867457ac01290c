"""Every instruction set gives the reference's bits, and Numba's target settings choose it."""

import json
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import SCRIPTS, run_python
from helpers.targets import HASWELL_FEATURES, TARGETS
from llvmlite import binding as llvm

from mla_numba.kernels import CHOICE, ISA, ISAS
from mla_numba.kernels.micro import cpu_features, table
from mla_numba.kernels.micro.assembly import Target
from mla_numba.kernels.micro.cpu_features import host_features, named_features
from mla_numba.kernels.micro.table import Choice, choose_isa, target_features
from tiling import machine

SCRIPT = str(SCRIPTS / "isa_script.py")
RUNS = {
    "haswell and features": ("avx2", "all modes", TARGETS["avx2"]),
    "generic": ("portable", "all modes", TARGETS["portable"]),
    "cascadelake": ("avx512vnni", "all modes", TARGETS["avx512vnni"]),
    "python": (ISA.name, "plain Python", {"NUMBA_DISABLE_JIT": "1"}),
    "python cann": (ISA.name, "plain Python, cann", {"NUMBA_DISABLE_JIT": "1"}),
    "python haswell": ("avx2", "plain Python", {"NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "haswell"}),
    "python generic": ("portable", "plain Python", {"NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "generic"}),
    "python cascadelake": ("avx512vnni", "plain Python", {"NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "cascadelake"}),
    "python alderlake": ("avxvnni", "plain Python", {"NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "alderlake"}),
}
BY_CPU_NAME = {name for name, (*_, environment) in RUNS.items() if "NUMBA_CPU_NAME" in environment}
# By their own names those that no CPU's name stands for above, and one that is held back from what this CPU has.
_ALREADY = {"avx512vnni", "portable"} if platform.machine() == "x86_64" else set()
RUNS |= {f"named {isa}": (isa, "one mode", {"MLA_NUMBA_ISA": isa}) for isa in ISAS if isa not in {ISA.name, *_ALREADY}}
AVX2 = frozenset({"avx2", "fma", "avx", "sse2"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512dq"}
BF16 = AVX512 | {"avx512bf16"}


# A CPU's name asks for instructions, and one that this CPU lacks would end the process.
WITHIN = [
    name
    for name, (isa, *_) in RUNS.items()
    if isa in (ISA.name, *CHOICE.others) and (name not in BY_CPU_NAME or platform.machine() == "x86_64")
]


@pytest.fixture(scope="module")
def runs():
    """All runs that this machine can do, two at a time: most of their time they compile, on one core each."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(run_python, "-W", "error", SCRIPT, isa, scope, **environment)
            for name, (isa, scope, environment) in RUNS.items()
            if name in WITHIN
        }


@pytest.mark.parametrize("name", RUNS)
def test_other_instruction_sets_are_exact(runs, name):
    if name not in WITHIN:
        pytest.skip(f"this CPU has no {RUNS[name][0]}, or Numba's settings do without it, or its name is another one's")
    runs[name].result()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPU names are those of x86-64")
@pytest.mark.parametrize(
    ("cpu_name", "features", "host", "expected"),
    [
        (None, None, AVX512, "avx512vnni"),
        ("host", None, AVX512, "avx512vnni"),
        (None, None, BF16, "avx512bf16"),
        (None, None, BF16 - {"avx512vnni"}, "avx512"),
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
        (None, None, AVX512 - {"avx512vnni"}, "avx512"),
        (None, None, AVX2 | {"avxvnni"}, "avxvnni"),
        (None, None, AVX512 - {"avx512vnni"} | {"avxvnni"}, "avx512"),
        (None, None, AVX512 - {"avx512vl"} | {"avxvnni"}, "avxvnni"),
        (None, None, AVX512 - {"avx512vl"}, "avx2"),
        (None, None, AVX2 - {"fma"}, "portable"),
        ("generic", None, AVX512, "portable"),
        ("haswell", None, AVX512, "avx2"),
        ("x86-64-v3", None, AVX512, "avx2"),
        ("skylake-avx512", None, AVX512, "avx512"),
        ("x86-64-v4", None, BF16, "avx512"),
        ("alderlake", None, BF16, "avx2"),
        ("alderlake", None, BF16 | {"avxvnni"}, "avxvnni"),
        ("sierraforest", None, AVX2 | {"avxvnni"}, "avxvnni"),
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
        ("cascadelake", "-avx512vnni", AVX512, "avx512"),
        ("generic", "+avx2,+fma", AVX512, "avx2"),
        (None, "+avx2,+fma,-fma", AVX512, "portable"),
        # what a feature implies goes and comes with it
        (None, "+avx2,-avx", AVX512, "portable"),
        ("znver5", "-avx2", BF16, "portable"),
        ("haswell", "+avx512bf16,+avx512vnni,+avx512vl", BF16, "avx512bf16"),
    ],
)
def test_choice(cpu_name, features, host, expected):
    assert choose_isa("", {}, target_features(cpu_name, features, host)).isa is ISAS[expected]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the features are those of x86-64")
def test_no_choice_beyond_numbas_switch_of_avx():
    assert not {name for name in target_features(None, None, BF16, avx=False) if name.startswith("avx")}


def test_a_name_chooses_among_those_that_can_run():
    """`MLA_NUMBA_ISA`: any that the target has, whatever is best, and no other."""
    for isa in ISAS.values():
        choice = choose_isa(isa.name, {}, isa.features)
        assert (choice.isa, choice.reason) == (isa, f"MLA_NUMBA_ISA={isa.name}")
        assert isa.name not in choice.others
        assert all(ISAS[name].features <= isa.features for name in choice.others)
    within = {"NUMBA_CPU_NAME": "haswell"}
    assert choose_isa("portable", within, AVX2).isa is ISAS["portable"]
    with pytest.raises(ValueError, match=f"MLA_NUMBA_ISA: expected one of {', '.join(ISAS)}, got 'avx9'"):
        choose_isa("avx9", {}, BF16)
    with pytest.raises(
        ValueError, match=r"an instruction set that this CPU has \(portable\), got avx2, which needs fma$"
    ):
        choose_isa("avx2", {}, frozenset({"avx2"}))
    with pytest.raises(ValueError, match=r"that NUMBA_CPU_NAME=haswell has \(avx2, portable\), got avx512bf16, which"):
        choose_isa("avx512bf16", within, AVX2)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (Choice(ISAS["avx2"], "", AVX2, named=False), "the most capable that this CPU has"),
        (
            Choice(ISAS["avx2"], "NUMBA_CPU_NAME=haswell", AVX2, named=False),
            "the most capable that NUMBA_CPU_NAME=haswell has",
        ),
        (Choice(ISAS["portable"], "", frozenset(), named=False), "none of the others is in this CPU"),
    ],
)
def test_reasons(choice, reason):
    assert choice.reason == reason


@pytest.mark.parametrize(
    ("choice", "n_said"),
    [
        (Choice(ISAS["portable"], "", frozenset(), named=False), 1),
        (Choice(ISAS["portable"], "", frozenset(), named=True), 0),
        (Choice(ISAS["portable"], "NUMBA_CPU_NAME=generic", frozenset(), named=False), 0),
        (Choice(ISAS["avx2"], "", AVX2, named=False), 0),
    ],
)
def test_it_is_said_once_that_no_vector_kernels_fit(choice, n_said, monkeypatch, caplog):
    monkeypatch.setattr(table, "CHOICE", choice)
    monkeypatch.setattr(table, "ISA", choice.isa)
    table.say_if_none_fits.cache_clear()
    table.say_if_none_fits()
    table.say_if_none_fits()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * n_said
    assert all("portable kernels run" in record.message for record in caplog.records)


def test_the_choice_of_this_process():
    assert CHOICE.isa is ISA
    assert CHOICE.features <= host_features()
    assert not CHOICE.lacking(ISA)


@pytest.mark.skipif("avx2" not in CHOICE.others, reason="nothing is held back where no other has more")
def test_vector_code_keeps_to_its_instruction_set():
    """LLVM would use the 32 registers of AVX-512 in the kernels of AVX2 too, and VNNI for two of their instructions."""
    probe = (
        "from numba.core.compiler_lock import global_compiler_lock as lock\n"
        "from numba.core.registry import cpu_target\n"
        "from mla_numba.kernels.micro.library import MICROKERNELS\n"
        "with lock: print(MICROKERNELS.build(cpu_target.target_context.codegen()).get_asm_str())"
    )
    assembly = run_python("-c", probe, MLA_NUMBA_ISA="avx2")
    assert re.search(r"vfmadd.*ymm", assembly)
    assert re.findall(r"zmm|[xy]mm(?:1[6-9]|[23]\d)|\bk[0-7]\b|vpdp", assembly) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({16: 1 << 1}, {"neon"}),
        ({16: 1 << 1 | 1 << 20}, {"neon", "dotprod"}),
        ({16: 1 << 1 | 1 << 20, 26: 1 << 13 | 1 << 14 | 1 << 30}, {"neon", "dotprod", "i8mm", "bf16"}),
    ],
)
def test_linux_says_what_an_aarch64_cpu_has(monkeypatch, words, expected):
    """Whatever LLVM takes the CPU for: in an emulator it may know nothing but its kind."""
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpu_features.sys, "platform", "linux")
    monkeypatch.setattr(cpu_features, "_auxiliary", lambda word: words.get(word, 0))
    of_arm = {"neon", "dotprod", "i8mm", "bf16"}
    assert host_features() & of_arm == expected
    monkeypatch.setattr(cpu_features.llvm, "get_host_cpu_features", lambda: dict.fromkeys(of_arm, True))
    assert host_features() == expected
    for word, bits in (("armv7l", sys.maxsize), ("aarch64", 2**31 - 1)):  # processes of 32 bits
        monkeypatch.setattr(cpu_features.platform, "machine", lambda word=word: word)
        monkeypatch.setattr(cpu_features.sys, "maxsize", bits)
        assert host_features() == frozenset()


ARM = ("neon", "dotprod", "i8mm")


@pytest.mark.parametrize(
    ("triple", "cpu_name", "features", "wanted", "expected"),
    [
        ("x86_64-unknown-linux-gnu", "alderlake", "", ("avx2", "avxvnni", "avx512f"), {"avx2", "avxvnni"}),
        ("x86_64-unknown-linux-gnu", "skylake-avx512", "", AVX512, AVX512 - {"avx512vnni"}),
        ("x86_64-unknown-linux-gnu", "generic", "+avx512f", ("avx2", "avx512f", "avx512bw"), {"avx2", "avx512f"}),
        ("aarch64-unknown-linux-gnu", "generic", "", ARM, {"neon"}),
        ("aarch64-unknown-linux-gnu", "generic", "+dotprod", ARM, {"neon", "dotprod"}),
        ("aarch64-unknown-linux-gnu", "neoverse-n1", "", ARM, {"neon", "dotprod"}),
        ("aarch64-unknown-linux-gnu", "neoverse-v1", "", ARM, {*ARM}),
        ("aarch64-unknown-linux-gnu", "neoverse-v1", "-i8mm", ARM, {"neon", "dotprod"}),
        ("arm64-apple-darwin", "apple-m1", "", ARM, {"neon", "dotprod"}),
        ("arm64-apple-darwin", "apple-m2", "", (), set()),
    ],
)
def test_features_of_a_name(triple, cpu_name, features, wanted, expected):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    assert named_features(cpu_name, features, wanted, triple) == expected


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
        ("neoni8mm", "aarch64-unknown-linux-gnu", "neoverse-v2", ("bfmlalb", "bfmlalt", "smmla")),
        ("neondot", "arm64-apple-darwin", "apple-m1", ("fmla", "sdot")),
        ("neon", "aarch64-unknown-linux-gnu", "cortex-a72", ("fmla", "smull2", "sadalp")),
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
        "name": "avx2", "lanes": 8, "mr": 6, "nr": 16, "kr_bf16": 2, "kr_int8": 4, "a_offset": 0, "a_int8_bytes": 2,
        "bf16_dot": False, "tune": "znver3",
    }  # fmt: skip


def test_the_planner_knows_the_same_instruction_sets():
    assert tuple(ISAS) == machine.ISA_NAMES


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_the_planner_needs_the_same_features(isa):
    in_linux = {
        "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avxvnni": "avx_vnni", "neon": "asimd",
        "dotprod": "asimddp",
    }  # fmt: skip
    flags = machine.CPU_FLAGS[isa.name]
    assert {in_linux.get(feature, feature) for feature in isa.features} == flags
    assert machine.isa_of(flags) == isa.name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPU names are those of x86-64")
@pytest.mark.parametrize(
    ("expected", "names"),
    [
        ("avx512bf16", ("cooperlake", "sapphirerapids", "emeraldrapids", "graniterapids", "znver4", "znver5")),
        ("avx512vnni", ("cascadelake", "icelake-server", "icelake-client", "rocketlake", "tigerlake")),
        ("avx2", ("haswell", "broadwell", "skylake", "znver1", "znver2", "znver3", "x86-64-v3")),
        ("portable", ("generic", "x86-64", "x86-64-v2", "nehalem", "sandybridge", "ivybridge", "btver2")),
    ],
)
def test_names_of_cpus_choose_the_instruction_set(expected, names):
    for name in names:
        assert choose_isa("", {}, target_features(name, None, BF16)).isa is ISAS[expected], name
