"""How far a median is known, shares of the limit, and what speaks against figures: a busy machine."""

import random
import re
import subprocess
import sys
import time
from statistics import median

import pytest

from mla_numba.testing import Bench, do_bench
from mla_numba.tuning import conditions
from mla_numba.tuning.conditions import Conditions, Load, Meter, n_cpus, watch_idle
from mla_numba.tuning.copies import are_cold, copies_to_be_cold
from mla_numba.tuning.interval import median_interval
from mla_numba.tuning.limit import FROM_CACHES, SLOW_PROBES, share_of
from mla_numba.tuning.rates import Probed, Probes, slower_together
from mla_numba.tuning.turns import quiet, rounds
from mla_numba.tuning.watch import Watch, best_rates, mean_rates
from tiling import Rates, Work


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 15, 30, 200, 1000])
def test_the_interval_of_a_median_is_scipy_s(n):
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(n)
    values = [draw.lognormvariate(0, 1) for _ in range(n)]
    found = median_interval(values)
    wanted = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert (found.median, found.n) == (median(values), n)
    if n < 6:
        assert (found.low, found.high, found.is_known) == (None, None, False)
        assert str(found) == f"{found.median:.3f} (no interval: {n} values)"
        return
    assert (found.low, found.high) == (wanted.low, wanted.high)
    assert found.low < found.median < found.high


@pytest.mark.parametrize("n", [7, 15, 60])
def test_the_interval_holds_the_true_median_as_often_as_it_says(n):
    draw = random.Random(n)
    held = 0
    for _ in range(1000):
        found = median_interval([draw.expovariate(1) for _ in range(n)])
        held += found.low <= 0.6931 <= found.high
    assert held / 1000 > 0.93  # at least 0.95; 0.02 are three standard deviations


def test_intervals_of_nothing_are_refused():
    with pytest.raises(ValueError, match="values: expected at least one, got none"):
        median_interval([])
    for confidence in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1, got"):
            median_interval([1.0], confidence)


def test_a_share_above_one_is_none_with_a_reason():
    assert share_of(1.0, 2.0, cold=True) == (0.5, "")
    assert share_of(2.0, 2.0, cold=False) == (1.0, "")
    assert share_of(2.1, 2.0, cold=True) == (None, SLOW_PROBES)
    assert share_of(2.1, 2.0, cold=False) == (None, FROM_CACHES)
    assert (are_cold(2, 1), are_cold(1, 2**50), are_cold(2, 2**50)) == (False, False, True)
    assert copies_to_be_cold(2**40) == 2 < copies_to_be_cold(2**20)
    assert are_cold(copies_to_be_cold(2**20), 2**20) or copies_to_be_cold(2**20) == 2**10


def test_turns_move_on_by_one_and_take_the_next_copy():
    made = []
    contenders = [[lambda what=(name, i): made.append(what) for i in range(2)] for name in "abc"]
    for _, seconds in zip(range(3), rounds(contenders), strict=False):
        assert len(seconds) == 3
        assert min(seconds) > 0
    assert [name for name, _ in made] == [*"abc", *"bca", *"cab"]
    assert [copy for _, copy in made] == [0, 1] * 4 + [0]


def test_quiet_leaves_the_collector_as_it_was():
    import gc

    with quiet():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with quiet():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.fixture
def clock(monkeypatch):
    """Seconds on the wall, of this process and of all CPUs, to be set by hand; two CPUs."""
    now = {"wall": 0.0, "own": 0.0, "busy": 0.0}
    monkeypatch.setattr(conditions._Moment, "now", classmethod(lambda cls: cls(now["wall"], now["own"], now["busy"])))
    monkeypatch.setattr(conditions, "n_cpus", lambda: 2)
    return now


def test_what_others_take_is_what_is_busy_without_our_own(clock):
    meter = Meter()
    clock |= {"wall": 0.05, "busy": 0.05}
    assert meter.since_start().cores is None  # too short for what is counted in hundredths of a second
    clock |= {"wall": 1.0, "own": 0.5, "busy": 1.5}
    assert meter.since_start() == (1.0, 1.0)
    assert meter.lately() == (1.0, 1.0)
    clock |= {"wall": 1.6, "own": 1.1, "busy": 2.1}
    assert meter.lately().cores == pytest.approx(0.0)  # the last 0.6 seconds
    assert meter.since_start().cores == pytest.approx(1.0 / 1.6)
    clock |= {"busy": 0.0}
    assert meter.since_start().cores == 0.0


@pytest.mark.usefixtures("clock")
def test_threads_are_disturbed_where_they_have_no_core_each():
    for cores, n_threads, disturbed in ((0.2, 2, False), (0.5, 2, True), (1.0, 1, False), (1.9, 1, True)):
        assert Load(1.0, cores).disturbs(n_threads) == disturbed
    assert not Load(1.0, None).disturbs(2)


def test_a_busy_process_is_seen():
    if conditions.busy_seconds() is None:
        pytest.skip("nothing counts here what CPUs do")
    code = "import time\nend = time.monotonic() + 60\nprint(1, flush=True)\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.read(1)
        seen = max(watch_idle(0.5).cores for _ in range(4))  # it may have to share its core
        other.kill()
    assert seen > 0.25


def test_our_own_work_is_not_another_s():
    if conditions.busy_seconds() is None:
        pytest.skip("nothing counts here what CPUs do")

    def seen():
        """What others take while this process works, beyond what they take while it sleeps."""
        idle, meter, end = watch_idle(0.5), Meter(), time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
        return meter.since_start().cores - idle.cores

    assert min(seen() for _ in range(4)) < 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"before": 0.97}, "others took 0.97 of 2 cores before the measurement"),
        ({"during": 1.5}, "others took 1.50 of 2 cores during the measurement"),
        ({"after": 0.5}, "others took 0.50 of 2 cores after the measurement"),
        ({"spread": 1.0}, "the slowest quarter of repeated probes took 2.00 times as long as the fastest"),
        ({"slower": ("2 threads read 1.0 GB/s, slower than 1 thread (2.0)",)}, "2 threads read 1.0 GB/s, slower than"),
    ],
)
def test_each_sign_of_others_makes_a_machine_busy(given, said):
    found = Conditions(2, 2, **given)
    assert found.is_busy
    assert str(found).startswith(f"busy machine, do not trust these figures: {said}")
    assert (found.as_dict()["busy"], len(found.as_dict()["reasons"])) == (True, 1)
    both = Conditions(2, 2, **({"before": 1.0, "after": 1.0} | given))
    assert str(both).endswith(" (and 1 more sign)" if len(both.reasons) == 2 else " (and 2 more signs)")
    assert len(both.reasons) in (2, 3)


def test_a_quiet_machine_is_said_to_be_one():
    found = Conditions(2, 2, before=0.0, during=0.2, after=0.1, spread=0.05)
    assert (found.is_busy, found.reasons) == (False, [])
    assert str(found) == "quiet machine: others took at most 0.20 of 2 cores"
    assert str(Conditions(2, 2)) == "quiet machine: the load is not known here"


def test_where_nothing_is_counted_the_load_is_not_known(monkeypatch, tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(conditions, "_STAT", path)
        assert conditions.busy_seconds() is None
        assert watch_idle(0.15).cores is None
    (tmp_path / "stat").write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 20 30 7000 5 3 4 6 0 0\nintr 1\n")
    monkeypatch.setattr(conditions, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(conditions.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(conditions.os, "sysconf", lambda name: 100)
    assert conditions.busy_seconds() == pytest.approx((100 + 20 + 30 + 3 + 4 + 6) / 100)
    assert n_cpus() == 1


RATES = {1: Rates(10e9, 100e9, 400e9, 200e9), 2: Rates(12e9, 190e9, 800e9, 390e9)}


def test_more_threads_that_reach_less_are_named():
    assert slower_together(RATES) == []
    assert slower_together({1: RATES[1]}) == []
    assert slower_together({1: RATES[1], 2: Rates(9.9e9, 100e9, 400e9, 200e9)}) == []  # within what is measured
    busy = Rates(9e9, 90e9, 800e9, 150e9)
    assert slower_together({2: busy, 1: RATES[1]}) == [
        "2 threads read 9.0 GB/s, slower than 1 thread (10.0)",
        "2 threads multiply fp32 at 90.0 GFLOP/s, slower than 1 thread (100.0)",
        "2 threads multiply bf16 at 150.0 GFLOP/s, slower than 1 thread (200.0)",
    ]


def test_rates_are_combined_one_by_one():
    a, b = Rates(1.0, 4.0, 3.0, None), Rates(3.0, 2.0, 3.0, None)
    assert (mean_rates(a, b), best_rates(a, b)) == (Rates(2.0, 3.0, 3.0, None), Rates(3.0, 4.0, 3.0, None))
    assert mean_rates(RATES[1], RATES[1]) == RATES[1]


def test_probes_say_how_far_their_runs_are_apart(monkeypatch):
    from mla_numba.tuning import rates

    runs = [[1.0], [1.0, 1.0, 1.0, 3.0], [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [9.0, 1.0]]
    monkeypatch.setattr(rates, "_time_in_turns", lambda functions, seconds: runs[: len(functions)])
    assert Probes(1, buffer_bytes=1, steps=1).measure().spread == pytest.approx(2.0)


class FakeProbes:
    """Of two threads; the second measurement is worse."""

    n_threads = 2

    def __init__(self):
        self.spreads = [0.1, 0.9]

    def measure(self, n, seconds):
        return Probed(RATES[2], self.spreads.pop(0))

    def rates(self, n, seconds):
        return RATES[1]


def test_a_watch_looks_before_and_behind(clock, monkeypatch):
    monkeypatch.setattr("mla_numba.tuning.watch.watch_idle", lambda: Load(0.3, 0.0))
    monkeypatch.setattr("mla_numba.tuning.watch.n_cpus", lambda: 2)
    watch = Watch(FakeProbes(), 0.0)
    assert watch.rates == RATES[2]
    clock |= {"wall": 2.0, "own": 1.0, "busy": 3.0}
    assert watch.lately().cores == 1.0
    assert watch.so_far.reasons == ["others took 1.00 of 2 cores during the measurement"]
    seen = watch.end()
    assert seen.conditions == Conditions(2, 2, 0.0, 1.0, 0.0, 0.9, ())
    assert (seen.before, seen.after) == (RATES[2], RATES[2])


def bench_of(ms, work=None, copies=1, **found):
    n_copies = dict.fromkeys(ms, copies)
    return Bench(ms, Conditions(1, 2, **found), RATES[1], RATES[1], work, n_copies)


def test_a_bench_by_hand():
    found = bench_of({"a": (1.0,) * 9, "b": (2.0,) * 4 + (1.5,) * 5}, Work(5_000_000))
    assert found.least_ms == pytest.approx(0.5)
    assert found.median("b") == (1.5, 1.5, 2.0, 9)
    assert found.ratio("b", "a") == (1.5, 1.5, 2.0, 9)
    assert (found.share("a"), found.share("b").value) == ((0.5, ""), pytest.approx(1 / 3))
    assert str(found) == (
        "a: 1.000 (1.000 to 1.000) ms, 50% of the limit\n"
        "b: 1.500 (1.500 to 2.000) ms, 1.500 (1.500 to 2.000) times a, 33% of the limit"
    )
    assert repr(found) == "<Bench: a 1.000 (1.000 to 1.000) ms, b 1.500 (1.500 to 2.000) ms, 9 rounds>"
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", found._repr_html_())
    assert cells == ["a", "1.000 (1.000 to 1.000)", "", "50%", "b", "1.500 (1.500 to 2.000)", *cells[6:]]
    assert cells[6:] == ["1.500 (1.500 to 2.000)", "33%"]
    first, second = found.as_dict()["implementations"]
    assert (first["name"], first["share"], first["ratio"]["median"]) == ("a", 0.5, 1.0)
    assert (second["median_ms"], second["min_ms"]) == ({"median": 1.5, "low": 1.5, "high": 2.0, "n": 9}, 1.5)


def test_a_bench_flatters_nobody():
    found = bench_of({"a": (0.1,) * 9}, Work(5_000_000), spread=2.0)
    busy, line = str(found).splitlines()
    assert busy.startswith("busy machine, do not trust these figures: the slowest quarter of repeated probes took 3.00")
    assert line == f"a: 0.100 (0.100 to 0.100) ms, no share of the limit: {FROM_CACHES}"
    assert bench_of({"a": (0.1,) * 9}, Work(2**31), 99).share("a") == (None, SLOW_PROBES)
    assert bench_of({"a": (0.1,) * 9}).share("a") is None
    assert str(bench_of({"a": (0.1,) * 9})) == "a: 0.100 (0.100 to 0.100) ms"


TINY = Probes(1, buffer_bytes=1, steps=1)


def test_do_bench_times_calls_in_turns():
    made = []
    calls = {"a": [lambda: made.append("a0"), lambda: made.append("a1")], "b": lambda: made.append("b")}
    found = do_bench(calls, n_rounds=3, probes=TINY, probe_seconds=0)
    assert made == ["a0", "a1", "b", *("a0", "b"), *("b", "a1"), *("a0", "b")]
    assert [len(ms) for ms in found.ms.values()] == [3, 3]
    assert (found.conditions.n_threads, found.work, found.least_ms) == (1, None, None)
    assert found.n_copies == {"a": 2, "b": 1}


def test_do_bench_of_one_call_goes_on_for_some_seconds():
    found = do_bench(lambda: time.sleep(0.001), seconds=0.03, probes=TINY, probe_seconds=0, work=Work(10**6))
    assert 15 <= len(found.ms["fn"]) < 31
    assert found.median("fn").low >= 1.0
    share, reason = found.share("fn")
    assert (share is None) == bool(reason) == (found.least_ms > found.median("fn").median)
    assert len(do_bench([time.perf_counter] * 2, seconds=0, probes=TINY, probe_seconds=0).ms["fn"]) == 15


@pytest.mark.parametrize(
    ("fn", "settings", "error", "said"),
    [
        ([], {}, ValueError, "fn: expected at least one call of each implementation, got none"),
        ({}, {}, ValueError, "fn: expected at least one call of each implementation, got none"),
        ({"a": []}, {}, ValueError, "fn: expected at least one call of each implementation, got none"),
        ([1], {}, TypeError, "fn: expected what can be called without arguments, got int"),
        (print, {"n_rounds": 0}, ValueError, "n_rounds: expected at least 1, got 0"),
        (print, {"seconds": float("nan")}, ValueError, "seconds: expected a number"),
        (print, {"n_threads": 2, "probes": TINY}, ValueError, "n_threads: expected the 1 of the probes, got 2"),
    ],
)
def test_do_bench_refuses_what_it_cannot_time(fn, settings, error, said):
    with pytest.raises(error, match=said):
        do_bench(fn, **settings)
