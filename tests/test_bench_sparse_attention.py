"""The bench of sparse attention: every composition is checked and timed."""

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import sparse_attention as bench
from shared.torch_attention import COMPOSITIONS

SIZES = bench.Sizes(heads=5, latent=64, rope=32, context=300, k=40)
EAGER = ("fp32 products", "fp32 and bf16 products")


@pytest.mark.parametrize("t", [1, 3])
def test_compositions_are_right_and_timed(t):
    problem = bench.Problem.random(SIZES, t, 2)
    latent = bench.check(problem, 1)
    calls, wrong = bench.contenders(problem, latent, 1, EAGER)
    assert [*calls] == [bench.OURS, *EAGER]
    assert wrong == []
    assert all(len(of_one) == 2 for of_one in calls.values())
    for of_one in calls.values():
        for call in of_one:
            assert call().shape == (t, 5, 64)


def test_the_command_alone():
    sizes = [str(size) for size in SIZES]
    result = CliRunner().invoke(bench.main, ["--alone", "--tokens", "1", "--rounds", "1", "--sizes", *sizes])
    assert result.exit_code == 0, result.output
    assert bench.OURS in result.output
    assert "fp32" not in result.output


def test_a_wrong_composition_is_left_out(monkeypatch):
    problem = bench.Problem.random(SIZES, 1, 1)
    right = COMPOSITIONS["fp32 products"]
    monkeypatch.setitem(COMPOSITIONS, "fp32 products", lambda given: right(given) * 1.1)
    calls, wrong = bench.contenders(problem, bench.check(problem, 1), 1, ("fp32 products",))
    assert [*calls] == [bench.OURS]
    assert wrong[0].startswith("fp32 products: ")
    calls, _ = bench.contenders(problem, bench.check(problem, 1), 1, ("fp32 products",), also_wrong=True)
    assert [*calls] == [bench.OURS, "fp32 products"]


def test_the_tolerance():
    want = np.array([1, 0, 2, -4], np.float32)
    assert bench.share_outside(want + np.array([0.005, 1e-4, 0, 0.02], np.float32) * np.float32(0.99), want) == 0
    assert bench.share_outside(want + np.array([0.006, 2e-4, np.nan, -0.03], np.float32), want) == 1


def test_work_of_a_call():
    work = bench.work_of(bench.Sizes(128, 512, 64, 65536, 2048), 2)
    assert work.flops == 2 * 2 * 285_212_672
    assert work.total_bytes == 2 * (2048 * 656 + 128 * 1088 * 2)
