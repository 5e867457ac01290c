import functools
import json
import re
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
from helpers import ROOT, SCRIPTS, run_python
from helpers.cli import invoke
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from scripts.probes_script import check_probes

from mla_numba import MlaDims
from mla_numba.base.threads import usual_threads
from mla_numba.call.planning import MICRO_TILES, this_machine
from mla_numba.kernels import CHOICE, ISA, ISAS, max_threads, peaks
from mla_numba.kernels.llvm_ir import F32, I16, I32
from mla_numba.kernels.micro.emitter import TileFunction
from mla_numba.tuning import rates as measure
from mla_numba.tuning.rates import (
    Probes,
    least_ms,
    measure_all,
    rates_as_dict,
)
from tiling import Rates, least_seconds, plan_prolog

DIMS = MlaDims(64, 2, 32, 32, 16, 16)
PROBES = str(SCRIPTS / "probes_script.py")


def test_probes_do_all_their_work():
    check_probes(ISA.name)


@pytest.mark.parametrize("isa", ISAS)
def test_probes_of_other_instruction_sets(isa):
    if isa not in CHOICE.others:
        pytest.skip(f"this CPU has no {isa}, or this process runs it")
    run_python("-W", "error", PROBES, isa, MLA_NUMBA_ISA=isa)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1, 10**400], ids=str)
def test_seconds_of_probes_end(seconds):
    probes = Probes(1, buffer_bytes=1, steps=1)
    with pytest.raises(ValueError, match="seconds: expected a number"):
        probes.rates(seconds=seconds)


def test_sizes_of_probes_have_bounds():
    with pytest.raises(ValueError, match="steps: expected at most 2147483647, got 1000000"):
        Probes(1, buffer_bytes=1, steps=10**30)
    with pytest.raises(ValueError, match="buffer_bytes: expected at most 1099511627776, got 1000000"):
        Probes(1, buffer_bytes=10**30, steps=1)


def test_probes_without_compiling():
    run_python("-W", "error", PROBES, "any", NUMBA_DISABLE_JIT="1")


def test_rates_without_compiling():
    code = "from mla_numba.tuning.rates import Probes; print(Probes(1).rates(seconds=0))"
    out = run_python("-W", "error", "-c", code, NUMBA_DISABLE_JIT="1")
    assert out.startswith("Rates(bandwidth_bytes_s=")


# What multiplies in a microkernel of bf16 weights and in one of int8, and how many steps of k it takes at once.
# vpdpwssd is vpmaddwd and vpaddd in one, which the compiler takes where the CPU has AVX-VNNI.
MULTIPLY = {
    "avx512bf16": (("vdpbf16ps", 2), ("vpdpbusd", 4)),
    "avx512vnni": (("vfmadd", 1), ("vpdpbusd", 4)),
    "avx512": (("vfmadd", 1), ("vpmaddwd|vpdpwssd", 2)),
    "avxvnni": (("vfmadd", 1), ("vpdpbusd", 4)),
    "avx2": (("vfmadd", 1), ("vpmaddwd|vpdpwssd", 2)),
    "neoni8mm": (("bfmlal[bt]", 1), ("smmla", 8)),
    "neondot": (("fmla", 1), ("sdot", 4)),
    "neon": (("fmla", 1), ("smull2?|smlsl2?", 2)),
}


def assembly_of(define):
    """Machine code of what `define` puts into a module."""
    codegen = cpu_target.target_context.codegen()
    with global_compiler_lock:
        library = codegen.create_library("by itself")
        module = library.create_ir_module("by itself")
        define(module).linkage = ""
        library.add_ir_module(module)
        library.finalize()
        return library.get_asm_str()


def inner_loop(assembly, function, multiply):
    """Instructions of a function's block that multiplies most, and how many of them do; a jump ends a block."""
    body = assembly[re.search(rf"^{function}:", assembly, re.M).end() :].partition(".Lfunc_end")[0]
    blocks = re.split(r"^\.\w+:.*$|^\tj\w+\t.*$", body, flags=re.M)
    loop = max(blocks, key=lambda block: len(re.findall(multiply, block)))
    lines = [line.strip() for line in loop.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "//", "."))], len(re.findall(multiply, loop))


PORTABLE = pytest.mark.skipif(ISA.name == "portable", reason="plain loops, of which the compiler makes what it likes")


@PORTABLE
@pytest.mark.parametrize("kernel", [ISA.bf16, ISA.int8], ids=["bf16", "int8"])
def test_microkernels_multiply_once_a_vector_and_keep_their_sums_in_registers(kernel):
    """So they come near the peaks: of what each step of k needs nothing is done twice, and no sum is spilt."""
    check_loop(assembly_of(lambda module: TileFunction(ISA, kernel, I16).define(module)), ISA, kernel)


def check_loop(assembly, isa, kernel):
    """The loop over k of a register tile of all rows."""
    multiply, k_of_one = MULTIPLY[isa.name][kernel.is_int8]
    loop, n_multiply = inner_loop(assembly, rf"mla_numba_{kernel.name}_\w+_{isa.mr}", multiply)
    n_a_step = isa.mr * isa.vectors.n * isa.kr(kernel) // k_of_one
    assert n_multiply >= n_a_step, "\n".join(loop)
    assert n_multiply % n_a_step == 0, "\n".join(loop)  # the compiler may unroll steps
    assert not [line for line in loop if "(%rsp)" in line or "[sp" in line], "\n".join(loop)


@PORTABLE
def test_peaks_multiply_with_the_instructions_of_the_microkernels():
    """And do little else, so that no microkernel beats them."""
    (bf16, _), (int8, _) = MULTIPLY[ISA.name]
    probes = [("vfmadd|fmla", F32, peaks._step_fma), (int8, I32, peaks._step_dot)]
    probes += [(bf16, F32, peaks._step_bf16)] if ISA.bf16_dot else []
    for multiply, element, step in probes:
        chain = functools.partial(peaks._chain_function, name="probe", element=element, emit_step=step)
        loop, n_multiply = inner_loop(assembly_of(chain), r"mla_numba_probe\w+", multiply)
        assert n_multiply >= peaks.CHAINS, "\n".join(loop)
        assert n_multiply % peaks.CHAINS == 0, "\n".join(loop)
        n_added = n_multiply if "vpmaddwd" in multiply or "smull" in multiply else 0
        assert len(loop) <= n_multiply + n_added + 4, "\n".join(loop)  # beside them it counts steps, and goes on


def test_runs_take_turns_and_the_first_does_not_count(monkeypatch):
    order = []
    times = measure._time_in_turns([lambda: order.append("a"), lambda: order.append("b")], seconds=0)
    assert order == ["a", "b"] * (1 + measure._MIN_RUNS)
    assert [len(spent) for spent in times] == [measure._MIN_RUNS] * 2
    clock = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def run(seconds):
        clock[0] += seconds

    times = measure._time_in_turns([lambda: run(0.25), lambda: run(0.0625)], seconds=1)
    assert [len(spent) for spent in times] == [4, 16]
    assert [set(spent) for spent in times] == [{0.25}, {0.0625}]


def test_info_says_where_two_threads_are_slower_than_one(monkeypatch):
    from mla_numba.cli import info

    rates = {1: Rates(9e9, 2e9, 3e9, None), 2: Rates(5e9, 2e9, 3e9, None)}
    monkeypatch.setattr(info, "measure_all", lambda n, finished: rates)
    monkeypatch.setattr(info, "max_threads", lambda: 2)
    monkeypatch.setattr(info, "usual_threads", lambda available: available)
    said = invoke("info", "--measure").output
    assert "busy machine, do not trust these rates: 2 threads read 5.0 GB/s, slower than 1 thread (9.0)\n" in said
    monkeypatch.setattr(info, "measure_all", lambda n, finished: {1: rates[2], 2: rates[1]})
    assert "busy machine" not in invoke("info", "--measure").output


def test_every_number_of_threads_is_measured(monkeypatch):
    monkeypatch.setattr(measure, "_MIN_BUFFER_BYTES", 2**20)
    monkeypatch.setattr(measure, "_MAX_BUFFER_BYTES", 2**20)
    finished = []
    rates = measure_all(seconds=0, finished=lambda: finished.append(1))
    assert list(rates) == list(range(1, usual_threads(max_threads()) + 1))
    assert len(finished) == usual_threads(max_threads())
    assert list(measure_all(1, seconds=0)) == [1]
    assert measure.Probes(1).rates(seconds=0).flops_s > 0


def test_buffers_are_larger_than_the_caches():
    probes = Probes(1)
    n_bytes = sum(quarter.nbytes for quarter in probes._quarters)
    assert min(max(2**28, 4 * this_machine().l3_bytes), 2**30) <= n_bytes <= 2**30


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0, ValueError, "n_threads: expected at least 1, got 0"),
        (True, TypeError, "n_threads: expected int, got bool"),
        (4096, ValueError, r"n_threads: expected at most Numba's \d+ \(NUMBA_NUM_THREADS\), got 4096"),
    ],
)
def test_wrong_threads_are_refused(value, error, said):
    with pytest.raises(error, match=said):
        Probes(value)


def test_probes_measure_no_more_threads_than_they_were_made_for():
    probes = Probes(1, buffer_bytes=1)
    with pytest.raises(ValueError, match="n_threads: expected at most the 1 of these probes, got 2"):
        probes.rates(2)


def test_least_time_by_hand():
    t, d = 3, DIMS
    plan = plan_prolog(d, t, None, this_machine(), micro=MICRO_TILES, n_threads=1)
    heads = d.num_attention_heads
    bf16 = d.hidden_size * (d.q_lora_rank + d.kv_lora_rank + d.qk_rope_head_dim)
    bf16 += heads * d.qk_nope_head_dim * d.kv_lora_rank
    int8 = d.q_lora_rank * heads * (d.qk_nope_head_dim + d.qk_rope_head_dim)
    assert (plan.flops, plan.int8_ops) == (2 * t * bf16, 2 * t * int8)
    computing = Rates(bandwidth_bytes_s=1e30, flops_s=2e3, ops_s=5e3)
    assert least_seconds(plan, computing) == pytest.approx(plan.flops / 2e3 + plan.int8_ops / 5e3)
    pairs = Rates(1e30, 2e3, 5e3, bf16_flops_s=4e3)
    assert least_seconds(plan, pairs) == pytest.approx(plan.flops / 4e3 + plan.int8_ops / 5e3)
    slow_pairs = Rates(1e30, 2e3, 5e3, bf16_flops_s=1e3)
    assert least_seconds(plan, slow_pairs) == least_seconds(plan, computing)
    moving = Rates(bandwidth_bytes_s=7.0, flops_s=1e30, ops_s=1e30)
    assert least_seconds(plan, moving) == pytest.approx(plan.total_bytes / 7)
    assert plan.total_bytes > 2 * bf16 + int8
    assert least_ms(d, (3,), 1, moving) == {3: pytest.approx(plan.total_bytes / 7 * 1e3)}


def test_rates_are_shown_in_units_of_a_thousand_million():
    assert rates_as_dict(Rates(1e9, 2e9, 3e9)) == {"read_gb_s": 1, "fma_gflop_s": 2, "dot_gop_s": 3}
    assert rates_as_dict(Rates(1e9, 2e9, 3e9, 4e9))["bf16_gflop_s"] == 4
    with pytest.raises(ValueError, match="bf16_flops_s: expected a float > 0, got 0"):
        Rates(1.0, 1.0, 1.0, 0.0)


def bench(*args):
    sizes = ["--dims", "256", "4", "128", "128", "64", "64"]
    return run_python(str(Path(ROOT, "bench/roofline.py")), *args, *sizes, "--seconds", "0", "--threads", "1")


def test_bench_times_calls_against_the_limit():
    report = json.loads(bench("--tokens", "1", "5", "--rounds", "3", "--weight-sets", "2", "--json"))
    assert [row["threads"] for row in report["rates"]] == [1]
    assert list(report["least_ms"]) == ["1", "8", "32", "128", "512"]
    assert [result["tokens"] for result in report["results"]] == [1, 5]
    for result in report["results"]:
        assert len(result["ms"]) == 3
        assert min(result["ms"]) == result["min_ms"] <= result["median_ms"]["median"] == median(result["ms"])
        share = result["least_ms"] / result["median_ms"]["median"]
        assert (result["share"], result["share_reason"]) in (
            (pytest.approx(share), ""), (None, "weights came from caches in part")
        )  # fmt: skip
        assert (result["share"] is None) == (share > 1)
        assert result["conditions"]["n_threads"] == 1
        assert set(result["rates_before"]) == set(result["rates_after"]) == set(report["rates"][0]) - {"threads"}


def test_bench_prints_tables():
    out = bench("--tokens", "2", "--rounds", "2")
    assert "least possible ms" in out
    assert "2 rounds, 1 threads, 1 weight sets" in out
    shares = [float(number) for number in re.findall(r"([0-9.]+)% *$", out.partition("before the rounds")[0], re.M)]
    assert all(share <= 100 for share in shares)
    assert ("(!)" in out) == ("more than 100 %" in out) == (not shares)
    assert "(no interval: 2 values)" in out
