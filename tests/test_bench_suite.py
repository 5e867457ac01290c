"""The bench suite at small dimensions: its benches pass, its names are stable, and it refuses what is wrong."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from helpers import ROOT

from mla_numba import MlaDims, MlaProlog, MlaWeights
from mla_numba.oracle.bits import reference_run
from mla_numba.tuning import copies
from tiling import Rates, Work, least_seconds

pytest.importorskip("pytest_benchmark")

from shared.contenders import (
    DisagreementError,
    check_ours,
    check_peer,
    make_inputs,
    numpy_peer,
    onnx_peer,
    ours,
)
from suite import attention_cases, prolog_cases, rotation
from suite.attention_cases import ATTENTION_PEERS, INDEX_PEERS, AttentionCases
from suite.product_cases import PRODUCTS, ProductCases
from suite.session import TINY_SIZE, TOKENS, Stopwatch, Suite

DIMS = MlaDims(256, 4, 128, 128, 64, 64)
TINY = ("--tiny", "-p", "no:cacheprovider", "--color=no")


def pytest_on(*arguments, status=0, **environment):
    """pytest in the checkout; what it wrote."""
    environment = os.environ | environment
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", *arguments]
    env = environment | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=900, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def suite():
    return Suite(tiny=True, max_seconds=0.01)


def test_every_bench_passes_and_only_peers_that_are_wrong_here_are_left_out():
    """But for the compiled peer, which takes a quarter of a minute; test_bench_peers.py has it."""
    said = pytest_on("bench", *TINY, "--benchmark-disable", "--tokens", "1,8", "-k", "not P3w", "-q")
    assert " passed" in said
    assert "failed" not in said
    left_out = set(re.findall(r"^SKIPPED .*?: (\S+) left out: ", said, re.M))
    known = {name for names in PRODUCTS.values() for name in names} | {*prolog_cases.PEERS, "torch-onednn"}
    assert left_out <= known | {*INDEX_PEERS, *ATTENTION_PEERS}
    if find_spec("torch"):
        from helpers.expected_peers import right_implementations

        assert left_out.isdisjoint(right_implementations()), said
        assert left_out.isdisjoint({"torch-index-fp32", "torch-attention-fp32", "torch-attention-mixed"}), said


@cache
def collected(*arguments, **environment):
    """Names of the benches that pytest would run."""
    said = pytest_on("bench", *TINY, "--collect-only", "-q", *arguments, **environment)
    return [line for line in said.splitlines() if "::" in line]


def test_names_do_not_depend_on_the_machine():
    names = collected("--slow")
    assert len(names) == len(set(names)) > 300
    for name in (
        "suite/bench_prolog.py::test_prolog[T1-mla_numba-b-cold]",
        "suite/bench_prolog.py::test_prolog[T512-torch-P3w-warm]",
        "suite/bench_attention.py::test_prolog_with_indexer[T8-cold]",
        "suite/bench_attention.py::test_indexer_prolog[T32-warm]",
        "suite/bench_attention.py::test_lightning_index[T1-torch-index-int8-cold]",
        "suite/bench_attention.py::test_sparse_attention[T512-mla_numba-warm]",
        "suite/bench_sweeps.py::test_sweep[T32-heads-cold]",
        "suite/bench_products.py::test_product[up-T8-onnxruntime-cold]",
        "suite/bench_products.py::test_heads_product[heads-mla_numba-T8-warm]",
        "suite/bench_packing.py::test_pack[mla_numba-ab]",
        "suite/bench_cold_start.py::test_first_call",
    ):
        assert name in names or f"bench/{name}" in names
    assert names == collected("--slow", NUMBA_NUM_THREADS="1", NUMBA_CPU_NAME="haswell")


def test_options_leave_benches_out():
    names = collected("--tokens", "8", "--weights", "warm", "--no-peers")
    assert any("T8-mla_numba-none-warm" in name for name in names)
    assert not [name for name in names if "T1-" in name or "-cold" in name or "torch" in name or "numpy" in name]
    assert not [name for name in names if "empty_kernel_cache" in name]


def test_any_numbers_of_tokens_are_taken_in_order():
    names = collected("--tokens", "700,3,3", "--no-peers", "--weights", "cold")
    numbers = [name.rpartition("[")[2].partition("-")[0] for name in names if "test_prolog" in name]
    assert list(dict.fromkeys(numbers)) == ["T3", "T700"]
    assert not [name for name in names if "T8-" in name or "T1-" in name]
    assert any("test_product[down-T700-mla_numba-cold]" in name for name in names)
    assert any("test_heads_product[heads-mla_numba-T3-cold]" in name for name in names)


def attention_of(suite):
    return AttentionCases(suite, prolog_cases.PrologCases(suite))


def test_more_tokens_than_keys_are_left_out(suite):
    for made in (attention_of(suite).index, attention_of(suite).attention):
        with pytest.raises(pytest.skip.Exception, match="attention left out: a sequence has 300 keys, fewer than 301"):
            made("mla_numba", 301)


@pytest.mark.parametrize(
    ("case", "name"), [("index", "lightning_index_reference"), ("attention", "sparse_attention_reference")]
)
def test_a_wrong_bit_behind_the_prolog_is_found(suite, monkeypatch, case, name):
    reference = getattr(attention_cases, name)

    def wrong(*arguments):
        result = reference(*arguments).copy()
        result.reshape(-1)[-1] += 1
        return result

    monkeypatch.setattr(attention_cases, name, wrong)
    with pytest.raises(AssertionError):
        getattr(attention_of(suite), case)("mla_numba", 3)


@pytest.mark.parametrize("case", ["fused", "alone"])
def test_a_wrong_bit_of_the_indexer_is_found(suite, monkeypatch, case):
    reference = attention_cases.indexer_prolog_reference

    def wrong(*arguments):
        result = reference(*arguments)
        result.query[-1, -1, -1] ^= 1
        return result

    monkeypatch.setattr(attention_cases, "indexer_prolog_reference", wrong)
    with pytest.raises(AssertionError, match="query: 1 of "):
        getattr(attention_of(suite), case)(3)


def test_work_of_attention_is_that_of_its_sizes(suite):
    cases = attention_of(suite)
    index, attention = cases.index("mla_numba", 2).work, cases.attention("mla_numba", 2).work
    assert index.int8_ops == 2 * (300 + 299) * 8 * 64
    assert index.total_bytes == 300 * 66 + 2 * (8 * 68 + 4 * 40)
    assert attention.flops == 2 * 2 * 40 * TINY_SIZE.num_attention_heads * (2 * 128 + 64)
    assert attention.total_bytes == 80 * (128 + 16 + 128) + 2 * 2 * 4 * (2 * 128 + 64)


def test_products_of_more_tokens_than_a_tile_has_are_left_out(suite):
    with pytest.raises(
        pytest.skip.Exception, match="products left out: more than 512 tokens go through a call in tiles"
    ):
        ProductCases(suite).contender("down", "mla_numba", 513)


def test_after_a_name_come_the_others():
    names = collected("--slow")
    assert collected("--slow", "--after", names[3]) == names[4:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,0", "--tokens: expected numbers > 0, got 0"),
        ("x", "--tokens: expected integers with commas, got 'x'"),
    ],
)
def test_wrong_tokens_are_refused(text, message):
    assert message in pytest_on("bench", *TINY, "--tokens", text, status=4)


def test_results_say_what_was_timed_and_can_be_compared(tmp_path):
    run = ["bench/suite/bench_sweeps.py", "bench/suite/bench_prolog.py", *TINY, "--benchmark-only"]
    run += ["--tokens", "1", "--no-peers", "--benchmark-max-time=0.01", f"--benchmark-storage={tmp_path}", "-q"]
    pytest_on(*run, "--benchmark-save=first")
    said = pytest_on(*run, "--benchmark-compare=0001", f"--benchmark-json={tmp_path / 'second.json'}")
    assert "test_prolog[T1-mla_numba-b-cold] (0001_first)" in said
    assert "machine_info is different" not in said
    assert said.index("'prolog, T = 1, weights cold'") < said.index("'prolog, T = 1, weights warm'")

    results = json.loads((tmp_path / "second.json").read_text())
    benches = {bench["name"]: bench for bench in results["benchmarks"]}
    assert len(benches) == 2 * 3 + 2 * 4
    bench = benches["test_prolog[T1-mla_numba-b-cold]"]
    extra = bench["extra_info"]
    assert bench["group"] == "prolog, T = 1, weights cold"
    assert extra["implementation"] == "mla_numba-b"
    assert extra["made_of"].startswith("decode of 1 tokens, quant b")
    assert extra["verified"] == "bit for bit against the reference"
    assert extra["weights"] == "cold, 2 sets in turns"
    # 2 operations each: w_dq and w_dkv_kr 256 x (128 + 192), w_uk 4 x 64 x 128; w_uq_qr 128 x 4 * 128
    assert extra["flops"] == 2 * (256 * (128 + 192) + 4 * 64 * 128)
    assert extra["int8_ops"] == 2 * 128 * 4 * 128
    assert extra["bytes"] > 2 * 256 * 320 + 2 * 4 * 64 * 128 + 128 * 512
    assert extra["share_of_roofline"] == pytest.approx(extra["least_seconds"] / bench["stats"]["min"])
    assert set(extra["rates"]) >= {"read_gb_s", "fma_gflop_s", "dot_gop_s"}
    assert {"threads", "threading_layer", "cpu", "instruction_set"} <= set(extra)
    sweeps = [benches[f"test_sweep[T1-{sweep}-cold]"] for sweep in ("down", "rows", "heads")]
    assert sum(sweep["extra_info"].get("flops", 0) for sweep in sweeps) == extra["flops"]
    assert sum(sweep["extra_info"].get("int8_ops", 0) for sweep in sweeps) == extra["int8_ops"]
    assert "share_of_roofline" not in sweeps[1]["extra_info"]
    assert all(sweep["stats"]["min"] > 0 for sweep in sweeps)
    assert results["machine_info"]["dims"].startswith("hidden_size 256, ")
    assert set(results["mla_numba"]) == {"versions", "threading_layer", "left_out"}
    assert results["mla_numba"]["left_out"] == []


def test_runs_that_differ_in_more_than_their_version_are_compared_with_a_warning(tmp_path):
    run = ["bench/suite/bench_packing.py", *TINY, "--benchmark-only", "--no-peers", "--benchmark-max-time=0.01", "-q"]
    run += [f"--benchmark-storage={ROOT / '.benchmarks' / tmp_path.name}"]
    try:
        pytest_on(*run, "--benchmark-save=first")
        said = pytest_on(*run, "--benchmark-compare=0001", NUMBA_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE")
    finally:
        shutil.rmtree(ROOT / ".benchmarks" / tmp_path.name)
    assert "machine_info is different" in said
    assert "(0001_first)" in said


def test_cold_calls_take_turns_and_warm_ones_do_not():
    taken = []
    calls = [lambda i=i: taken.append(i) for i in range(3)]
    for state, want in (("cold", [0, 1, 2, 0, 1]), ("warm", [0, 0, 0, 0, 0])):
        taken.clear()
        call = rotation.rotate(calls, state)
        for _ in range(5):
            call()
        assert taken == want


@pytest.mark.parametrize(
    ("l3_mib", "weight_mib", "want"),
    [(32, 85, 4), (32, 8, 32), (96, 85, 5), (1024, 85, 13), (0, 300, 2), (32, 1, 256)],
)
def test_copies_fill_several_caches(l3_mib, weight_mib, want, monkeypatch):
    machine = replace(copies.this_machine(), l3_bytes=l3_mib << 20)
    monkeypatch.setattr(copies, "this_machine", lambda: machine)
    assert copies.copies_to_be_cold(weight_mib << 20) == want


def test_a_stopwatch_runs_only_while_it_is_told_to():
    clock = Stopwatch()
    before = clock.read()
    clock.add(0.25)
    clock.add(0.5)
    assert (before, clock.read()) == (0, 0.75)


def test_work_is_limited_by_memory_or_arithmetic():
    rates = Rates(bandwidth_bytes_s=100, flops_s=10, ops_s=20, bf16_flops_s=None)
    assert least_seconds(Work(1000, flops=20, int8_ops=40), rates) == 10
    assert least_seconds(Work(100, flops=20, int8_ops=40), rates) == 4


@pytest.mark.parametrize("t", [1, 5])
@pytest.mark.parametrize("make", ["numpy", "onnxruntime"])
def test_peer_agrees_with_the_reference_whatever_its_weight_set(make, t):
    sets = [MlaWeights.random(DIMS, seed, quant="b") for seed in range(2)]
    inputs, empty = make_inputs(DIMS, t, 0)
    if make == "numpy":
        peer = numpy_peer(sets, inputs, empty)
    else:
        pytest.importorskip("onnxruntime")
        peer = onnx_peer(sets, inputs, empty, 1)
    own = ours([MlaProlog(weights) for weights in sets], inputs, empty)
    for i, weights in enumerate(sets):
        check_peer(peer, i, check_ours(own, i, reference_run(weights, *inputs, empty), empty))
    with pytest.raises(DisagreementError, match=rf"{make}, {t} tokens, weight set 0: query_nope: "):
        check_peer(peer, 0, own.read(1))


@pytest.mark.parametrize("module", ["numpy_prolog", "onnx_graphs"])
def test_peers_take_quant_b_alone(module):
    if module == "onnx_graphs":
        pytest.importorskip("onnxruntime")
    weights = MlaWeights.random(DIMS, quant="none")
    arguments = (weights,) if module == "numpy_prolog" else (weights, *make_inputs(DIMS, 1, 0), 1)
    with pytest.raises(ValueError, match="weights: expected quant 'b' without smooth scales, got quant 'none'"):
        importlib.import_module(f"shared.{module}").prepare(*arguments)


def test_ours_is_refused_for_one_bit():
    inputs, empty = make_inputs(DIMS, 2, 0)
    weights = MlaWeights.random(DIMS, quant="b")
    want = reference_run(weights, *inputs, empty)
    want.kr_cache.view(np.uint16)[0, 0, 0, 0] ^= 1
    with pytest.raises(DisagreementError, match="mla_numba, 2 tokens: kr_cache: 1 of "):
        check_ours(ours([MlaProlog(weights)], inputs, empty), 0, want, empty)


@pytest.mark.parametrize("product", ["down", "key", "up"])
def test_a_wrong_product_is_refused(product, suite):
    cases = ProductCases(suite)
    right = cases.case(product, 3)
    cases.case = lambda *_: replace(right, want=-right.want)
    with pytest.raises(DisagreementError, match=f"mla_numba, {product} product, 3 tokens, copy 0: y: "):
        cases.contender(product, "mla_numba", 3)
    with pytest.raises(pytest.skip.Exception, match=f"numpy left out: {product} product, 3 tokens, copy 0: y: "):
        cases.contender(product, "numpy", 3)


def test_a_peer_that_is_wrong_or_fails_is_left_out_with_its_reason(suite, monkeypatch):
    cases = prolog_cases.PrologCases(suite)

    def of_other_weights(sets, inputs, empty):
        return numpy_peer([MlaWeights.random(DIMS, 5) for _ in sets], inputs, empty)

    def fail(sets, inputs, empty):
        raise OSError("numpy: no such library\nmore")

    for peer, said in (
        (of_other_weights, "numpy, 1 tokens, weight set 0: query_nope: "),
        (fail, "numpy: no such library$"),
    ):
        monkeypatch.setattr(prolog_cases, "numpy_peer", peer)
        with pytest.raises(pytest.skip.Exception, match=f"numpy left out: {said}"):
            cases.contender("numpy", 1)


def test_results_say_what_was_left_out(tmp_path):
    """A library that cannot be imported, by a package of its name in front of it."""
    broken = tmp_path / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')\n")
    saved = tmp_path / "results.json"
    chosen = ("bench/suite/bench_cold_start.py", *TINY, "-k", "test_import and (numpy or onnxruntime)")
    pytest_on(*chosen, "--benchmark-only", f"--benchmark-json={saved}", PYTHONPATH=str(tmp_path))
    results = json.loads(saved.read_text())
    assert [bench["name"] for bench in results["benchmarks"]] == ["test_import[numpy]"]
    (reason,) = results["mla_numba"]["left_out"]
    assert re.match("onnxruntime left out: .*OSError: libgomp.so.1: cannot open shared object file$", reason)


def test_products_are_those_of_the_prolog(suite):
    cases = ProductCases(suite)
    assert suite.dims == TINY_SIZE == DIMS
    titles = [cases.title(product) for product in PRODUCTS]
    assert titles == [
        "down product, 320 x 256 bf16",
        "key product, 192 x 256 bf16",
        "up product, 512 x 128 int8",
        "heads product, 4 x (64 x 128) bf16",
    ]
    assert cases.case("up", 2).work == Work(
        512 * 128 + 2 * 128 + 2 * 2 * 512 + 4 * (2 + 512), int8_ops=2 * 2 * 512 * 128
    )
    assert cases.case("key", 2).work == Work(2 * 192 * 256 + 2 * 2 * 256 + 2 * 2 * 192, flops=2 * 2 * 192 * 256)
    assert TOKENS == (1, 8, 32, 128, 512)
