"""The pictures of the pages belong to the runs recorded in docs/runs, and every page that shows one says what of."""

import json
import re
from statistics import median
from xml.etree import ElementTree

import pytest
from helpers import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from docs_pictures import (
    DRAWN,
    PICTURES,
    RUNS,
    TUNE_PAGE,
    render,
    shows_the_same,
    small_bench,
    small_sweep,
    small_tune,
    with_tune,
)  # fmt: skip

TUNE = json.loads((RUNS / "tune.json").read_text(encoding="utf-8"))
RECORDS = {name: (RUNS / name).read_text(encoding="utf-8") for name in DRAWN}


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_what_their_record_says(name):
    for path, text in render(name).items():
        kept = (ROOT / path).read_text(encoding="utf-8")
        assert shows_the_same(kept, text), f"{path}: run python bench/docs_pictures.py"
        assert len(kept) < 100_000


def slower(name):
    """The record with every time of a candidate, a span or a peer half as long again."""
    record = json.loads(RECORDS[name])
    if name == "sweep.json":
        for row in record["rows"]:
            row |= {key: row[key] * 1.5 for key in row if key.startswith(("ratio", "final_"))}
    elif name == "trace.json":
        for event in record["traceEvents"]:
            event |= {key: event[key] * 1.5 for key in ("ts", "dur") if key in event}
    else:
        for bench in record["benchmarks"]:
            if not bench["extra_info"]["implementation"].startswith("mla_numba"):
                bench["stats"]["median"] *= 1.5
    return json.dumps(record)


@pytest.mark.parametrize("name", DRAWN)
def test_another_record_is_another_picture(name):
    now, then = render(name), render(name, slower(name))
    changed = [path for path in now if path in then and not shows_the_same(now[path], then[path])]
    assert changed == list(now)
    same_figures = re.sub(r'data-record="\w+"', 'data-record="0"', next(iter(now.values())))
    assert not shows_the_same(next(iter(now.values())), same_figures)


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_svg_for_light_and_dark_screens_and_ask_nobody(name):
    for text in render(name).values():
        ElementTree.fromstring(text)
        assert re.search(r"prefers-color-scheme: ?dark", text)
        assert "@import" not in text
        assert not re.search(r"(?:src|href)=\"(?!#)", text)


def test_every_picture_is_on_a_page_that_says_what_it_shows():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    shown = {path: said for said, path in re.findall(r"!\[([^\]]+)\]\((?:\.\./)?(pictures/[\w.]+)\)", pages)}
    for path in (ROOT / PICTURES).iterdir():
        assert len(shown.get(f"pictures/{path.name}", "")) > 20, path.name


def test_records_are_small_and_hold_what_is_shown():
    sweep = json.loads(RECORDS["sweep.json"])
    made = small_sweep(sweep | {"rows": [row | {"times_ms": [1.0], "plan": "x" * 500} for row in sweep["rows"]]})
    plan = "c38c2bf3055c"
    assert made["rows"] == [row | {"plan": plan} for row in sweep["rows"]]
    bench = json.loads(RECORDS["bench.json"])
    again = small_bench(
        bench | {"benchmarks": [b | {"stats": b["stats"] | {"data": [1.0]}} for b in bench["benchmarks"]]}
    )
    assert again == bench
    assert all(len(text) < 60_000 for text in RECORDS.values())


def test_the_table_of_a_search_is_what_its_record_says():
    page = (ROOT / TUNE_PAGE).read_text(encoding="utf-8")
    assert with_tune(page, TUNE) == page
    outcome = TUNE["outcomes"][0]
    ours, baseline = outcome["contest_pairs_s"]
    slower = outcome | {"contest_pairs_s": [[3 * second for second in ours], baseline]}
    then = with_tune(page, TUNE | {"outcomes": [slower]})
    assert then != page
    assert f" {3e3 * median(ours):.3f} " in then


def test_a_search_can_be_taken_again_and_is_small():
    assert small_tune(TUNE) == TUNE
    assert small_tune(TUNE | {"folder": "somewhere"}) == TUNE
    assert len(json.dumps(TUNE)) < 60_000


def test_a_quiet_search_says_what_it_found():
    quiet = TUNE["outcomes"][0]["conditions"] | {
        "before": 0.0,
        "during": 0.0,
        "after": 0.0,
        "spread": 0.0,
        "slower": [],
    }
    seconds = [[0.9, 0.91, 0.92] * 4, [1.0] * 12]
    outcome = TUNE["outcomes"][0] | {
        "conditions": quiet, "tiling": {"down_kc": 512}, "contest_pairs_s": seconds,
        "control_pairs_s": [[1.0] * 12, [1.0] * 12],
    }  # fmt: skip
    page = with_tune("before <!-- tune --> old <!-- /tune --> after", TUNE | {"outcomes": [outcome]})
    assert page.startswith("before <!-- tune -->\n\nWhat it shows")
    assert page.endswith("```\n\n<!-- /tune --> after")
    assert "T 32: found one that takes 0.910 (0.900 to 0.920) of the time" in page
    assert "    tile_config=CpuTiling(down_kc=512)\n" in page
    assert "busy machine" not in page
