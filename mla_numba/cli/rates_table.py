"""The rates of a machine as tables."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group
from rich.table import Column, Table

from tiling import Rates

from ..tuning.rates import rates_as_dict

__all__ = ["show_rates"]


def show_rates(by_threads: Mapping[int, Rates], least: Mapping[int, float]) -> Group:
    """Rates by number of threads, and the least milliseconds that the last of them allow, by number of tokens."""
    has_bf16 = any(rates.bf16_flops_s is not None for rates in by_threads.values())
    bf16 = ["bf16 dot GFLOP/s"] if has_bf16 else []
    rates_table = _numbers("threads", "read GB/s", "FMA GFLOP/s", "int8 dot GOP/s", *bf16)
    for n, rates in by_threads.items():
        rates_table.add_row(str(n), *(f"{rate:.1f}" for rate in rates_as_dict(rates).values()))
    least_table = _numbers("tokens", "least possible ms")
    for t, milliseconds in least.items():
        least_table.add_row(str(t), f"{milliseconds:.3f}")
    fastest = "max(FMA, bf16 dot)" if has_bf16 else "FMA"
    formula = f"max(bytes / read, flops / {fastest} + ops / int8 dot)"
    heading = f"a decode call, quant b, {max(by_threads)} threads:\n{formula}"
    return Group(rates_table, heading, least_table)


def _numbers(*headings: str) -> Table:
    return Table(*(Column(heading, justify="right") for heading in headings), box=box.SIMPLE)
