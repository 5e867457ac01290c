"""Measure how far `numerics="cann"` is from "pypto": the same weights and tokens through both.

`python bench/numerics_profiles.py --tokens 512` prints a table a mode, DeepSeek-V3.2's dimensions, random weights and
hidden states. The first tokens of both profiles are compared with the reference first, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table

import mla_numba as mla
from mla_numba.base.modes import NUMERICS
from mla_numba.oracle.bits import check_output, reference_run
from mla_numba.oracle.inputs import random_inputs
from tiling import ceil_div

Array = np.ndarray[Any, Any]
BLOCK_SIZE = 128


@dataclass(frozen=True)
class Difference:
    """An output of "cann" less that of "pypto".

    `largest` is in steps of a code, relative for scales, absolute for bf16, as `unit` says; `relative_rms` is the root
    of the mean square of the difference over that of the output.
    """

    name: str
    n: int
    n_differ: int
    largest: float
    unit: str
    relative_rms: float


def difference(name: str, pypto: Array, cann: Array) -> Difference:
    """Compares arrays of one shape and dtype; zero scales, of zero rows, are equal in both."""
    a, b = pypto.astype(np.float64), cann.astype(np.float64)
    delta = np.abs(b - a)
    unit = "relative" if "scale" in name else "code" if pypto.dtype == np.int8 else "absolute"
    largest = delta / np.where(a == 0, 1, np.abs(a)) if unit == "relative" else delta
    rms = float(np.sqrt(np.mean(a * a)))
    relative_rms = float(np.sqrt(np.mean(delta * delta))) / rms if rms else 0.0
    return Difference(name, a.size, int(np.count_nonzero(delta)), float(largest.max()), unit, relative_rms)


def measure(dims: mla.MlaDims, quant: str, t: int, n_checked: int, seed: int = 0) -> list[Difference]:
    """Both profiles on `t` random tokens, the first `n_checked` of which have to equal the reference's."""
    weights = mla.MlaWeights.random(dims, seed, quant)
    packed = weights.pack()
    inputs = random_inputs(dims, t, seed, t)._replace(cache_index=np.arange(t))
    arrays = []
    for numerics in NUMERICS:
        prolog = mla.MlaProlog(packed, numerics=numerics)
        first = inputs._make(array[:n_checked] for array in inputs)
        cache = mla.PagedCache.allocate(dims, 1, max(n_checked, 1), quantized="b" in quant)
        want = reference_run(weights, *first, cache, numerics=numerics)
        mismatches = check_output(prolog(*first, cache), cache, want)
        if mismatches:
            raise click.ClickException("\n".join(map(str, mismatches)))
        cache = mla.PagedCache.allocate(dims, ceil_div(t, BLOCK_SIZE), BLOCK_SIZE, quantized="b" in quant)
        out = prolog(*inputs, cache)
        rows = {name: array.reshape(-1, array.shape[-1])[:t] for name, array in cache.arrays().items()}
        arrays.append({name: array for name, array in out._asdict().items() if array is not None} | rows)
    return [difference(name, arrays[0][name], array) for name, array in arrays[1].items()]


def table(quant: str, t: int, found: list[Difference]) -> Table:
    """A mode's differences, as a table that a page of text can hold."""
    headers = [Column("output"), *(Column(h, justify="right") for h in ("elements", "differ", "largest", "rms"))]
    shown = Table(*headers, title=f"quant {quant}, {t} tokens", box=box.MARKDOWN)
    for d in found:
        shown.add_row(
            d.name, f"{d.n:,}", f"{100 * d.n_differ / d.n:.3g} %", f"{d.largest:.3g} {d.unit}", f"{d.relative_rms:.2g}"
        )
    return shown


@click.command(help=__doc__)
@click.option("--tokens", "t", type=click.IntRange(1), default=512, show_default=True)
@click.option("--quant", "quants", multiple=True, type=click.Choice(["a", "b", "ab"]), default=("b", "a", "ab"))
@click.option("--checked", default=4, type=click.IntRange(1), show_default=True, help="Tokens to compare exactly.")
@click.option("--seed", default=0, type=click.IntRange(0), show_default=True)
def main(t: int, quants: tuple[str, ...], checked: int, seed: int) -> None:
    for quant in quants:
        found = measure(mla.MlaDims.deepseek_v32(), quant, t, min(checked, t), seed)
        Console().print(table(quant, t, found))


if __name__ == "__main__":
    main()
