"""The trace of a call: what it says of itself, and what it leaves alone."""

import json
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from helpers import make_cache, make_inputs, make_weights
from helpers.cli import invoke
from rich.console import Console

from mla_numba import MlaDims, MlaProlog
from mla_numba.call.planning import MICRO_TILES, this_machine
from mla_numba.call.ranges import parts_of_a_tile, profiler_range
from mla_numba.call.tile_trace import new_laps, stage_spans_of
from mla_numba.call.trace import (
    PHASES,
    SWEEPS,
    Span,
    StageSpan,
    TileTrace,
    Trace,
)
from mla_numba.call.workspace import Memory
from mla_numba.cli.sweep_times import product_table, trace_table
from mla_numba.kernels import max_threads
from mla_numba.kernels.sweeps.arguments import TokenTile
from mla_numba.kernels.sweeps.phase import HEADS, PACK
from mla_numba.kernels.sweeps.tile import prolog_tile
from tiling import CpuTiling, plan_prolog

DIMS = MlaDims(514, 5, 101, 132, 33, 34)
T = 70


def make_call(n_threads):
    """A prolog that takes its tokens in tiles of 40 and 30, and the arguments of a call."""
    tiling = CpuTiling(unroll_list=(40, 30))
    prolog = MlaProlog(make_weights(DIMS, "b"), tile_config=tiling, n_threads=n_threads)
    cache = make_cache(DIMS, True, 5, 16)
    return prolog, (*make_inputs(DIMS, T, 80), cache, prolog.allocate_output(T))


THREAD_COUNTS = sorted({1, min(2, max_threads())})


@pytest.fixture(params=THREAD_COUNTS)
def traced(request):
    prolog, arguments = make_call(request.param)
    return request.param, prolog.profile(*arguments)[1]


def test_spans_are_in_order_and_inside_their_tile(traced):
    n_threads, trace = traced
    assert [(tile.t0, tile.t) for tile in trace.tiles] == [(0, 40), (40, 30)]
    assert trace.tiles[0].end_ns <= trace.tiles[1].begin_ns
    for tile in trace.tiles:
        assert len(tile.spans) == n_threads * len(PHASES)
        assert all(sum(span.n_tasks for span in tile.spans if span.phase == phase) > 0 for phase in PHASES)
        assert all(span.end_ns > span.begin_ns if span.n_tasks else span.end_ns == span.begin_ns for span in tile.spans)
        for worker in range(n_threads):
            mine = [span for span in tile.spans if span.worker == worker]
            assert [span.phase for span in mine] == ["pack", "down", "query", "key", "heads"]
            moments = [moment for span in mine for moment in (span.begin_ns, span.end_ns)]
            assert [tile.begin_ns, *moments, tile.end_ns] == sorted([tile.begin_ns, *moments, tile.end_ns])


def test_seconds_of_the_sweeps_add_up(traced):
    _, trace = traced
    for tile in trace.tiles:
        assert tuple(tile.seconds) == SWEEPS == ("down", "rows", "heads")
        assert min(tile.seconds.values()) >= 0
        assert sum(tile.seconds.values()) == pytest.approx((tile.end_ns - tile.begin_ns) / 1e9)
    assert sum(trace.seconds.values()) == pytest.approx(trace.total_s)
    assert sum(sum(trace.busy_s(phase)) for phase in PHASES) <= trace.total_s * traced[0]
    # A worker whose thread wakes up late may find nothing left to do.
    assert all(sum(trace.busy_s(phase)) > 0 for phase in ("down", "heads"))


@pytest.mark.parametrize("n_threads", THREAD_COUNTS)
def test_a_profiled_call_computes_the_same(n_threads):
    prolog, arguments = make_call(n_threads)
    plain = [array.copy() for array in prolog(*arguments) if array is not None]
    out, _ = prolog.profile(*arguments)
    assert all((a == b).all() for a, b in zip(plain, out, strict=True))


def all_spans(trace):
    """What is inside a span of a phase, by that span's phase, tile and worker."""
    inside = {}
    for tile in trace.tiles:
        for span in tile.stages:
            inside.setdefault((tile.t0, span.phase, span.worker), []).append(span)
    return inside


def test_products_lie_one_behind_the_other_inside_their_phase():
    prolog, arguments = make_call(min(2, max_threads()))
    plain = [array.tobytes() for array in prolog(*arguments)]
    out, trace = prolog.profile(*arguments, products=True)
    assert plain == [array.tobytes() for array in out]
    for (t0, phase, worker), spans in all_spans(trace).items():
        (tile,) = (tile for tile in trace.tiles if tile.t0 == t0)
        (whole,) = (span for span in tile.spans if (span.phase, span.worker) == (phase, worker))
        spans.sort(key=lambda span: (span.begin_ns, span.end_ns))
        moments = [moment for span in spans for moment in (span.begin_ns, span.end_ns)]
        moments = [whole.begin_ns, *moments, whole.end_ns]
        assert moments == sorted(moments)
        assert len({span.task for span in spans}) == whole.n_tasks
    for names, phase in ((["Matmul_qa", "Matmul_kva"], "down"), (list(trace.stages_s)[2:], "heads")):
        assert 0 < sum(sum(trace.stages_s[name]) for name in names) <= sum(trace.busy_s(phase))


@pytest.mark.parametrize(
    ("quant", "names"),
    [
        ("none", ["Matmul_qa", "Matmul_kva", "Matmul_qb"]),
        ("b", ["Matmul_qa", "Matmul_kva", "QuantMatmul_qb, Dequant_qb"]),
        ("ab", ["QuantMatmul_qa", "QuantMatmul_kva", "QuantMatmul_qb, Dequant_qb"]),
    ],
)
def test_every_task_of_a_plan_has_a_span_for_each_of_its_products(quant, names):
    plan = plan_prolog(DIMS, 40, CpuTiling(), this_machine(), micro=MICRO_TILES, quant=quant, n_threads=2).tile_plans[0]
    laps = new_laps(plan)
    laps[...] = [1, 100, 900, 200, 600]  # the worker, begin and end, and two marks between
    found = {}
    for span in stage_spans_of(laps, plan):
        found.setdefault((span.stages, span.phase, span.worker, span.begin_ns, span.end_ns), []).append(span.task)
    down, heads = plan.down, list(range(plan.heads.n_tasks))
    assert found == {
        (names[0], "down", 1, 100, 900): list(range(down.qa.n_tasks)),
        (names[1], "down", 1, 100, 900): list(range(down.qa.n_tasks, down.n_tasks)),
        (names[2], "heads", 1, 100, 200): heads,
        ("Rope_qRope", "heads", 1, 200, 600): heads,
        ("Matmul_qNope_wUk", "heads", 1, 600, 900): heads,
    }


def test_products_are_noted_only_where_they_are_asked_for(traced):
    _, trace = traced
    assert (trace.stages_s, [tile.stages for tile in trace.tiles]) == ({}, [(), ()])
    prolog, arguments = make_call(1)
    with pytest.raises(TypeError, match="products: expected bool, got int"):
        prolog.profile(*arguments, products=1)


def test_a_call_without_a_trace_leaves_the_spans_alone():
    prolog, arguments = make_call(1)
    prolog(*arguments)
    (memory,) = prolog._memory
    spans = [memory.prepare(tile).buffers.spans for tile in prolog.plan(T).tile_plans]
    for array in spans:
        array.fill(-7)
    prolog(*arguments)
    assert all((array == -7).all() for array in spans)
    prolog.profile(*arguments)
    assert all((array > 0).all() for array in spans)


def by_hand():
    """Two tiles; the second has one worker."""
    ns = {"pack": (0, 1000), "down": (1500, 4000), "query": (4000, 5000), "key": (5000, 5500), "heads": (6000, 9000)}
    first = [Span(phase, w, 100 + a + w, 100 + b + w, 4) for w in range(2) for phase, (a, b) in ns.items()]
    second = [Span(phase, 0, 20_000 + a, 20_000 + b, 1) for phase, (a, b) in ns.items()]
    return Trace([TileTrace(0, 8, 50, 9200, tuple(first)), TileTrace(8, 1, 19_900, 29_100, tuple(second))])


def test_seconds_by_hand():
    trace = by_hand()
    # of the second worker, which ends last: 100 + 4000 + 1 is the end of the down products
    assert trace.tiles[0].seconds == pytest.approx({"down": 4051e-9, "rows": 1000e-9, "heads": 4099e-9})
    assert trace.seconds == pytest.approx({"down": 8151e-9, "rows": 2000e-9, "heads": 8199e-9})
    assert trace.total_s == pytest.approx(18_350e-9)
    assert trace.busy_s("down") == pytest.approx([5000e-9, 2500e-9])
    assert (Trace().busy_s("down"), Trace().total_s) == ([], 0)


def test_a_worker_that_woke_late_moves_no_mark():
    """It came to every phase at once, when the others were at their last task of the heads."""
    trace = by_hand()
    late = tuple(Span(phase, 2, 9180 + i, 9180 + i, 0) for i, phase in enumerate(PHASES))
    first = TileTrace(0, 8, 50, 9200, trace.tiles[0].spans + late)
    assert first.seconds == trace.tiles[0].seconds
    assert sum(first.seconds.values()) == pytest.approx(9150e-9)
    assert Trace([first]).busy_s("heads") == pytest.approx([3000e-9, 3000e-9, 0])


def test_a_second_worker_held_back_until_the_first_has_done_all():
    """The serial build runs workers one behind the other: the second is as late as one can be."""
    tiling = CpuTiling(unroll_list=(T,), n_threads=2)
    prolog = MlaProlog(make_weights(DIMS, "b"), tile_config=tiling, n_threads=1)
    plan = plan_prolog(DIMS, T, tiling, this_machine(), micro=MICRO_TILES, n_threads=2)
    (tile_plan,) = plan.tile_plans
    assert tile_plan.n_workers == 2
    cache = make_cache(DIMS, True, 5, 16)
    inputs = make_inputs(DIMS, T, 80)
    call, own = prolog.bind(*inputs, cache), prolog(*inputs, cache.copy())
    cuts, buffers, taken = Memory(plan).prepare(tile_plan)
    begin = time.perf_counter_ns()
    tile = TokenTile(0, T, PACK, HEADS, True)
    prolog_tile(1, cuts.n_workers, call.tokens, call.caches, prolog._layers.prolog, *taken, tile)
    trace = Trace()
    trace.add(begin, time.perf_counter_ns(), 0, T, buffers.spans)
    assert all((a == b).all() for a, b in zip(call.out, own, strict=True))
    first, second = ([span for span in trace.tiles[0].spans if span.worker == worker] for worker in (0, 1))
    assert all(span.n_tasks > 0 for span in first)
    assert [span.n_tasks for span in second] == [0] * len(PHASES)
    assert min(span.begin_ns for span in second) > max(span.end_ns for span in first)
    ends = {span.phase: span.end_ns for span in first}
    seconds = [(ends["down"] - begin) / 1e9, (ends["query"] - ends["down"]) / 1e9]
    assert list(trace.seconds.values())[:2] == pytest.approx(seconds)
    assert sum(trace.seconds.values()) == pytest.approx(trace.total_s)
    assert sum(trace.busy_s(phase)[1] for phase in PHASES) == 0


def test_chrome_trace_by_hand(tmp_path):
    by_hand().to_chrome(tmp_path / "trace.json")
    read = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    spans = [event for event in read["traceEvents"] if event["ph"] == "X" and event["pid"] == 1]
    assert len(spans) == 3 * len(PHASES)
    assert spans[6] == {
        "name": "Matmul_qa, Matmul_kva", "cat": "down", "ph": "X", "ts": 1.551, "dur": 2.5, "pid": 1, "tid": 1,
        "args": {"call": 0, "t0": 0, "t": 8, "tasks": 4, "tasks of all": 8},
    }  # fmt: skip
    assert spans[-1]["name"].startswith("QuantMatmul_qb")
    assert spans[-1]["ts"] == 25.95
    assert spans[-1]["args"] == {"call": 0, "t0": 8, "t": 1, "tasks": 1, "tasks of all": 1}


def rows_of(events):
    """Names of the rows of a trace."""
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}


def test_a_chrome_trace_of_a_loop_has_all_calls_and_names_its_rows(tmp_path):
    first, second = by_hand(), by_hand()
    later = 50_000
    second.tiles = [
        replace(tile, begin_ns=tile.begin_ns + later, end_ns=tile.end_ns + later,
                spans=tuple(s._replace(begin_ns=s.begin_ns + later, end_ns=s.end_ns + later) for s in tile.spans))
        for tile in second.tiles
    ]  # fmt: skip
    first.to_chrome(tmp_path / "trace.json", second)
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert rows_of(events) == {(0, 0): "calls", (0, 1): "tiles of tokens", (1, 0): "worker 0", (1, 1): "worker 1"}
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == [
        "mla_numba: calls", "mla_numba: workers"
    ]  # fmt: skip
    calls = [e for e in events if e.get("cat") == "call"]
    assert [(e["name"], e["ts"], e["dur"], e["args"]) for e in calls] == [
        ("call 0", 0.0, 29.05, {"t": 9}), ("call 1", 50.0, 29.05, {"t": 9})
    ]  # fmt: skip
    tiles = [e for e in events if e.get("cat") == "tile"]
    assert [(e["name"], e["args"]["call"], e["tid"]) for e in tiles] == [
        ("tile of 8 tokens", 0, 1), ("tile of 1 tokens", 0, 1), ("tile of 8 tokens", 1, 1), ("tile of 1 tokens", 1, 1)
    ]  # fmt: skip


def test_a_phase_says_what_its_products_compute(traced):
    _, trace = traced
    tile, d = trace.tiles[0], DIMS
    down, heads = tile.products_of("down"), tile.products_of("heads")
    assert down == {
        "Matmul_qa": 2 * 40 * d.hidden_size * d.q_lora_rank,
        "Matmul_kva": 2 * 40 * d.hidden_size * (d.kv_lora_rank + d.qk_rope_head_dim),
    }
    up = d.q_lora_rank * (d.qk_nope_head_dim + d.qk_rope_head_dim)
    assert list(heads.values()) == [
        2 * 40 * d.num_attention_heads * up, 2 * 40 * d.num_attention_heads * d.qk_nope_head_dim * d.kv_lora_rank
    ]  # fmt: skip
    assert (tile.products_of("query"), by_hand().tiles[0].products_of("down")) == ({}, {})


def with_products():
    """One tile of one worker that does one task of each product."""
    trace = by_hand()
    tile = trace.tiles[1]
    ends = {"Matmul_qa": (21_600, 22_000), "Matmul_kva": (22_000, 23_900)}
    stages = [StageSpan(name, "down", 0, i, *span) for i, (name, span) in enumerate(ends.items())]
    plan = plan_prolog(DIMS, 1, CpuTiling(), this_machine(), micro=MICRO_TILES, n_threads=1).tile_plans[0]
    return Trace([replace(tile, stages=tuple(stages), plan=plan)])


def test_chrome_trace_has_products_inside_phases(tmp_path):
    with_products().to_chrome(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert [event for event in events if event.get("cat") == "product"] == [
        {"name": "Matmul_qa", "cat": "product", "ph": "X", "ts": 1.7, "dur": 0.4, "pid": 1, "tid": 0,
         "args": {"call": 0, "task": 0}},
        {"name": "Matmul_kva", "cat": "product", "ph": "X", "ts": 2.1, "dur": 1.9, "pid": 1, "tid": 0,
         "args": {"call": 0, "task": 1}},
    ]  # fmt: skip
    (phase,) = (event for event in events if event.get("cat") == "down")
    assert (phase["ts"], phase["dur"]) == (1.6, 2.5)


def test_table_of_products():
    trace = with_products()
    console = Console(width=100)
    with console.capture() as text:
        console.print(product_table(trace))
    lines = [line.split() for line in text.get().splitlines()]
    ops = trace.tiles[0].products_of("down")
    assert ["Matmul_qa", "1", "0.000", f"{ops['Matmul_qa'] / 400:.1f}"] in lines
    assert ["Matmul_kva", "1", "0.002", f"{ops['Matmul_kva'] / 1900:.1f}"] in lines


def test_run_traces_every_call(tmp_path):
    path = tmp_path / "trace.json"
    options = ["--threads", "1", "--tokens", "3", "--repeats", "4", "--no-check", "--trace", str(path)]
    result = invoke("run", "--dims", ",".join(map(str, asdict(DIMS).values())), *options)
    assert result.exit_code == 0, result.output
    events = json.loads(path.read_text())["traceEvents"]
    assert [e["name"] for e in events if e.get("cat") == "call"] == [f"call {i}" for i in range(4)]
    down = [e for e in events if e.get("cat") == "down"]
    assert [e["args"]["call"] for e in down] == [0, 1, 2, 3]
    assert set(down[0]["args"]["operations of all"]) == {"Matmul_qa", "Matmul_kva"}
    products = [e for e in events if e.get("cat") == "product"]
    assert {e["args"]["call"] for e in products} == {0, 1, 2, 3}
    assert {e["name"] for e in products} >= {"Matmul_kva", "Rope_qRope", "Matmul_qNope_wUk"}
    assert "Gop/s a thread" in result.stdout


def test_torch_s_profiler_has_ranges_for_a_call_and_its_phases():
    torch = pytest.importorskip("torch")
    prolog, arguments = make_call(1)
    plain = [array.tobytes() for array in (*prolog(*arguments), *arguments[4].arrays().values())]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _, trace = prolog.profile(*arguments)
    ranges = [event.name for event in profile.events() if event.name.startswith("mla_numba: ")]
    assert ranges == [
        f"mla_numba: prolog of {T} tokens",
        *[f"mla_numba: {phase}" for phase in ("pack", "down", "query", "key", "heads")] * 2,
    ]
    assert plain == [array.tobytes() for array in (*arguments[5], *arguments[4].arrays().values())]
    assert sum(trace.seconds.values()) == pytest.approx(trace.total_s)


def test_without_torch_nothing_is_imported_for_ranges(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.autograd.profiler", raising=False)
    nothing = profiler_range("tile")
    assert len(parts_of_a_tile()) == 1
    seen = []
    profiler = SimpleNamespace(_is_profiler_enabled=False, record_function=seen.append)
    monkeypatch.setitem(sys.modules, "torch.autograd.profiler", profiler)
    assert profiler_range("tile") is nothing
    profiler._is_profiler_enabled = True
    profiler_range("tile")
    assert seen == ["mla_numba: tile"]
    assert [name for name, _, _ in parts_of_a_tile()] == list(PHASES)


def test_chrome_trace_of_no_tokens(tmp_path):
    Trace().to_chrome(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert {event["ph"] for event in events} == {"M"}
    assert rows_of(events) == {(0, 0): "calls", (0, 1): "tiles of tokens"}


def shown(trace):
    console = Console(width=100)
    with console.capture() as text:
        console.print(trace_table(trace))
    return [line.split() for line in text.get().splitlines() if line.strip()]


def test_table_has_a_row_a_phase_and_a_column_a_thread():
    trace = by_hand()
    trace.tiles = [TileTrace(t.t0, t.t, *(1000 * ns for ns in (t.begin_ns, t.end_ns)),
                             tuple(s._replace(begin_ns=1000 * s.begin_ns, end_ns=1000 * s.end_ns) for s in t.spans))
                   for t in trace.tiles]  # fmt: skip
    rows = shown(trace)
    assert rows[0] == ["phase", "thread", "0", "thread", "1"]
    assert ["down", "5.000", "2.500"] in rows
    assert ["waiting", "2.350", "10.350"] in rows


def test_table_of_many_threads_is_a_summary():
    spans = [Span(phase, w, 0, 1_000_000 * (w + 1), 1) for w in range(9) for phase in PHASES]
    rows = shown(Trace([TileTrace(0, 1, 0, 50_000_000, tuple(spans))]))
    assert rows[0] == ["phase", "least", "mean", "most"]
    assert ["key", "1.000", "5.000", "9.000"] in rows
    assert ["waiting", "5.000", "25.000", "45.000"] in rows
