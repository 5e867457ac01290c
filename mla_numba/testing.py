"""Benchmarks that others can call; they live in `tuning`."""

from .tuning.bench import Bench, do_bench
from .tuning.conditions import Conditions
from .tuning.copies import copies_to_be_cold
from .tuning.interval import Interval, median_interval
from .tuning.limit import Share
from .tuning.rates import Probes

__all__ = ["Bench", "Conditions", "Interval", "Probes", "Share", "copies_to_be_cold", "do_bench", "median_interval"]
