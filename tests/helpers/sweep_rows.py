"""Rows of a sweep by hand: what was timed, and what the planner's own plan is against itself."""

from mla_numba.tuning.interval import Interval
from mla_numba.tuning.study import Row
from mla_numba.tuning.verdict import Control
from tiling import Rates

RATES = Rates(1e10, 1e10, 1e10, None)
CONTROL = Control(8, "b", Interval(1.0, 0.99, 1.01, 30), busy=False)
FASTER = {"final_ratio": 0.95, "final_low": 0.94, "final_high": 0.96, "final_wins": 1.0, "n_final_pairs": 30}


def row(number, t=8, status="done", ratio=1.0, **settings):
    if ratio is None:
        return Row(number, t, "b", settings, status)
    return Row(
        number, t, "b", settings, status, n_pairs=7, min_ms=ratio, median_ms=2 * ratio, baseline_ms=2.0, ratio=ratio,
        wins=0.5, exact=True, n_bytes=10**7, flops=4 * 10**6 * t, int8_ops=10**6 * t, gb_s=5.0, gop_s=2.5 * t / ratio,
        plan="line\nmore",
    )  # fmt: skip
