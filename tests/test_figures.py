"""The figures that README and pages quote are those of the recorded run, and README's links lead somewhere."""

import copy
import importlib.util
import json
import re
from xml.etree import ElementTree

import click
import pytest
from helpers import ROOT
from ratio_chart import CHART, DRAWN, OURS, PAGES, RECORD, fill, pieces, read_rows, render

RUN = json.loads(RECORD.read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [CHART, *PAGES], ids=str)
def test_chart_and_pages_are_what_the_record_says(path):
    assert (ROOT / path).read_text(encoding="utf-8") == render(RUN)[path], "run python bench/ratio_chart.py"


def test_each_figure_has_a_place():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    for name in pieces(read_rows(RUN), "here"):
        assert len(re.findall(rf"<!-- {name} -->", text)) == len(re.findall(rf"<!-- /{name} -->", text)) >= 1, name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_place_within_a_sentence_begins_a_line(page):
    """A line that begins with a comment is a block of HTML and cuts the sentence in two."""
    assert re.findall(r"^<!-- \w+ -->.+", (ROOT / page).read_text(encoding="utf-8"), flags=re.M) == []


def test_another_ratio_is_another_chart_and_other_pages():
    changed = copy.deepcopy(RUN)
    for result in changed["results"]:
        for row in result["implementations"]:
            row["ratio_paired_median"] *= 1 if row["name"] == OURS else 1.5
    now, then = render(RUN), render(changed)
    assert all(now[path] != then[path] for path in now)


def test_bars_are_as_long_as_the_ratios():
    svg = ElementTree.fromstring(render(RUN)[CHART])
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in svg.iter(f"{space}rect") if bar.get("height") == "15"]
    ratios = [row.ratios[name] for row in read_rows(RUN) for name in DRAWN]
    assert [bar.get("class") for bar in bars] == list(DRAWN) * len(RUN["results"])
    scale = max(float(bar.get("width")) for bar in bars) / max(ratios)
    assert [float(bar.get("width")) for bar in bars] == pytest.approx([r * scale for r in ratios], abs=0.1)
    said = [text.text for text in svg.iter(f"{space}text")]
    assert [f"{ratio:.2f}" for ratio in ratios] == [text for text in said if re.fullmatch(r"\d+\.\d\d", text)]


def test_a_record_of_something_else_is_refused():
    with pytest.raises(click.ClickException, match=r"dims: expected those of DeepSeek-V3\.2, got MlaDims"):
        read_rows(RUN | {"dims": "MlaDims(1, 2, 3)"})
    fewer = copy.deepcopy(RUN)
    fewer["results"][0]["implementations"].pop()
    with pytest.raises(click.ClickException, match=r"expected every composition, \['P3w'\] are missing"):
        read_rows(fewer)


def test_fill_leaves_the_rest_as_it_is():
    text = "a <!-- x -->old<!-- /x --> b\n<!-- y -->\n<!-- /y -->\n"
    assert (
        fill(text, {"x": r"1\1", "y": "\n\n2\n\n"}) == "a <!-- x -->1\\1<!-- /x --> b\n<!-- y -->\n\n2\n\n<!-- /y -->\n"
    )


def links(text):
    return re.findall(r"\]\(([^)]+)\)", text)


def test_links_of_readme_lead_somewhere():
    for link in links(README):
        if not link.startswith("https://"):
            assert link.startswith("#") or (ROOT / link.split("#")[0]).is_file(), link


def load_setup_script():
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    setup_script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_script)
    return setup_script


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[a](docs/a.md#b)", "[a](HOST/blob/main/docs/a.md#b)"),
        ("![a](docs/a.svg)", "![a](HOST/raw/main/docs/a.svg)"),
        ('<img alt="a" src="docs/a.svg">', '<img alt="a" src="HOST/raw/main/docs/a.svg">'),
        (
            '<source media="(x: dark)" srcset="docs/a.svg">',
            '<source media="(x: dark)" srcset="HOST/raw/main/docs/a.svg">',
        ),
        ('<a href="docs/a.md">', '<a href="HOST/blob/main/docs/a.md">'),
        ("[a]: docs/a.md", "[a]: HOST/blob/main/docs/a.md"),
        ("[a](#b) [c](https://d.org) ![e](http://f.org/g.svg)", "[a](#b) [c](https://d.org) ![e](http://f.org/g.svg)"),
        ('<a href="#b"><img src="https://f.org/g.svg"></a>', '<a href="#b"><img src="https://f.org/g.svg"></a>'),
        ("[a]: https://d.org", "[a]: https://d.org"),
    ],
)
def test_links_become_absolute_in_every_form(text, wanted):
    setup_script = load_setup_script()
    assert setup_script.absolute_links(text) == wanted.replace("HOST", setup_script.REPOSITORY)


def test_links_of_readme_are_absolute_on_a_package_index():
    setup_script = load_setup_script()
    found = links(setup_script.absolute_links(README))
    assert len(found) == len(links(README))
    assert [link for link in found if not link.startswith(("https://", "#"))] == []
    pictures = [link for link in found if link.endswith(".svg")]
    assert len(pictures) == 2
    assert all(link.startswith(f"{setup_script.REPOSITORY}/raw/main/docs/pictures/") for link in pictures)
