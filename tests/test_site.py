"""The pages of docs/ build into a site without a warning, and its reference has an entry for every public name."""

import html
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zlib
from html.parser import HTMLParser

import pytest
from helpers import ROOT

import mla_numba
from mla_numba.cli.main import main

CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
OPTIONS = CONFIG["plugins"]["mkdocstrings"]["handlers"]["python"]["options"]
# Modules that users import from, besides the two packages.
MODULES = (
    "dump_names",
    "dumps",
    "inputs",
    "layouts",
    "modes",
    "ops",
    "pypto",
    "reference",
    "rope_table",
    "testing",
    "tolerance",
    "tuning.results",
    "verify",
)
INTEROP = {"interop.torch": "torch", "interop.hf": "transformers"}  # and what importing them needs


def build(folder, *options):
    """`zensical build` of a copy, so that nothing of an earlier build is taken and nothing is left behind."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", *options]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def copy_sources(folder):
    shutil.copy(ROOT / "zensical.toml", folder)
    for name in ("docs", "mla_numba", "tiling"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = copy_sources(tmp_path_factory.mktemp("site"))
    done = build(folder, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def entries(site):
    """Names of the inventory: what other sites could link to."""
    raw = (site / "objects.inv").read_bytes()
    head = raw.index(b"\n", raw.index(b"zlib")) + 1
    return {line.split(" ")[0] for line in zlib.decompress(raw[head:]).decode().splitlines()}


def pages_of(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_every_page_is_in_the_navigation():
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    listed = list(pages_of(CONFIG["nav"]))
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("package", ["mla_numba", "tiling"])
def test_every_public_name_has_an_entry(entries, package):
    names = importlib.import_module(package).__all__
    missing = [name for name in names if not {f"{package}.{name}", f"tiling.{name}"} & entries]
    assert missing == []


@pytest.mark.parametrize("module", [*MODULES, *INTEROP])
def test_every_name_of_a_public_module_has_an_entry(entries, module):
    if module in INTEROP:
        pytest.importorskip(INTEROP[module])
    full = f"mla_numba.{module}"
    public = importlib.import_module(full)
    names = getattr(public, "__all__", None) or [
        name for name, value in vars(public).items() if callable(value) and value.__module__ == full and name[0] != "_"
    ]
    constants = {name for name in names if name.isupper()}
    assert [name for name in names if name not in constants and f"{full}.{name}" not in entries] == []


def test_main_methods_have_entries(entries):
    for name in (
        "MlaProlog.__call__",
        "MlaProlog.load",
        "MlaProlog.profile",
        "PagedCache.gather",
        "MlaWeights.quantize",
    ):
        assert f"mla_numba.{name}" in entries


class Structure(HTMLParser):
    """Tags of a page, the text of its paragraphs and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.paragraphs, self._open = set(), [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        given = dict(attributes)
        if tag in ("script", "img") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.loaded.append(given["href"])
        if tag == "p":
            self._open = True
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        self._open = self._open and tag != "p"

    def handle_data(self, data):
        if self._open:
            self.paragraphs[-1] += data


def test_docstrings_are_the_markdown_that_is_meant(site):
    """A power written with two stars is bold text, and a table without a blank line before it is a paragraph."""
    for path in (site / "api").rglob("*.html"):
        page = Structure(path.read_text(encoding="utf-8").replace("<em>required</em>", ""))  # of tables of arguments
        assert not page.tags & {"strong", "em"}, path
        assert [text for text in page.paragraphs if re.search(r"^\||\|$", text, flags=re.M)] == [], path
        assert [text for text in page.paragraphs if "  " in text.strip()] == [], path


def test_pages_ask_no_other_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for path in pages:
        loaded = Structure(path.read_text(encoding="utf-8")).loaded
        assert loaded
        assert [link for link in loaded if re.match(r"(?:https?:)?//", link)] == [], path


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("See [modes](modus.md).", "page does not exist"),
        ("See [modes](modes.md#fast).", "anchor does not exist"),
        ("See [`MlaProlog`][mla_numba.Prologue].", "unresolved"),
        ("::: mla_numba.Prologue", "Could not collect 'mla_numba.Prologue'"),
    ],
)
def test_a_broken_reference_fails(tmp_path, page, said):
    (copy_sources(tmp_path) / "docs" / "index.md").write_text(f"# Home\n\n{page}\n")
    done = build(tmp_path, "--strict")
    assert done.returncode != 0
    assert said in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def test_every_command_is_on_its_page():
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z]+)` \|", page, flags=re.M)) == set(main.commands)


def test_every_public_name_is_on_the_page_of_names():
    page = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\[(?:mla_numba|tiling)\.(\w+)\]|^::: mla_numba\.(\w+)$", page, flags=re.M))
    assert set(mla_numba.__all__) - {name for pair in links for name in pair} == set()


def test_signatures_are_wrapped_and_their_types_are_links(site):
    """mkdocstrings wraps them where it finds ruff, which the extra `docs` brings."""
    long = []
    for path in (site / "api").rglob("*.html"):
        for shown in re.findall(r"doc-signature highlight\">(.*?)</pre>", path.read_text(encoding="utf-8"), flags=re.S):
            text = html.unescape(re.sub(r"<[^>]+>", "", shown))
            long += [line for line in text.splitlines() if len(line) > OPTIONS["line_length"]]
    assert long == []
    prolog = (site / "api" / "prolog" / "index.html").read_text(encoding="utf-8")
    for name in ("CallPhase", "Numerics"):
        assert f'href="../modes/#mla_numba.modes.{name}"' in prolog
