"""The pictures of a study say what its rows say: ratios in pairs, the planner's own plan, nothing that is noise."""

from dataclasses import asdict, replace

import pytest

from mla_numba import MlaDims
from mla_numba.cli.study.results import Study, settings_text, shown, value_text
from mla_numba.tuning.study import Row, with_limits
from tiling import Rates

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex
from matplotlib.image import imread

from mla_numba.cli.chart_style import FASTER, SAME, SLOWER, log_axis, plain, svg_text, tokens_text
from mla_numba.cli.study.heat_map import BOUNDS, axes_of
from mla_numba.cli.study.plots import PICTURES, draw_all, figures

RATES = Rates(1e9, 1e9, 1e9, None)
RECORD = {
    "machine": {"name": "a CPU", "isa": "avx2"},
    "threads": 2,
    "versions": {"mla_numba": "0.1.0"},
    "date": "2026-01-02 03:04:05 +0000",
    "rates": {"read_gb_s": 1.0, "fma_gflop_s": 1.0, "dot_gop_s": 1.0},
    "own_plans": [{"t": t, "quant": "b", "plan": "own"} for t in (8, 32)],
    "controls": [
        {"t": t, "quant": "b", "busy": False, "n_pairs": 21, "ratio": 1.0, "low": 0.993, "high": 1.07} for t in (8, 32)
    ],
    "sweep": {"dims": asdict(MlaDims(64, 2, 32, 32, 16, 16))},
}


def row(number, t=8, ratio=1.0, final=None, plan="", **settings):
    """A timed row; the machine of RATES needs 1.1 ms for its work, the planner's own plan takes 2."""
    made = Row(
        number, t, "b", settings, "done", n_pairs=7, min_ms=1.0, median_ms=2.0 * ratio, baseline_ms=2.0, ratio=ratio,
        wins=0.9, final_ratio=final, final_wins=None if final is None else 0.9, exact=True, n_bytes=100_000,
        flops=100_000, int8_ops=1_000_000, gb_s=1.0, gop_s=1.0, plan=plan or f"plan {number}",
        ratio_low=ratio * 0.995, ratio_high=ratio * 1.005,
        **({} if final is None else {"final_low": final * 0.995, "final_high": final * 1.005, "n_final_pairs": 21}),
    )  # fmt: skip
    return with_limits({number: made}, RATES, 99)[0]


GRID = [
    row(0, ratio=0.76, final=0.988, down_kc=64, down_walk=1),
    row(1, ratio=0.9, down_kc=64, down_walk=2),
    row(2, ratio=0.93, plan="own", down_kc=128, down_walk=1),
    row(3, ratio=1.6, down_kc=128, down_walk=2),
    row(4, t=32, ratio=0.8, final=0.7, down_kc=64, down_walk=1),
]


def figure_of(rows, name, **changes):
    return figures(RECORD | changes, rows)[name]


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_files_are_a_thousand_pixels_wide_and_older_ones_of_another_study_go(tmp_path):
    for name in ("unroll_lists.png", "mine.png"):
        (tmp_path / name).write_text("old")
    paths = draw_all(tmp_path, RECORD, GRID)
    assert [path.name for path in paths] == ["heat_map.png", "roofline.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"heat_map.png", "roofline.png", "mine.png"}
    assert all(imread(path).shape[1] == 1000 for path in paths)
    assert {path.name for path in paths} < set(PICTURES)


def test_nothing_timed_is_no_picture():
    assert figures(RECORD, []) == figures(RECORD, [Row(0, 8, "b", {"down_kc": 1}, "refused")]) == {}


def test_every_picture_says_what_was_found_on_which_machine():
    lists = [row(5, ratio=1.3, unroll_list=[8]), row(6, ratio=1.5, unroll_list=[4, 2])]
    made = figures(RECORD, [*GRID, *lists])
    assert list(made) == ["heat_map.png", "unroll_lists.png", "roofline.png"]
    for figure in made.values():
        # Above the chart, right below what it says; then how to read it.
        measured = figure.texts[1]
        assert measured.get_text() == "H 64, N 2, Rq 32, C 32, D 16, R 16, quant b, on a CPU (avx2), 2 threads"
        assert figure.texts[0].get_position()[1] > measured.get_position()[1] > figure.texts[2].get_position()[1] > 0.5
        assert 12 <= measured.get_fontsize() < figure.texts[0].get_fontsize()
        assert figure.texts[-1].get_text() == "mla_numba 0.1.0, 2026-01-02"
    said = [" ".join(texts(figure)).replace("\n", " ") for figure in made.values()]
    assert "Other blocks take 1% less at 8 tokens (down_kc 64, down_walk 1), 30% less at 32 tokens" in said[0]
    assert "No unroll lists are faster than the planner's own by more than noise" in said[1]
    assert "[4, 2] takes 1.50 times as long at 8 tokens" in said[1].replace("\N{NO-BREAK SPACE}", " ")
    assert "The planner's plans reach 55% of what the machine allows, 8 to 32 tokens" in said[2]
    assert "DeepSeek-V3.2's dimensions" in " ".join(
        texts(figure_of(GRID, "heat_map.png", sweep={"dims": asdict(MlaDims.deepseek_v32())}))
    )


def test_the_heat_map_shows_the_longer_contest_on_a_fixed_scale():
    figure = figure_of(GRID, "heat_map.png")
    first = figure.axes[0].collections[0]
    # by down_walk, then down_kc; 0.9 was timed briefly, the planner's own is 1 whatever noise said
    assert first.get_array().tolist() == [[0.988, 1.0], [1.0, 1.6]]
    assert tuple(first.norm.boundaries) == BOUNDS
    one = first.cmap(first.norm(1.0))
    assert min(one[:3]) > 0.95  # pale
    red, blue = first.cmap(first.norm(1.6)), first.cmap(first.norm(0.7))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    said = texts(figure)
    for wanted in ("0.99", "0.90?", "1", "1.60", "planner", "best", "8 tokens", "down_kc, elements of k"):
        assert wanted in said
    assert "0.76" not in said
    assert "against itself it took 0.99 to 1.07" in " ".join(said).replace("\n", " ")
    frames = [patch.get_linestyle() for patch in figure.axes[0].patches]
    assert sorted(frames) == ["-", "--"]


def test_values_that_give_one_plan_share_a_place():
    kcs = (256, 512, 896)
    same = [
        row(i, plan=f"walk {w}", down_kc=kc, down_walk=w)
        for i, (kc, w) in enumerate((k, w) for k in kcs for w in (1, 2))
    ]
    (axis,) = axes_of(same)
    assert (axis.name, axis.labels) == ("down_walk", ["1", "2"])
    different = replace(same[0], plan="another")
    x, y = axes_of([different, *same[1:]])
    assert (x.labels, y.labels) == (["256", "512 to 896"], ["1", "2"])
    assert axes_of([]) == axes_of([row(0, preset="x"), row(1, preset="y")]) == []
    assert list(figures(RECORD, same)) == ["one_field.png", "roofline.png"]
    assert {"down_walk 1", "down_walk 2"} <= set(texts(figure_of(same, "one_field.png")))


def test_the_fields_with_the_most_values_are_the_axes():
    rows = [
        row(i, down_kc=kc, rows_q=q, down_walk=w)
        for i, (kc, q, w) in enumerate((k, q, w) for k in (1, 2, 3) for q in (1, 2) for w in (1, 2, 4))
    ]
    assert [axis.name for axis in axes_of(rows)] == ["down_kc", "down_walk"]


def test_dots_stand_at_the_ratio_of_pairs_whatever_the_medians_are():
    """A list whose ratio is 0.99 stands at 0.99, however slow the moment in which it was timed."""
    slow = replace(row(0, ratio=0.99, final=0.99, unroll_list=[8]), median_ms=574.0, baseline_ms=580.0)
    slow = replace(slow, final_low=0.98, final_high=1.01)
    rows = [slow, row(1, ratio=1.3, unroll_list=[4]), row(2, ratio=0.9, final=0.8, unroll_list=[2])]
    rows += [row(3, ratio=0.9, unroll_list=[1]), row(4, ratio=1.07, plan="own", unroll_list=[6])]
    (panel,) = figure_of(rows, "unroll_lists.png").axes
    dots = {line.get_ydata()[0]: line for line in panel.lines if line.get_marker() == "o"}
    assert [dots[i].get_xdata()[0] for i in range(5)] == [0.99, 1.3, 0.8, 0.9, 1.0]
    assert [to_hex(dots[i].get_color()) for i in range(5)] == [SAME, SLOWER, FASTER, SAME, SAME]
    bars = [list(line.get_xdata()) for line in panel.lines if line.get_marker() == "None"]
    assert [0.98, 1.01] in bars
    assert [pytest.approx(1.3 * 0.995), pytest.approx(1.3 * 1.005)] in bars
    assert [to_hex(dots[i].get_markerfacecolor()) for i in range(4)] == [SAME, "#ffffff", FASTER, "#ffffff"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["[8]", "[4]", "[2]", "[1]", "[6]"]
    assert {"0.99", "1.30", "0.80", "0.90?", "="} <= set(texts(panel))


def test_points_of_the_roofline_are_below_the_roof_or_marked():
    rows = [row(0, ratio=0.95, plan="own", down_mc=1), replace(row(1, ratio=2.0, down_mc=2), baseline_ms=80.0)]
    panel = figure_of(rows, "roofline.png").axes[0]
    points = [line for line in panel.lines if line.get_marker() in ("o", "^")]
    # 1.2 million operations in 1.9 and 4 ms, by the planner's 2 ms in the calmer contest
    assert sorted(float(point.get_ydata()[0]) for point in points) == pytest.approx([0.275, 1.1 / 1.9])
    assert {point.get_marker() for point in points} == {"o"}
    said = texts(panel.figure)
    assert "8 tokens: 55%" in said

    fast = [row(0, ratio=1.0, plan="own", down_mc=1), row(1, ratio=0.5, final=0.5, down_mc=2)]
    panel = figure_of(fast, "roofline.png").axes[0]
    assert [line.get_marker() for line in panel.lines].count("^") == 1
    faster = [replace(row(0, plan="own", down_mc=1), baseline_ms=1.0)]
    said = " ".join(texts(figure_of(faster, "roofline.png"))).replace("\n", " ")
    assert "8 tokens: (!)" in said
    assert "(!) more than 100 %" in said
    assert "no share of the limit can be told" in said


def test_many_values_leave_room_for_their_labels():
    rows = [
        row(i, down_kc=64 * kc, down_walk=w) for i, (kc, w) in enumerate((k, w) for k in range(1, 41) for w in (1, 2))
    ]
    panel = figure_of(rows, "heat_map.png").axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == [str(64 * (1 + 4 * i)) for i in range(10)]
    assert not {"1.00"} & set(texts(panel))


def test_only_a_longer_contest_that_was_won_counts_as_faster():
    study = Study.of(RECORD, GRID)
    assert study.clearly_faster(GRID[0])
    for doubtful in (
        replace(GRID[0], final_ratio=0.995), replace(GRID[0], final_high=1.001),
        replace(GRID[0], final_high=None), GRID[1], replace(GRID[0], plan="own"),
    ):  # fmt: skip
        assert not study.clearly_faster(doubtful)
    without = Study.of(RECORD | {"controls": []}, GRID)
    assert not without.clearly_faster(GRID[0])
    busy = Study.of(RECORD | {"findings": [{"t": 8, "quant": "b", "verdict": "busy"}]}, GRID)
    assert [busy.clearly_faster(row) for row in (GRID[0], GRID[4])] == [False, True]
    assert busy.verdict("blocks", GRID[:4]) == "Others took too much of the machine: these ratios say nothing"
    assert [study.differs(row) for row in GRID] == [True, False, False, True, True]
    assert not any(busy.differs(row) for row in GRID[:4])
    assert not study.differs(replace(GRID[0], final_busy=True))
    assert study.differs(replace(GRID[0], busy=True))
    assert not study.differs(replace(GRID[3], busy=True))
    many = [replace(GRID[4], t=t) for t in (1, 2, 8, 32)]
    controls = [RECORD["controls"][0] | {"t": t} for t in (1, 2, 8, 32)]
    said = Study.of(RECORD | {"controls": controls, "own_plans": []}, many).verdict("blocks", many)
    assert said == "Other blocks take 30% to 30% less at 4 numbers of tokens"
    assert study.winner(GRID) is GRID[4]
    assert study.winner([GRID[1], GRID[3]]) is None
    assert shown(GRID[0]).median == 0.988
    assert settings_text(GRID[0]) == "down_kc 64, down_walk 1"
    assert (value_text([5, 4, 3, 2, 1, 0]), value_text([2, 1]), value_text(7)) == ("[5, 4, ... 0]", "[2, 1]", "7")
    assert (tokens_text(1), tokens_text(2048)) == ("1 token", "2,048 tokens")


def test_numbers_are_plain():
    assert [plain(x) for x in (1980.0, 0.0532, 12.34, 999.6, 123456.0, 0.0, 1e-5)] == [
        "1,980", "0.0532", "12.3", "1,000", "123,000", "0", "0.0000100",
    ]  # fmt: skip
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    panel.set_yscale("log")
    panel.set_ylim(0.03, 40_000)
    log_axis(panel.yaxis, 0.03, 40_000)
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == ["0.1", "1", "10", "100", "1,000", "10,000"]


def test_svg_is_dark_where_the_screen_is():
    text = svg_text(figure_of(GRID, "heat_map.png"), "what <it> says")
    assert text.count("prefers-color-scheme:dark") == 1
    assert 'aria-label="what &lt;it&gt; says"' in text
    assert "fill: var(--ink, #1f2328)" in text
    assert ": #1f2328" not in text.partition("</style>")[2]
    assert "#101214" in text  # on the colours of cells, which stay
    in_page = svg_text(figure_of(GRID, "heat_map.png"), "x", themed_by_page=True)
    assert "prefers-color-scheme" not in in_page
    assert svg_text(figure_of(GRID, "heat_map.png"), "x", themed_by_page=True) == in_page
