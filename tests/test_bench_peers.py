import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mla_numba import MlaDims, MlaProlog, MlaWeights, PagedCache
from mla_numba.tolerance import Tolerance

pytest.importorskip("torch")

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from agreement import TOLERANCES, check_agreement, compare_within  # noqa: E402
from compare_peers import PEER_NAMES, main  # noqa: E402
from contenders import OURS, Contender, DisagreementError  # noqa: E402
from peers import PEERS  # noqa: E402
from round_robin import Timed, _time, compare  # noqa: E402
from torch_operators import DOWN, HEADS, UP, Operator, TorchWeights, time_operators  # noqa: E402

SIZES = (256, 4, 128, 128, 64, 64)
DIMS = MlaDims(*SIZES)

# torch's own warnings, about its own code
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


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
    assert result.left_out == {}
    assert [timed.name for timed in result.timed] == [OURS, name]
    assert all(timed.chosen and len(timed.ms) == 1 for timed in result.timed)


@pytest.mark.parametrize("operator", [*DOWN, *UP, *HEADS], ids=lambda operator: operator.name)
def test_each_operator_computes_its_product(operator, weight_sets):
    import torch

    w, t = TorchWeights(weight_sets[0]), 3
    generator = torch.Generator().manual_seed(0)
    if operator in UP:
        codes = torch.randint(-127, 128, (t, 128), dtype=torch.int8, generator=generator)
        want = codes.double() @ w.w_uq_qr.double() * (w.up_scale.double() if operator.scales else 1)
        operand = codes if operator.takes == torch.int8 else (codes.int() + 128).to(torch.uint8)
    elif operator in DOWN:
        operand = torch.randn(t, 256, generator=generator).bfloat16().to(operator.takes)
        want = operand.double() @ w.joined().double()
    else:
        operand = torch.randn(4, t, 64, generator=generator).bfloat16().to(operator.takes)
        want = operand.double() @ w.w_uk.double()
    try:
        got = operator.make(w, t)(operand)
    except (RuntimeError, AttributeError) as error:
        pytest.xfail(f"this build of torch has no such operator: {error}")
    assert got.dtype == operator.gives
    step = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-18, torch.int32: 0}[operator.gives]
    assert ((got.double() - want).abs() <= step * want.abs().max()).all()


def test_an_operator_that_fails_is_named_with_its_reason(weight_sets):
    def fail(w, n_tokens):
        raise RuntimeError("no such instruction\nmore")

    broken = Operator("broken", DOWN[0].takes, DOWN[0].gives, fail)
    timings = time_operators([broken], lambda op, product: product(None), TorchWeights(weight_sets[0]), 1)
    assert str(timings.failed) == "{'broken': 'no such instruction'}"
    with pytest.raises(RuntimeError, match=r"down: expected an operator that runs on this machine, got \{'broken'"):
        timings.fastest("down")


def test_a_wrong_peer_is_not_timed(weight_sets, prologs, monkeypatch):
    class Wrong(PEERS["P1"]):
        def prepare(self, weights):
            call = super().prepare(weights)

            def wrong(*args):
                out = call(*args)
                return out._replace(query_rope=-out.query_rope)

            return wrong

    monkeypatch.setitem(PEERS, "P1", Wrong)
    with pytest.raises(DisagreementError, match="P1, 2 tokens, weight set 0: query_rope: "):
        compare(DIMS, weight_sets, prologs, 2, ["P1"], n_rounds=1)


def test_peers_take_quant_b_alone():
    with pytest.raises(ValueError, match="weights: expected quant 'b' without smooth scales, got quant 'none'"):
        PEERS["P1"](1).prepare(MlaWeights.random(DIMS, quant="none"))


def test_each_call_takes_the_next_weight_set_and_each_round_begins_with_the_next_implementation():
    made = []
    contenders = [
        Contender(name, "", [lambda what=(name, i): made.append(what) for i in range(3)], lambda i: {})
        for name in ("a", "b")
    ]
    timed = [Timed(name, "") for name in ("a", "b")]
    _time(contenders, timed, 2)
    assert made == [("b", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("a", 2)]
    assert [len(times.ms) for times in timed] == [2, 2]


def test_outliers_are_counted_and_placed():
    want = np.array([0.0, 1, 10, 100])
    got = want + np.array([0.5, 2, 1.5, 12])
    found = compare_within("a", got, want, Tolerance(absolute=1, relative=0.1, share=0.25))
    assert (found.n_outliers, found.first, found.max_difference) == (2, (1,), 12)
    assert not found.holds
    assert compare_within("a", got, want, Tolerance(1, 0.1, 0.5)).holds
    assert str(found).startswith("a: 2 of 4 elements beyond abs 1 + rel 0.1, largest difference 12, first at [1]")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_nan_or_inf_fails(bad):
    want = np.zeros(1000, np.float32)
    got = want.copy()
    got[7] = bad
    found = compare_within("a", got, want, Tolerance(absolute=1, relative=0, share=0.5))
    assert (found.n_not_finite, found.first, found.holds) == (1, (7,), False)
    assert str(found).endswith("1 NaN or Inf")


def test_agreement_reads_every_output_and_cache():
    cache = PagedCache.allocate(DIMS, 1)
    arrays = {name: np.zeros(3, np.float32) for name in ("query_nope", "query_rope", "q_norm", "q_norm_scale")}
    arrays |= {name: np.zeros(3, np.float32) for name in cache.arrays()}
    assert set(arrays) == set(TOLERANCES)
    assert check_agreement(arrays, arrays) == []
    wrong = arrays | {"kr_cache": np.ones(3, np.float32)}
    assert [agreement.name for agreement in check_agreement(wrong, arrays)] == ["kr_cache"]


def test_command_compares_all_peers(tmp_path):
    command = [sys.executable, str(BENCH / "compare_peers.py"), "--tokens", "1", "4", "--rounds", "2", "--threads", "1"]
    command += ["--weight-sets", "2", "--json", "--dims", *map(str, SIZES)]
    command += ["--record", str(tmp_path / "run.json"), "--cpu", "a CPU"]
    root = str(BENCH.parent)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [result["tokens"] for result in report["results"]] == [1, 4]
    assert report["waiting"] == "PASSIVE"
    assert report["threads"] == f"{OURS} 1, torch 1"
    for result in report["results"]:
        assert [entry["name"] for entry in result["implementations"]] == [OURS, *PEER_NAMES]
        assert result["left_out"] == {}
        assert all(len(entry["ms"]) == 2 and entry["ratio_of_minima"] > 0 for entry in result["implementations"])
        assert result["implementations"][0]["ratio_paired_median"] == 1
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


def test_a_value_too_many_is_refused(capsys):
    import click

    with pytest.raises(click.UsageError, match="unexpected extra argument"):
        main.make_context("x", ["--rounds", "2", "3"])
