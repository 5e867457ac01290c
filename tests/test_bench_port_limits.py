"""The bench that asks llvm-mca: it finds the loop, knows the ports, and prints its tables."""

import subprocess
import sys

import port_limits
import pytest
from click.testing import CliRunner
from helpers import ROOT
from port_limits import ARM, X86, Row, main, markdown
from shared.inner_loops import InnerLoop, inner_loop
from shared.llvm_mca import Prediction, find_llvm_mca, predict
from shared.table_faults import put_right

from mla_numba.kernels.micro.assembly import Target

LLVM_MCA = find_llvm_mca()
NEEDS_LLVM_MCA = pytest.mark.skipif(LLVM_MCA is None, reason="needs llvm-mca")

X86_LOOP = """
other:
.LBB0_1:
\tvfmadd231ps\t%ymm1, %ymm2, %ymm3
\tvfmadd231ps\t%ymm1, %ymm2, %ymm4
\tjmp\t.LBB0_1
.Lfunc_end0:
found:
\tpushq\t%rbp
.LBB1_1:                                # %loop
\ttestq\t%rax, %rax
\tje\t.LBB1_3
\tprefetcht0\t(%r9)
\tjmp\t.LBB1_4
.LBB1_3:                                # %once
\tprefetchnta\t(%r9)
.LBB1_4:
\tvbroadcastss\t(%rsi,%rdx), %ymm2        ## a row
\tvfmadd231ps\t%ymm1, %ymm2, %ymm3
\t{vex}\tvpdpbusd\t%ymm1, %ymm2, %ymm5
\tmovq\t-8(%rbp,%rsp), %rdx
\tdecq\t%rdi
\tjne\t.LBB1_1
\tvpaddd\t%ymm1, %ymm2, %ymm3
\tvpaddd\t%ymm1, %ymm2, %ymm4
\tvpaddd\t%ymm1, %ymm2, %ymm5
\tretq
.Lfunc_end1:
"""
ARM_LOOP = """
found:
.LBB0_1:                                // %loop
\tldr\tq2, [x1], #16
\tfmla\tv0.4s, v1.4s, v2.s[0]
\tstr\tx3, [sp, #8]                      // 8-byte Folded Spill
\tsubs\tx0, x0, #1
\tb.ne\t.LBB0_1
\tret
.Lfunc_end0:
"""


def test_the_loop_is_found_and_what_it_does():
    loop = inner_loop(X86_LOOP, "found")
    assert loop.instructions == (
        "vbroadcastss (%rsi,%rdx), %ymm2",
        "vfmadd231ps %ymm1, %ymm2, %ymm3",
        "{vex} vpdpbusd %ymm1, %ymm2, %ymm5",
        "movq -8(%rbp,%rsp), %rdx",
        "decq %rdi",
        "testq %rax, %rax",
        "prefetcht0 (%r9)",
    )
    assert loop.multiplies == loop.instructions[1:3]
    assert loop.on_the_stack == ("movq -8(%rbp,%rsp), %rdx",)
    assert (loop.count("vfmadd"), loop.count("vpdpbusd"), loop.count("vpaddd")) == (1, 1, 0)


def test_the_loop_of_aarch64_is_found():
    loop = inner_loop(ARM_LOOP, "found")
    assert loop.instructions[0] == "ldr q2, [x1], #16"
    assert loop.instructions[-1] == "subs x0, x0, #1"
    assert loop.multiplies == ("fmla v0.4s, v1.4s, v2.s[0]",)
    assert loop.on_the_stack == ("str x3, [sp, #8]",)


def test_functions_without_a_loop_are_refused():
    with pytest.raises(ValueError, match=r"^function: expected one of the assembly, got none$"):
        inner_loop(X86_LOOP, "none")
    with pytest.raises(ValueError, match=r"^function: expected one with a loop that multiplies, got found$"):
        inner_loop(X86_LOOP.replace("\tjne\t.LBB1_1\n", ""), "found")


@NEEDS_LLVM_MCA
@pytest.mark.parametrize(
    ("cpu", "lines", "limit"),
    [
        # two ports multiply and add
        ("haswell", [f"vfmadd231ps %ymm14, %ymm15, %ymm{i}" for i in range(12)], 6),
        # one port multiplies words, two others add
        ("haswell", ["vpmaddwd %ymm14, %ymm15, %ymm13", "vpaddd %ymm13, %ymm0, %ymm0"] * 6, 6),
        # memory is read elsewhere
        ("haswell", [f"vfmadd231ps 64(%rsi), %ymm15, %ymm{i}" for i in range(12)], 6),
    ],
)
def test_the_limit_of_ports(cpu, lines, limit):
    target = Target(X86, cpu)
    assert predict(LLVM_MCA, target, InnerLoop(tuple(lines))).limit == pytest.approx(limit, rel=0.01)


@NEEDS_LLVM_MCA
def test_cycles_are_of_one_turn():
    target = Target(X86, "haswell")
    one_chain = InnerLoop(("vfmadd231ps %ymm14, %ymm15, %ymm0",))
    prediction = predict(LLVM_MCA, target, one_chain)
    assert prediction.cycles == pytest.approx(5, abs=0.1)  # its latency
    assert prediction.share == pytest.approx(0.1, abs=0.01)


@NEEDS_LLVM_MCA
def test_what_llvm_mca_does_not_know_is_said():
    with pytest.raises(RuntimeError, match=r"^llvm-mca: .*invalid"):
        predict(LLVM_MCA, Target(X86, "haswell"), InnerLoop(("no_such_instruction %ymm1",)))


@NEEDS_LLVM_MCA
def test_the_command_prints_a_row_a_microkernel():
    script = str(ROOT / "bench" / "port_limits.py")
    arguments = ["--isa", "avxvnni", "--cpu", "alderlake", "--loops"]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "{vex} vpdpbusd" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| avxvnni")]
    assert ["12 vpdpbusd" in rows[0], "24 vfmadd231ps" in rows[1]] == [True, True]
    for row in rows:
        cycles, limit = (float(cell) for cell in row.split("|")[6:8])
        assert cycles >= limit > 0


@NEEDS_LLVM_MCA
@pytest.mark.parametrize(
    ("cpu", "lines", "limit"),
    [
        # one port multiplies words; what widens the other operand has another one, and loads have theirs
        ("haswell", ["vpmaddwd %ymm14, %ymm15, %ymm13", "vpmovsxbw (%rsi), %ymm14"] * 6, 6),
        # two ports multiply and add; one of them shifts words too, and nothing else does
        (
            "haswell",
            [*(f"vfmadd231ps %ymm14, %ymm15, %ymm{i}" for i in range(12)), *["vpslld $16, %ymm12, %ymm13"] * 2],
            7,
        ),
        ("haswell", [f"vfmadd231ps %ymm14, %ymm15, %ymm{i}" for i in range(6)] + ["vpslld $16, %ymm12, %ymm13"] * 8, 8),
        # counting and prefetching takes no port of vectors that they could not leave to them
        ("haswell", ["vfmadd231ps %ymm14, %ymm15, %ymm0", "prefetcht0 (%rsi)", "decq %rdi"] * 8, 4),
    ],
)
def test_the_limit_of_all_vector_instructions(cpu, lines, limit):
    prediction = predict(LLVM_MCA, Target(X86, cpu), InnerLoop(tuple(lines)))
    assert prediction.limit_of_all == pytest.approx(limit, rel=0.01)
    assert prediction.limit_of_all >= prediction.limit


def test_the_tables_are_put_right():
    lines = (
        "vpbroadcastd 4(%rsi,%rdx,2), %zmm26", "vbroadcastss (%rsi), %ymm5", "vmovdqu64 -64(%r8), %zmm25",
        "vpaddd %zmm1, %zmm2, %zmm3", "vpaddd %ymm1, %ymm2, %ymm3", "vpbroadcastd %eax, %zmm1",
        "vpmovsxbw -16(%r8,%rdx), %ymm12", "vpmovsxbw %xmm3, %ymm12",
    )  # fmt: skip
    widened = ("vpshufd $0, -16(%r8,%rdx), %ymm12", lines[-1])
    loads = ("vmovups 4(%rsi,%rdx,2), %ymm26", "vmovups (%rsi), %ymm5")
    whole = ("vmovups -64(%r8), %ymm25", "vpandq %zmm1, %zmm2, %zmm3")
    assert put_right("skylake-avx512", lines) == loads + whole + lines[4:]
    assert put_right("znver4", lines) == loads + lines[2:-2] + widened
    assert put_right("sapphirerapids", lines) == lines


@NEEDS_LLVM_MCA
def test_with_tables_put_right_a_broadcast_is_a_load():
    """8 products and 8 sums, 4 cycles of four ports. By the table as it is, 8 broadcasts take two of these as well."""
    products = [f"vpmaddwd %ymm14, %ymm15, %ymm{i}" for i in range(8)] + [
        f"vpaddd %ymm14, %ymm15, %ymm{i}" for i in range(8)
    ]
    loop = InnerLoop((*products, *(f"vpbroadcastd {4 * i}(%rsi), %ymm{8 + i % 4}" for i in range(8))))
    target = Target(X86, "znver3")
    as_it_is, right = predict(LLVM_MCA, target, loop), predict(LLVM_MCA, target, loop, tables_right=True)
    assert as_it_is.limit == right.limit == pytest.approx(4, rel=0.01)
    assert (as_it_is.limit_of_all, right.limit_of_all) == pytest.approx((6, 4), rel=0.01)
    assert as_it_is.cycles > 5.5 > right.cycles


@NEEDS_LLVM_MCA
def test_with_tables_put_right_a_sign_extension_takes_a_port_once():
    """4 products, 4 sums and 4 operands, 3 cycles of four ports. By the table as it is, the operands take 6 of two."""
    products = [f"vpmaddwd %ymm14, %ymm15, %ymm{i}" for i in range(4)] + [
        f"vpaddd %ymm14, %ymm15, %ymm{i}" for i in range(4)
    ]
    loop = InnerLoop((*products, *(f"vpmovsxbw {16 * i}(%rsi), %ymm{8 + i}" for i in range(4))))
    target = Target(X86, "znver3")
    limits = [predict(LLVM_MCA, target, loop, tables_right=right).limit_of_all for right in (False, True)]
    assert limits == pytest.approx([6, 3], rel=0.01)


@NEEDS_LLVM_MCA
def test_with_tables_put_right_additions_of_512_bits_have_two_ports():
    loop = InnerLoop(tuple(f"vpaddd %zmm30, %zmm31, %zmm{i}" for i in range(12)))
    target = Target(X86, "skylake-avx512")
    limits = [predict(LLVM_MCA, target, loop, tables_right=right).limit for right in (False, True)]
    assert limits == pytest.approx([4, 6], rel=0.01)


def row(isa, product, cpu, cycles):
    loop = InnerLoop(("{vex} vpdpbusd %ymm1, %ymm2, %ymm5",))
    return Row(isa, product, "6 x 16", cpu, loop, Prediction(cycles, 6, 7), Prediction(cycles - 2, 3, 4))


def test_the_table_for_the_documentation():
    rows = [row("a", "int8", "x", 6), row("a", "int8", "y", 8), row("b", "int8", "x", 12)]
    assert markdown(rows, {("a", "int8"): 0.987, ("b", "int8"): 1.02}).splitlines() == [
        "| instruction set | tile | product | by | measured here "
        "| predicted | tables put right | of all instructions |",
        "|---|---|---|---|---|---|---|---|",
        "| a | 6 x 16 | int8 | vpdpbusd | 99% | 100% (x), 75% (y) | 75% (x), 50% (y) | 100% (x), 67% (y) |",
        "| b | 6 x 16 | int8 | vpdpbusd | 100% | 50% (x) | 30% (x) | 40% (x) |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure"], "--measure: expected with --markdown"),
        (["--isa", "avx2", "--cpu", "znver4"], "--isa, --cpu: expected a CPU that has the instruction set, got none"),
    ],
)
def test_what_the_command_refuses(arguments, message):
    done = CliRunner().invoke(main, ["--llvm-mca", "llvm-mca", *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_llvm_mca_is_needed(monkeypatch):
    monkeypatch.setattr("shared.llvm_mca.shutil.which", lambda _name: None)
    assert find_llvm_mca() is None
    option = next(o for o in main.params if o.name == "llvm_mca")
    monkeypatch.setattr(option, "default", None)
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 2
    assert "--llvm-mca: expected one on the path, got none" in done.output


def test_measured_is_what_this_cpu_can_run(monkeypatch):
    asked = []

    def run(arguments, env, **_):
        asked.append(env["MLA_NUMBA_ISA"])
        tile = port_limits.ISAS[asked[-1]].mr
        kernels = f'[{{"weight": "int8", "mr": {tile}, "share": 1.1}}, {{"weight": "int8", "mr": 1, "share": 0.3}}]'
        return subprocess.CompletedProcess(arguments, 0, f'{{"kernels": {kernels}}}')

    monkeypatch.setattr(port_limits.subprocess, "run", run)
    can_run = [port_limits.ISA.name, *port_limits.CHOICE.others]
    shares = port_limits.measured_shares({*can_run[:-1], "one that this CPU lacks"})
    assert asked == can_run[:-1]
    assert shares == {(isa, "int8"): 1.1 for isa in asked}


def test_targets_have_names_that_llvm_knows():
    for targets in port_limits.TARGETS.values():
        assert {target.triple for target in targets} <= {X86, ARM}
