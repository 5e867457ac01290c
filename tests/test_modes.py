"""Every mode with every cache and every layout of weights, and the table of them in docs/modes.md.

`python tests/test_modes.py` prints the tables as the page has to hold them.
"""

import sys
from typing import NamedTuple

import numpy as np
import pytest
from helpers import (
    BF16,
    MODES,
    ROOT,
    assert_none,
    assert_same_bits,
    make_inputs,
    make_output,
    make_weights,
    random_bytes,
    spread,
)

import mla_numba as mla
from mla_numba import (
    MlaDims,
    MlaProlog,
    MlaQuantInputs,
    PagedCache,
    reference,
)
from mla_numba.layouts import to_fractal_nz
from mla_numba.oracle.bits import check_output, reference_run

PAGE = ROOT / "docs" / "modes.md"
DIMS = MlaDims(130, 3, 50, 64, 33, 32)  # whole runs of PA_NZ, and padding in each FRACTAL_NZ weight
T = 19
LEADS = {"PA_BSND": (3, 16), "PA_NZ": (3, 16), "BSND": (3, 16), "TND": (48,)}
FRACTALS = ("w_dq", "w_uq_qr", "w_dkv_kr")
DOWN_AND_UP = ("dequant_scale_w_dq", "dequant_scale_w_dkv_kr", "dequant_scale_w_uq_qr", "smooth_scales_cq")


class CacheKind(NamedTuple):
    """A row of the table, and a word in its cells."""

    cache_mode: str
    strided: bool = False
    fp16: bool = False

    @property
    def variant(self):
        return "strided" if self.strided else "fp16" if self.fp16 else "plain"

    def __str__(self):
        return f"{self.cache_mode} {self.variant}"


CACHES = [
    CacheKind("PA_BSND"),
    CacheKind("PA_BSND", strided=True),
    CacheKind("PA_BSND", fp16=True),
    CacheKind("PA_NZ"),
    CacheKind("PA_NZ", strided=True),
    CacheKind("PA_NZ", fp16=True),
    CacheKind("BSND"),
    CacheKind("BSND", strided=True),
    CacheKind("BSND", fp16=True),
    CacheKind("TND"),
    CacheKind("TND", fp16=True),
]


def make_cache_of(kind, quantized):
    """A cache of 48 slots of random bytes, and the whole arrays that it may be cut out of."""
    types = [(64, np.int8 if quantized else BF16), (32, BF16), (4, np.float16 if kind.fp16 else np.float32)]
    first, *rest = LEADS[kind.cache_mode]
    lead = (2 * first, *rest) if kind.strided else (first, *rest)
    rng = np.random.default_rng(7)
    whole = [random_bytes(rng, np.empty((*lead, 1, d), dtype)) for d, dtype in types[: 3 if quantized else 2]]
    cut = [array[1::2] if kind.strided else array for array in whole]
    return PagedCache(*cut, *([] if quantized else [None]), kind.cache_mode), whole


def run_prolog(weights, inputs, cache, out, numerics):
    MlaProlog(weights, numerics=numerics)(*inputs, cache, out)


def entry_point(w_dq_of):
    """A run of `mla_prolog_quant_compute`; `w_dq_of(weights)` gives its six weights and dequant_scale by name."""

    def run(weights, inputs, cache, out, numerics):
        x, cos, sin, cache_index = inputs
        caches = {"kv_cache": cache.kv, "kr_cache": cache.kr, "k_scale_cache": cache.k_scale}
        mla.mla_prolog_quant_compute(
            token_x=x, cos=cos, sin=sin, cache_index=cache_index, cache_mode=cache.cache_mode,
            epsilon_cq=weights.epsilon_cq, epsilon_ckv=weights.epsilon_ckv, numerics=numerics,
            **w_dq_of(weights), **caches,
            **{f"{name}_out": array for name, array in (caches | out._asdict()).items()},
        )  # fmt: skip

    return run


def nd_weights(weights):
    names = (*FRACTALS, "w_uk", "gamma_cq", "gamma_ckv")
    return {name: getattr(weights, name) for name in names} | {"dequant_scale": weights.dequant_scale_w_uq_qr}


def fractal_weights(weights):
    return nd_weights(weights) | {name: to_fractal_nz(getattr(weights, name)) for name in FRACTALS}


def packed_weights(weights):
    return dict.fromkeys(nd_weights(weights)) | {"w_dq": weights.pack()}


class WeightKind(NamedTuple):
    """Which call takes weights in which layout, in which modes it can, and its numerics."""

    call: str
    layout: str
    run: object
    modes: tuple[str, ...]
    numerics: str = "pypto"

    @property
    def column(self):
        return f"{self.call} {self.layout}" + (f", {self.numerics}" if self.numerics != "pypto" else "")

    def __str__(self):
        return f"{self.layout}-{self.numerics}"


PROLOG, ENTRY = "`MlaProlog`", "`mla_prolog_quant_compute`"
WEIGHTS = [
    WeightKind(PROLOG, "ND", run_prolog, MODES),
    WeightKind(ENTRY, "ND", entry_point(nd_weights), ("none", "b")),
    WeightKind(ENTRY, "FRACTAL_NZ", entry_point(fractal_weights), ("none", "b")),
    WeightKind(ENTRY, "packed", entry_point(packed_weights), MODES),
    WeightKind(PROLOG, "ND", run_prolog, MODES, "cann"),
    WeightKind(ENTRY, "packed", entry_point(packed_weights), MODES, "cann"),
]
CELLS = [
    (weights, mode, cache)
    for weights in WEIGHTS
    for mode in MODES
    for cache in CACHES
    if mode in weights.modes and ("b" in mode.split()[0] or not cache.fp16)
]
PRE_COMPUTE = {"ND": ("ND", "pypto"), "FRACTAL_NZ": ("FRACTAL_NZ", "pypto"), "ND, cann": ("ND", "cann")}
PRE_COMPUTE_CELLS = [(mode, column) for mode in MODES for column in PRE_COMPUTE]


@pytest.mark.parametrize(("weights", "mode", "kind"), CELLS, ids=str)
def test_cell_is_exact(weights, mode, kind):
    given = make_weights(DIMS, mode)
    quantized = "b" in given.quant
    cache, whole = make_cache_of(kind, quantized)
    inputs, out = make_inputs(DIMS, T, 48), make_output(DIMS, quantized, T)
    if not cache.paged:
        inputs = inputs._replace(cache_index=None)
    want = reference_run(given, *inputs, cache, numerics=weights.numerics)
    expected = [array.copy() for array in whole]
    for name, array in zip(cache.arrays(), expected, strict=True):
        array[np.s_[1::2] if kind.strided else np.s_[:]] = getattr(want, name)
    weights.run(given, inputs, cache, out, weights.numerics)
    assert_none(check_output(out, cache, want))
    for name, array, all_of_it in zip(cache.arrays(), whole, expected, strict=True):
        assert_same_bits(name, array, all_of_it)


@pytest.mark.parametrize(("mode", "column"), PRE_COMPUTE_CELLS)
def test_pre_compute_is_exact(mode, column):
    layout, numerics = PRE_COMPUTE[column]
    weights = make_weights(DIMS, mode)
    x = spread(np.random.default_rng(1), T, DIMS.hidden_size)
    scales = {name: getattr(weights, name) for name in DOWN_AND_UP}
    given = [getattr(weights, name) for name in FRACTALS]
    want = reference.pre_compute_2d(x, *given, weights.gamma_cq, 1e-5, **scales, numerics=numerics)
    if layout == "FRACTAL_NZ":
        given = [to_fractal_nz(weight) for weight in given]
    got = mla.pre_compute_2d(x, *given, weights.gamma_cq, 1e-5, MlaQuantInputs(**scales), numerics=numerics)
    assert len(got) == (4 if "b" in mode else 3)
    for i, (g, w) in enumerate(zip(got, want, strict=False)):
        assert_same_bits(f"result {i}", np.ascontiguousarray(g[:, : w.shape[1]]), w)


def table(header, rows):
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def cell_table():
    def cell(weights, mode, cache_mode):
        exact = [cache.variant for w, m, cache in CELLS if (w, m, cache.cache_mode) == (weights, mode, cache_mode)]
        return ", ".join(exact) or "-"

    header = ["mode", "cache", *(w.column for w in WEIGHTS)]
    rows = [[mode, name, *(cell(w, mode, name) for w in WEIGHTS)] for mode in MODES for name in LEADS]
    return table(header, rows)


def pre_compute_table():
    rows = [[mode, *("exact" if (mode, c) in PRE_COMPUTE_CELLS else "-" for c in PRE_COMPUTE)] for mode in MODES]
    return table(["mode", *(f"`pre_compute_2d` {column}" for column in PRE_COMPUTE)], rows)


@pytest.mark.parametrize("made", [cell_table, pre_compute_table])
def test_the_page_holds_the_tables(made):
    page = PAGE.read_text(encoding="utf-8")
    assert f"\n\n{made()}\n" in page, f"docs/modes.md should hold\n\n{made()}"


def test_the_page_counts_the_cells():
    page = PAGE.read_text(encoding="utf-8")
    assert f"{len(CELLS)} cells" in page
    assert f"{len(PRE_COMPUTE_CELLS)} cells" in page


if __name__ == "__main__":
    sys.stdout.write(f"{cell_table()}\n\n{pre_compute_table()}\n\n{len(CELLS)} and {len(PRE_COMPUTE_CELLS)} cells\n")
