"""The figures of docs/architecture.md are what the script counts, and it counts what it says."""

import ast
import re

import pytest
from helpers import ROOT
from house_figures import PAGE, fill, find_modules, folder_of, functions, imports_up, n_parameters, parse, table

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_has_the_figures_of_the_sources():
    assert fill(TEXT, table()) == TEXT, "run python bench/house_figures.py --write"


def test_every_room_is_on_the_page():
    rooms = TEXT[TEXT.index("## Rooms") : TEXT.index("<!-- figures -->")]
    for folder in {folder_of(*module) for module in find_modules(ROOT).items()} - {"tiling", "mla_numba"}:
        room = folder.removeprefix("mla_numba.").replace(".", "/")
        assert re.search(rf"`{room}/", rooms), room


def house(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = find_modules(folder)
    return imports_up(modules, parse(modules))


ROOMS = {
    "tiling/__init__.py": "",
    "mla_numba/__init__.py": "from .high.a import f\n",
    "mla_numba/cache.py": "from .low.b import g\n",
    "mla_numba/high/__init__.py": "",
    "mla_numba/high/a.py": "from ..cache import g\nfrom . import c\nfrom .c import h\n",
    "mla_numba/high/c.py": "import tiling\nfrom .a import f\n",
    "mla_numba/low/__init__.py": "",
    "mla_numba/low/b.py": "import os\n",
}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("mla_numba/low/b.py", "import os\n", []),
        (
            "mla_numba/low/b.py",
            "def g():\n    from mla_numba.high import a\n",
            [
                ("mla_numba.cache", "mla_numba.low.b"),
                ("mla_numba.high.a", "mla_numba.cache"),
                ("mla_numba.low.b", "mla_numba.high.a"),
            ],
        ),
        (
            "mla_numba/low/b.py",
            "if TYPE_CHECKING:\n    from ..cache import PagedCache\n",
            [("mla_numba.cache", "mla_numba.low.b"), ("mla_numba.low.b", "mla_numba.cache")],
        ),
    ],
    ids=["one way", "in a function", "for type checkers"],
)
def test_imports_that_run_up_are_found(tmp_path, name, text, found):
    assert house(tmp_path, ROOMS | {name: text}) == found


def test_parameters_are_counted_without_self_and_not_of_commands():
    source = (
        "class A:\n    def m(self, a, /, b, *c, d=1, **e): ...\n@main.command()\ndef run(a, b): ...\ndef f(x): ...\n"
    )
    counted = {function.name: n_parameters(function) for function in functions(ast.parse(source))}
    assert counted == {"m": 5, "run": 0, "f": 1}
