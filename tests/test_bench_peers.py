import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from mla_numba import MlaDims, MlaProlog, MlaWeights, PagedCache
from mla_numba.dump_names import OUTPUTS

torch = pytest.importorskip("torch")

from compare_peers import PEER_NAMES, main  # noqa: E402
from helpers.expected_peers import RIGHT_OPERATORS, RIGHT_PEERS, X86  # noqa: E402
from shared import peers, torch_machine, torch_operators  # noqa: E402
from shared.contenders import OURS, DisagreementError, disagreements  # noqa: E402
from shared.peers import PEERS  # noqa: E402
from shared.round_robin import compare  # noqa: E402
from shared.torch_operators import DOWN, HEADS, UP, Operator, TorchWeights, time_operators  # noqa: E402

SIZES = (256, 4, 128, 128, 64, 64)
DIMS = MlaDims(*SIZES)

# torch's own warnings, about its own code
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def quick_choice(monkeypatch):
    """Operators are chosen with whatever lies in the caches: which of them is the fastest is not asked here."""
    monkeypatch.setattr(torch_operators, "EVICT_BYTES", 4)


@pytest.fixture(scope="module")
def weight_sets():
    return [MlaWeights.random(DIMS, seed, quant="b") for seed in range(2)]


@pytest.fixture(scope="module")
def prologs(weight_sets):
    return [MlaProlog(weights) for weights in weight_sets]


def test_the_command_offers_every_peer():
    assert tuple(PEERS) == PEER_NAMES


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("name", PEER_NAMES)
def test_peer_agrees_with_the_reference(name, n_tokens, weight_sets, prologs):
    result = compare(DIMS, weight_sets, prologs, n_tokens, [name], n_rounds=1)
    if name in result.left_out:
        assert name not in RIGHT_PEERS, result.left_out
        assert result.left_out[name]
        assert [*result.bench.ms] == [OURS]
        return
    assert [*result.bench.ms] == [*result.chosen] == [OURS, name]
    assert all(result.chosen.values())
    assert [len(ms) for ms in result.bench.ms.values()] == [1, 1]


def operand_and_product(operator, w, t):
    """What the operator takes, and the product in fp64, without the channel scale."""
    generator = torch.Generator().manual_seed(0)
    if operator in UP:
        codes = torch.randint(-127, 128, (t, 128), dtype=torch.int8, generator=generator)
        operand = (codes.int() + 128).to(torch.uint8) if operator.takes == torch.uint8 else codes.to(operator.takes)
        return operand, codes.double() @ w.w_uq_qr.double()
    if operator in DOWN:
        operand = torch.randn(t, 256, generator=generator).bfloat16().to(operator.takes)
        return operand, operand.double() @ w.joined().double()
    operand = torch.randn(4, t, 64, generator=generator).bfloat16().to(operator.takes)
    return operand, operand.double() @ w.w_uk.double()


@pytest.mark.parametrize(
    "operator", [*DOWN, *UP, *HEADS], ids=lambda operator: f"{operator.make.__name__}-{operator.name}"
)
def test_each_operator_computes_its_product_or_says_why_not(operator, weight_sets):
    w, t = TorchWeights(weight_sets[0]), 3
    operand, want = operand_and_product(operator, w, t)
    if operator.name not in RIGHT_OPERATORS:
        timings = time_operators([operator], lambda op, product: product(operand), w, t, want.float())
        assert timings.failed.get(operator.name) or (not X86 and operator in timings.ms)
        return
    want = want * w.up_scale.double() if operator.scales else want
    got = operator.make(w, t)(operand)
    assert got.dtype == operator.gives
    step = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-18, torch.int32: 0}[operator.gives]
    assert ((got.double() - want).abs() <= step * want.abs().max()).all()


def test_an_operator_that_fails_is_named_with_its_reason(weight_sets):
    def fail(w, n_tokens):
        raise RuntimeError("no such instruction\nmore")

    def say_nothing(w, n_tokens):
        raise AssertionError

    broken = [Operator(name, torch.int8, torch.int32, make) for name, make in (("a", fail), ("b", say_nothing))]
    w = TorchWeights(weight_sets[0])
    timings = time_operators(broken, lambda op, product: product(None), w, 1, torch.zeros(1))
    assert str(timings.failed) == "{'a': 'no such instruction', 'b': 'AssertionError'}"
    with pytest.raises(RuntimeError, match=r"down: expected an operator that is right on this machine, got \{'a'"):
        timings.fastest("down")


def saturating(w, n_tokens):
    """An int8 product whose sums of two are held to 16 bits, as AVX2 does it."""
    pairs = w.w_uq_qr.int().view(-1, 2, w.w_uq_qr.shape[1])

    def product(codes):
        twos = torch.einsum("tkp,kpn->tkn", (codes.int() + 128).view(len(codes), -1, 2), pairs)
        return twos.clamp(-(2**15), 2**15 - 1).sum(1, dtype=torch.int32) - 128 * pairs.sum((0, 1), dtype=torch.int32)

    return product


def test_a_composition_of_the_fastest_takes_no_operator_that_is_wrong(weight_sets, prologs, monkeypatch):
    wrong = Operator("saturating", torch.int8, torch.int32, saturating)
    right = next(operator for operator in UP if operator.name == "fbgemm fp16 prepacked")
    monkeypatch.setattr(peers, "UP", (wrong, right))
    monkeypatch.setattr(torch_machine, "onednn_has_vnni", lambda: False)
    result = compare(DIMS, weight_sets, prologs, 2, ["P2p"], n_rounds=1)
    assert result.left_out == {}
    up = result.chosen["P2p"].partition("up: ")[2]
    assert up.startswith("fbgemm fp16 prepacked (")
    found = re.search(r"no saturating: its int8 products saturate without VNNI: (\d+) of 1024 values beyond", up)
    assert 0 < int(found[1]) < 1024
    # The same product as the only one: the peer cannot be made, and says so.
    monkeypatch.setattr(peers, "UP", (wrong,))
    result = compare(DIMS, weight_sets, prologs, 2, ["P2p"], n_rounds=1)
    assert result.left_out["P2p"].startswith(
        "up: expected an operator that is right on this machine, got {'saturating'"
    )


class Wrong(PEERS["P1"]):
    def prepare(self, weights):
        call = super().prepare(weights)

        def wrong(*args):
            out = call(*args)
            return out._replace(query_rope=-out.query_rope)

        return wrong


class Silent(PEERS["P1"]):
    def prepare(self, weights):
        raise AssertionError


@pytest.mark.parametrize(
    ("peer", "vnni", "said"),
    [
        (Wrong, True, "P1, 2 tokens, weight set 0: query_"),
        (Wrong, False, "P1, 2 tokens, weight set 0: its int8 products saturate without VNNI: query_"),
        (Silent, True, "AssertionError"),
    ],
)
def test_a_peer_that_is_wrong_or_fails_is_left_out_with_its_reason(peer, vnni, said, weight_sets, prologs, monkeypatch):
    monkeypatch.setitem(PEERS, "P1", peer)
    monkeypatch.setattr(torch_machine, "onednn_has_vnni", lambda: vnni)
    result = compare(DIMS, weight_sets, prologs, 2, ["P1", "P2p"], n_rounds=1)
    assert list(result.left_out) == ["P1"]
    assert result.left_out["P1"].startswith(said)
    assert [*result.bench.ms] == [OURS, "P2p"]


def test_ours_is_never_left_out(weight_sets, prologs):
    with pytest.raises(DisagreementError, match=f"{OURS}, 2 tokens: query_nope: "):
        compare(DIMS, weight_sets, prologs[::-1], 2, [], n_rounds=1)


@pytest.mark.parametrize(
    ("features", "limit", "vnni"),
    [
        ({"avx512_vnni"}, "", True),
        ({"avx_vnni"}, "AVX2_VNNI", True),
        ({"avx512_vnni"}, "avx512_core_vnni", True),
        ({"avx512_vnni"}, "avx512_core", False),
        ({"avx512_vnni", "avx_vnni"}, "AVX2", False),
        ({"avx2"}, "", False),
    ],
)
def test_vnni_is_the_cpus_within_the_limit_of_the_environment(features, limit, vnni, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True))
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setenv(name, limit)
        assert torch_machine.onednn_has_vnni() == vnni
    assert bool(torch_machine.int8_caveat(torch.uint8)) != vnni
    assert torch_machine.int8_caveat(torch.float32) == ""


def test_peers_take_quant_b_alone():
    with pytest.raises(ValueError, match="weights: expected quant 'b' without smooth scales, got quant 'none'"):
        PEERS["P1"](1).prepare(MlaWeights.random(DIMS, quant="none"))


def test_every_output_and_cache_is_compared():
    cache = PagedCache.allocate(DIMS, 1)
    wanted = MlaProlog(MlaWeights.random(DIMS, quant="b")).allocate_output(3)._asdict() | cache.arrays()
    wanted = {name: np.zeros_like(array) for name, array in wanted.items()}
    assert {f"{name}_out" for name in wanted} == set(OUTPUTS)
    assert disagreements(wanted, wanted) == []
    for name, array in wanted.items():
        assert [found.name for found in disagreements(wanted | {name: array + 2}, wanted)] == [name]


def test_command_compares_all_peers(tmp_path):
    script = str(ROOT / "bench" / "compare_peers.py")
    command = [sys.executable, script, "--tokens", "1", "4", "--rounds", "2", "--threads", "1"]
    command += ["--weight-sets", "2", "--json", "--dims", *map(str, SIZES)]
    command += ["--record", str(tmp_path / "run.json"), "--cpu", "a CPU"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [result["tokens"] for result in report["results"]] == [1, 4]
    assert report["waiting"] == "PASSIVE"
    assert report["threads"] == f"{OURS} 1, torch 1"
    for result in report["results"]:
        assert set(result["left_out"]).isdisjoint(RIGHT_PEERS)
        there = [name for name in PEER_NAMES if name not in result["left_out"]]
        assert [entry["name"] for entry in result["implementations"]] == [OURS, *there]
        assert all(len(entry["ms"]) == 2 and entry["ratio_of_minima"] > 0 for entry in result["implementations"])
        assert result["implementations"][0]["ratio_paired_median"] == 1
        assert result["conditions"]["n_threads"] == 1
        assert all(entry["share_reason"] or 0 < entry["share"] <= 1 for entry in result["implementations"])
    recorded = json.loads((tmp_path / "run.json").read_text())
    assert recorded["cpu"] == "a CPU"
    for result in report["results"]:
        for row in result["implementations"]:
            del row["ms"]
    assert recorded == report


def test_option_values_are_spread():
    context = main.make_context(
        "x", ["--tokens", "1", "8", "--rounds", "2", "--peers", "P1", "P2", "--weight-sets", "3"]
    )
    assert context.params["tokens"] == (1, 8)
    assert context.params["peers"] == ("P1", "P2")
    assert (context.params["rounds"], context.params["weight_sets"]) == (2, 3)


def test_a_value_too_many_is_refused():
    import click

    with pytest.raises(click.UsageError, match="unexpected extra argument"):
        main.make_context("x", ["--rounds", "2", "3"])
