"""What public objects say of themselves: one short line each, and tables in notebooks."""

from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.public_objects import DIMS, public_classes

import mla_numba as mla
from mla_numba.base.short_repr import size_text
from mla_numba.reference import ReferenceOutput
from tiling import Cluster, Costs, CpuTiling, CubeTile, MlaTileConfig, PassOptions, PrologPlan
from tiling.html import fold, table, to_html

MOST = 210
# Numbers to copy, seven arrays twice, settings to copy.
LONGER = {Costs: 450, Cluster: 450, ReferenceOutput: 260, mla.IndexedOutput: 260, MlaTileConfig: 450}
NAN = float("nan")


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_repr_is_one_short_line(objects, cls):
    text = repr(objects[cls])
    assert cls.__name__ in text
    assert "\n" not in text
    assert " object at 0x" not in text
    assert "array(" not in text
    folder = str(objects[mla.Checkpoint].folder)
    assert len(text.replace(folder, "FOLDER")) <= LONGER.get(cls, MOST), text


def test_repr_says_sizes_dtypes_mode_and_memory(objects):
    letters = "H=256 N=4 Rq=96 C=64 D=32 R=32"
    for cls in (mla.MlaWeights, mla.PackedWeights, mla.MlaProlog):
        text = repr(objects[cls])
        assert letters in text
        assert "quant='b'" in text
        assert text.endswith(" kB>")
    assert repr(objects[mla.PagedCache]) == (
        "<PagedCache: PA_BSND, 32 slots, kv (2, 16, 1, 64) int8, kr (2, 16, 1, 32) bf16, "
        "k_scale (2, 16, 1, 4) float32, 4.6 kB>"
    )
    assert repr(objects[mla.PrologOutput]) == (
        "<PrologOutput: query_nope (3, 4, 64) bf16, query_rope (3, 4, 32) bf16, q_norm (3, 96) int8, "
        "q_norm_scale (3, 1) float32, 2.6 kB>"
    )


def test_repr_leaves_out_what_is_not_there():
    weights = mla.MlaWeights.random(DIMS, quant="none")
    cache = mla.PagedCache.allocate(DIMS, 2, 16, "TND", quantized=False)
    assert "quant='none'" in repr(weights)
    assert "k_scale" not in repr(cache)
    assert "q_norm_scale" not in repr(mla.MlaProlog(weights).allocate_output(0))
    assert "smooth" in repr(mla.MlaWeights.random(DIMS, smooth=True))


def test_repr_of_a_prolog_says_which_settings_are_not_the_usual_ones():
    weights = mla.MlaWeights.random(DIMS).pack()
    prolog = mla.MlaProlog(weights, "prefill", tile_config="auto", n_threads=1, check_finite=True, numerics="cann")
    said = repr(prolog)
    for setting in ("phase='prefill'", "tile_config='auto'", "n_threads=1", "check_finite=True", "numerics='cann'"):
        assert setting in said
    said = repr(mla.MlaProlog(weights))
    assert "phase='decode'" in said
    assert not any(name in said for name in ("tile_config", "options", "check_finite", "numerics"))


@pytest.mark.parametrize(
    "value",
    [
        MlaTileConfig(), mla.preset("prefill_b128_s1"), MlaTileConfig(unroll_list=[4, 1], cube_nbuffer_setting={}),
        CpuTiling(), CpuTiling(unroll_list=(8, 1), n_threads=1), PassOptions(), mla.pass_options("decode", 100),
        CubeTile(16, 32, 64, 64, 128, 128),
    ],
)  # fmt: skip
def test_repr_of_settings_makes_them_again(value):
    names = {"CubeTile": CubeTile, "MlaTileConfig": MlaTileConfig, "CpuTiling": CpuTiling, "PassOptions": PassOptions}
    assert eval(repr(value), names) == value


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (4608, "4.6 kB"), (213_200_000, "213.2 MB"),
     (64 * 10**9, "64.0 GB")],
)  # fmt: skip
def test_sizes_have_a_unit_that_suits_them(n_bytes, text):
    assert size_text(n_bytes) == text


class Cells(HTMLParser):
    """The texts of a table's rows; fails for a tag that is left open."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.attributes, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_plan_is_a_table_of_its_products(objects):
    plan = objects[PrologPlan]
    header, *rows = Cells(plan._repr_html_()).rows
    assert header[:3] == ["tile", "product", "type"]
    n_products = 4 * len(plan.tile_plans)
    assert [row[0] for row in rows[:n_products]] == [str(tile.t) for tile in plan.tile_plans for _ in range(4)]
    assert rows[0][1:6] == ["Matmul_qa", "bf16", "40", "256", "96"]
    assert rows[1][1] == "QuantMatmul_qb x 4"
    assert [tuple(row) for row in rows[n_products + 1 :]] == list(plan.reasons)
    assert Cells(plan.tile_plans[0]._repr_html_()).rows[1:] == [row[1:] for row in rows[:4]]


def test_a_trace_is_a_table_of_its_phases(objects):
    trace = objects[mla.Trace]
    header, *rows = Cells(trace._repr_html_()).rows
    assert header[0] == "phase"
    assert [row[0] for row in rows] == ["pack", "down", "query", "key", "heads"]
    for row in rows:
        spans = [span for tile in trace.tiles for span in tile.spans if span.phase == row[0]]
        assert int(row[2]) == sum(span.n_tasks for span in spans) > 0
        assert float(row[4]) == pytest.approx(sum(trace.busy_s(row[0])) * 1e3, abs=1e-3)
    assert Cells(mla.Trace()._repr_html_()).rows[1][2] == "0"


def test_tables_are_escaped_and_name_no_colour(objects):
    made = to_html(table("<a> & b", ("<h>", "n"), [("<script>x</script>", "1.5"), ("&", "20")]))
    assert "<script>" not in made
    assert "&lt;a&gt; &amp; b" in made
    cells = Cells(made)
    assert cells.rows == [["<h>", "n"], ["<script>x</script>", "1.5"], ["&", "20"]]
    styles = [value for name, value in cells.attributes if name == "style"][1:]
    assert styles == ["text-align: left", "text-align: right"] * 3
    assert Cells(to_html(table("", ("a",), []), fold("more", table("", ("b",), [("c",)])))).rows == [
        ["a"], ["b"], ["c"],
    ]  # fmt: skip
    for value in (objects[PrologPlan], objects[mla.Trace]):
        assert {name for name, _ in Cells(value._repr_html_()).attributes} == {"style"}
        assert "color" not in value._repr_html_()


def test_a_machine_s_name_cannot_break_the_table(objects):
    plan = objects[PrologPlan]
    object.__setattr__(plan.machine, "name", "<b>CPU")
    assert "<b>" not in plan._repr_html_()


def test_arrays_of_nan_are_not_looked_at():
    out = mla.PrologOutput(*(np.full((2, 2), NAN, np.float32) for _ in range(4)))
    assert "nan" not in repr(out)


def test_tensors_are_not_looked_at_either(objects):
    pytest.importorskip("torch")
    from mla_numba.interop import torch as interop

    module, cache = interop.TorchProlog(objects[mla.MlaProlog]), interop.TorchCache.allocate(DIMS, 2, 16)
    assert repr(cache) == repr(objects[mla.PagedCache]).replace("PagedCache", "TorchCache").replace(" 32 slots,", "")
    shapes = "query_nope (3, 4, 64) bf16, query_rope (3, 4, 32) bf16, q_norm (3, 96) int8, q_norm_scale (3, 1) float32"
    assert repr(module.allocate_output(3)) == f"<TorchOutput: {shapes}, 2.6 kB>"
    assert repr(module).startswith("TorchProlog(H=256 N=4 Rq=96 C=64 D=32 R=32, quant='b', phase='decode', n_threads=")
    assert repr(cache.gather(interop.to_torch(np.arange(3)))) == (
        "<TorchKeyRows: kv (3, 64) float32, kr (3, 32) bf16, 960 bytes>"
    )
