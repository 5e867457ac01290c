"""The bench of the microkernels by themselves."""

import dataclasses
import json
import subprocess
import sys

import click
import pytest
from helpers import ROOT
from microkernels import MR, cases

from mla_numba.kernels import ISA


def test_cases_are_checked_against_the_oracle():
    found = list(cases(64))
    assert {case.mr for case in found} == {1, MR}
    assert {case.name for case in found} >= {"int8", "bf16"}
    for case in found:
        case.check()
        wrong = dataclasses.replace(case, b=case.b.copy())
        wrong.check()
        # What the oracle reads is changed, and what the kernel reads is not.
        object.__setattr__(wrong, "run", lambda n, c, case=case: case.run(n, c))
        wrong.b[3] ^= 64
        with pytest.raises(click.ClickException, match="not the bits"):
            wrong.check()


def run_bench(*arguments):
    script = str(ROOT / "bench" / "microkernels.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=900)


def test_the_command_prints_a_row_a_kernel():
    done = run_bench("--k", "64", "--seconds", "0.01")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and ("%" in line or "(!)" in line)]
    assert len(rows) == (5 if ISA.bf16_dot else 4)
    assert any("(!)" in row for row in rows) == ("more than 100 %" in done.stdout)


def test_the_command_writes_json():
    done = run_bench("--k", "64", "--seconds", "0", "--json")
    written = json.loads(done.stdout)
    assert written["machine"]["isa"] == ISA.name
    kernels = {(kernel["weight"], kernel["mr"]): kernel for kernel in written["kernels"]}
    assert {("int8", MR), ("bf16", MR), ("int8", 1), ("bf16", 1)} <= set(kernels)
    for kernel in kernels.values():
        assert kernel["share"] == pytest.approx(kernel["ops_s"] / kernel["peak_ops_s"])


@pytest.mark.skipif(max(ISA.kr_bf16, ISA.kr_int8) == 1, reason="any length will do")
def test_the_command_refuses_a_part_of_a_step():
    kr = max(ISA.kr_bf16, ISA.kr_int8)
    done = run_bench("--k", "65")
    assert done.returncode == 2
    assert f"--k: expected a multiple of {kr}, got 65" in done.stderr
