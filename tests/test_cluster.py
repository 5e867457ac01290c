"""Machines that are described: what their files may say, where ranks are, and what ranks are predicted to take."""

import json
from dataclasses import replace
from math import prod

import pytest
from helpers import ROOT
from helpers.cli import invoke
from helpers.machines import CLUSTER

from mla_numba import MlaDims, MlaWeights
from mla_numba.call.planning import micro_tiles
from mla_numba.cli.plan_ranks import sizes_up_to
from mla_numba.distributed.down_share import DownShare
from mla_numba.distributed.prediction import predict
from mla_numba.kernels import ISA, ISAS
from tiling import Cluster, Costs, LinkRate, PrologPlan, plan_prolog
from tiling.cluster import Placement
from tiling.machine import ISA_NAMES

FULL = MlaDims.deepseek_v32()
FIELDS = json.loads(CLUSTER.to_json())


@pytest.fixture
def cluster_file(tmp_path):
    def write(text):
        path = tmp_path / "machine.json"
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return write


# where ranks are


@pytest.mark.parametrize(
    ("size", "n_threads", "want"),
    [
        (1, 8, Placement(1, 1, 1, 1)),
        (2, 8, Placement(1, 2, 1, 1)),
        (3, 8, Placement(2, 2, 1, 1)),
        (4, 4, Placement(1, 4, 2, 1)),
        (5, 4, Placement(2, 4, 2, 1)),
        (3, 3, Placement(1, 3, 2, 1)),
        (5, 3, Placement(2, 4, 2, 1)),  # two of three threads on a socket of eight cores
        (16, 1, Placement(1, 16, 8, 1)),
        (17, 1, Placement(2, 16, 8, 1)),
        (1, 16, Placement(1, 1, 1, 2)),
        (2, 9, Placement(2, 1, 1, 2)),
    ],
)
def test_placement(size, n_threads, want):
    assert CLUSTER.place(size, n_threads) == want


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5, 8, 9, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 40])
def test_no_socket_has_more_threads_than_cores(size, n_threads):
    place = CLUSTER.place(size, n_threads)
    assert place.n_nodes * place.ranks_a_node >= size > (place.n_nodes - 1) * place.ranks_a_node
    assert place.ranks_a_socket * n_threads <= CLUSTER.n_cores * place.sockets_a_rank


@pytest.mark.parametrize(
    ("size", "n_threads", "part"), [(1, 8, 1), (4, 4, 1 / 2), (16, 1, 1 / 8), (1, 16, 2), (2, 4, 1)]
)
def test_ranks_of_a_socket_share_its_memory(size, n_threads, part):
    costs = CLUSTER.costs(size, n_threads)
    assert costs.memory_bytes_s == CLUSTER.memory_bytes_s * part
    assert (costs.core_bytes_s, costs.bf16_flops_s, costs.launch_s) == (2e10, 1e11, 1e-5)
    assert costs.row_s == Costs.of_isa("avx2").row_s
    assert replace(CLUSTER, launch_s=None).costs(1, 1).launch_s == Costs.of_isa("avx2").launch_s


@pytest.mark.parametrize(
    ("size", "want"),
    [(2, LinkRate(1e-6, 1e10)), (4, LinkRate(1e-5, 2e9)), (5, LinkRate(1.5e-5, 2e9)), (64, LinkRate(3e-5, 2e9))],
)
def test_an_all_gather_has_a_latency_a_step_and_the_slower_link(size, want):
    found = CLUSTER.gather_link(size, 8)
    assert found.latency_s == pytest.approx(want.latency_s)
    assert found.bytes_s == pytest.approx(want.bytes_s)


def test_a_rank_has_no_more_threads_than_a_node_has_cores():
    for ask in (CLUSTER.machine, lambda n: CLUSTER.place(1, n), lambda n: CLUSTER.costs(1, n)):
        with pytest.raises(ValueError, match=r"^n_threads: expected at most 16, got 17"):
            ask(17)
    with pytest.raises(ValueError, match=r"^size: expected at least 2, got 1"):
        CLUSTER.gather_link(1, 8)


def test_json():
    assert Cluster.from_json(CLUSTER.to_json()) == CLUSTER
    fewer = {name: value for name, value in FIELDS.items() if name != "launch_s"}
    assert Cluster.from_json(json.dumps(fewer)).launch_s is None


WRONG = [
    ({"isa": "sse9"}, f"isa: expected one of {', '.join(ISA_NAMES)}, got 'sse9'"),
    ({"n_cores": 0}, "n_cores: expected at least 1, got 0"),
    ({"n_cores": 1.5}, "n_cores: expected int, got float"),
    ({"n_sockets": 4096, "n_cores": 4096}, "n_cores: expected at most 16, got 4096"),
    ({"l2_bytes": "1M"}, "l2_bytes: expected int, got str"),
    ({"l3_bytes": -1}, "l3_bytes: expected at least 0, got -1"),
    ({"memory_bytes_s": 0}, "memory_bytes_s: expected a float > 0, got 0"),
    ({"core_bytes_s": "fast"}, "core_bytes_s: expected a float > 0, got 'fast'"),
    ({"launch_s": -1.0}, "launch_s: expected a float > 0, got -1.0"),
    ({"name": 5}, "name: expected str, got int"),
    ({"socket_link": 5}, "socket_link: expected a JSON object for LinkRate, got '5'"),
    ({"node_link": {"latency_s": 1e-6}}, "node_link: expected the fields of LinkRate, got an object without 'bytes_s'"),
    ({"node_link": {"latency_s": 0, "bytes_s": 1}}, "latency_s: expected a float > 0, got 0"),
    ({"colour": "red"}, "expected the fields of Cluster, got an object with 'colour'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[next(iter(change)) for change, _ in WRONG])
def test_a_wrong_field_is_refused_by_name(cluster_file, change, message):
    path = cluster_file(FIELDS | change)
    with pytest.raises((TypeError, ValueError)) as raised:
        Cluster.from_json(path.read_text())
    assert str(raised.value).removeprefix("text: ") == message
    result = invoke("plan", "--tokens", "1", "--machine", path)
    assert result.exit_code == 2
    assert f"Invalid value for '--machine': {path}: {message}" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "expected JSON, got"), ("[]", "expected a JSON object, got list"), ("{}", "got an object without 'arch'")],
)
def test_a_file_of_something_else_is_refused(cluster_file, text, message):
    path = cluster_file(text)
    result = invoke("plan", "--tokens", "1", "--machine", path)
    said = " ".join(result.output.split())
    assert (result.exit_code, f"'--machine': {path}: " in said, message in said) == (2, True, True)
    assert said.count(str(path)) == 1


def test_a_link_is_one():
    with pytest.raises(TypeError, match=r"^node_link: expected LinkRate, got tuple"):
        replace(CLUSTER, node_link=(1e-6, 1e9))


def planned(t, size, n_threads, quant="b"):
    dims = replace(FULL, num_attention_heads=-(-128 // size))
    return plan_prolog(
        dims, t, None, CLUSTER.machine(n_threads), micro=micro_tiles(ISAS["avx2"]), quant=quant, n_threads=n_threads,
        costs=CLUSTER.costs(size, n_threads),
    )  # fmt: skip


def modelled(plan):
    """Seconds of the down sweeps, and of the others."""
    chosen = [plan.chooser(plan.tile_plan(factor)).choose() for _, factor in plan.tiles]
    return sum(c.down.seconds for c in chosen), sum(c.rows_s + c.heads.seconds for c in chosen)


@pytest.mark.parametrize("quant", ["none", "ab"])
@pytest.mark.parametrize("t", [1, 40, 600])
def test_one_rank_takes_what_its_plan_says(t, quant):
    found, plan = predict(CLUSTER, FULL, t, 1, 8, quant), planned(t, 1, 8, quant)
    assert found.seconds == found.replicated_s == found.split_s == sum(modelled(plan))
    assert (found.exchange_s, found.exchanged_bytes, found.n_heads, found.n_nodes) == (0, 0, 128, 1)
    assert found.weight_bytes == plan.tile_plans[0].weight_bytes


def test_a_split_by_hand():
    """Five ranks of 8 threads at 8 tokens: 132 panels of 16 columns, 27 on the widest rank; three nodes."""
    found, plan = predict(CLUSTER, FULL, 8, 5, 8, "b"), planned(8, 5, 8)
    down_s, others_s = modelled(plan)
    assert found.replicated_s == down_s + others_s
    least = min(DownShare(FULL, 5, 16).n_bytes(8))
    assert (found.n_heads, found.n_nodes, found.exchanged_bytes) == (26, 3, 8 * 2112 * 2 - least)
    assert found.exchange_s == pytest.approx(3 * 5e-6 + found.exchanged_bytes / 2e9)
    whole = plan.chooser(plan.tile_plans[0])
    qa, qb, kva, wuk = whole.shapes
    share = replace(whole, shapes=(replace(qa, n=20 * 16), qb, replace(kva, n=7 * 16), wuk)).choose()
    assert found.split_s == pytest.approx(share.down.seconds + others_s + found.exchange_s + 1e-5)


@pytest.mark.parametrize("n_threads", [1, 8, 16])
@pytest.mark.parametrize("t", [1, 64, 1024])
def test_no_prediction_is_below_the_limit(t, n_threads):
    for size in (1, 2, 3, 16, 128):
        found = predict(CLUSTER, FULL, t, size, n_threads, "b")
        assert 0 < found.least_s < found.seconds <= max(found.replicated_s, found.split_s)
        assert found.exchange_s < found.split_s


def test_a_slow_link_makes_auto_replicate():
    slow = replace(CLUSTER, socket_link=LinkRate(1.0, 1e3), node_link=LinkRate(1.0, 1e3))
    assert predict(slow, FULL, 8, 4, 8, "b").down == "replicated"
    assert predict(CLUSTER, FULL, 8, 4, 8, "b").down == "split"
    assert predict(slow, FULL, 8, 4, 8, "b").replicated_s == predict(CLUSTER, FULL, 8, 4, 8, "b").replicated_s


def test_shares_are_those_of_the_machine_s_own_panels():
    """Whatever instruction set this process runs."""
    for isa in ISAS.values():
        found = predict(replace(CLUSTER, isa=isa.name), FULL, 8, 3, 8, "b")
        share = DownShare(FULL, 3, isa.nr)
        assert found.exchanged_bytes == sum(share.n_bytes(8)) - min(share.n_bytes(8))


def test_weights_of_a_rank_are_those_that_it_packs():
    dims = MlaDims(256, 6, 96, 64, 32, 32)
    for size in (1, 2, 3):
        packed = MlaWeights.random(dims).shard(0, size).pack(1)
        found = predict(replace(CLUSTER, isa=ISA.name), dims, 8, size, 2, "b")
        assert found.weight_bytes == packed.nbytes


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match=r"^t: expected at least 1, got 0"):
        predict(CLUSTER, FULL, 0, 1, 8)
    with pytest.raises(TypeError, match=r"^cluster: expected Cluster, got "):
        predict({}, FULL, 1, 1, 8)


def test_more_ranks_than_heads_are_refused():
    with pytest.raises(ValueError, match=r"^size: expected at most 128 ranks, one for each head, got 129"):
        predict(CLUSTER, FULL, 1, 129, 8, "b")


# the command


@pytest.mark.parametrize(
    ("ranks", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_sizes_are_doubled(ranks, sizes):
    assert sizes_up_to(ranks) == sizes


def test_plan_ranks(cluster_file):
    path = cluster_file(FIELDS)
    command = ("plan", "--tokens", "1,32", "--machine", path, "--ranks", 3, "--threads", 4, "--quant", "none")
    facts = json.loads(invoke(*command, "--json").output)
    want = [predict(CLUSTER, FULL, t, size, 4, "none") for t in (1, 32) for size in (1, 2, 3)]
    assert facts["predictions"] == [one.as_dict() for one in want]
    assert (facts["machine"], facts["quant"], facts["dims"]["hidden_size"]) == (FIELDS, "none", 7168)
    shown = invoke(*command).output
    assert str(CLUSTER) in shown
    assert "modelled, not measured: quant none, 4 threads a rank" in shown
    rows = [line.split() for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert [(int(row[0]), int(row[1]), int(row[3])) for row in rows] == [(one.t, one.size, one.n_heads) for one in want]
    for row, one in zip(rows, want, strict=True):
        alone = next(other for other in want if other.t == one.t)
        assert float(row[-3]) == round(one.seconds * 1e6)
        assert float(row[-2]) == pytest.approx(alone.seconds / one.seconds, abs=0.006)
        assert (one.down in row) == (one.size > 1)


def test_plan_for_a_machine(cluster_file):
    path = cluster_file(FIELDS)
    assert PrologPlan.from_json(invoke("plan", "--tokens", "8", "--machine", path, "--json").output) == planned(8, 1, 8)
    said = invoke("plan", "--tokens", "8", "--machine", path, "--threads", 3, "--explain").output
    assert said == f"{planned(8, 1, 3).explain()}\n"
    preset = invoke("plan", "--tokens", "8", "--machine", path, "--preset", "decode_b64_s2").output
    assert "3 threads" not in preset
    assert "8 threads on made up" in preset


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "2"], "--ranks: expected together with --machine, got 2 alone"),
        (["--tokens", "1,2"], "--tokens: expected several numbers with --ranks only"),
        (["--machine", "FILE", "--tuned"], "--tuned: expected without --machine, for it is what was found on this one"),
        (["--machine", "FILE", "--ranks", "2", "--explain"], "--explain: expected without --ranks, got both"),
        (["--machine", "FILE", "--ranks", "2", "--preset", "decode_b64_s2"], "--preset: expected without --ranks"),
        (["--machine", "FILE", "--threads", "17"], "'--threads': n_threads: expected at most 16, got 17"),
        (["--machine", "FILE", "--ranks", "2", "--threads", "17"], "'--threads': n_threads: expected at most 16"),
        (["--machine", "FILE", "--ranks", "129"], "'--ranks': size: expected at most 128 ranks, one for each head"),
        (["--machine", "nowhere.json"], "'nowhere.json' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together(cluster_file, options, message):
    path = cluster_file(FIELDS)
    given = [] if "--tokens" in options else ["--tokens", "8"]
    result = invoke("plan", *given, *[path if word == "FILE" else word for word in options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


# the page


@pytest.fixture(scope="module")
def chart():
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    return pytest.importorskip("scaling_chart")


def test_the_page_and_its_picture_are_what_the_model_says(chart):
    text = (ROOT / chart.PAGE).read_text(encoding="utf-8")
    made = chart.render(text)
    assert made[chart.PAGE] == text, "run python bench/scaling_chart.py"
    kept = (ROOT / chart.CHART).read_text(encoding="utf-8")
    assert chart.shows_the_same(kept, made[chart.CHART]), "run python bench/scaling_chart.py"
    assert "prefers-color-scheme" in kept


def test_another_machine_is_another_page(chart):
    text = (ROOT / chart.PAGE).read_text(encoding="utf-8")
    made, slower = chart.render(text), chart.render(text.replace('"memory_bytes_s": 400e9', '"memory_bytes_s": 40e9'))
    assert not chart.shows_the_same(made[chart.CHART], slower[chart.CHART])
    times = [
        page.split("<!-- times -->")[1].split("<!-- /times -->")[0] for page in (made[chart.PAGE], slower[chart.PAGE])
    ]
    assert times[0] != times[1]


def test_ranks_pay_as_long_as_twice_as_many_save_a_tenth(chart):
    def of(*seconds):
        one = predict(CLUSTER, FULL, 1, 1, 1, "b")
        return [replace(one, size=2**i, replicated_s=s) for i, s in enumerate(seconds)]

    assert [chart.pays_up_to(of(*s)) for s in ((10, 9, 8), (10, 9, 8.2), (10, 9.5, 1), (10, 10), (10, 5, 2))] == [
        4, 2, 1, 1, 4
    ]  # fmt: skip


def test_the_cache_of_the_page_is_the_cache(chart):
    assert chart.cache_bytes_a_slot(FULL) == prod((512, 1)) + 64 * 2 + 4 * 4
