"""What is missing is named, with a command of pip that brings it, for this installation."""

import re
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT, python_environment

from mla_numba.base import extras
from mla_numba.base.extras import how_to_install, needs

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
CALL = re.compile(r"""how_to_install\(["'](\w+)["'], ["']([\w -]+)["']\)|missing\([\w"]+, "([\w-]+)", "(\w+)"\)""")
NEEDS = re.compile(r"needs\(\S+, \{(.*?)\}\)")
# Packages that are missing in a process of its own, and the way in.
WAYS = {
    "mla_numba.interop.torch": ("torch", "from mla_numba.interop.torch import TorchProlog"),
    "mla_numba.interop.hf": ("transformers", "from mla_numba.interop.hf import patch"),
}


class Distribution:
    """One that pip installed, or one that only lies on the path."""

    def __init__(self, record):
        self.read_text = {"RECORD": record}.get


def asked_for():
    """(extra, package) of every message in the sources."""
    for path in (ROOT / "mla_numba").rglob("*.py"):
        text = path.read_text()
        for extra, package, its_package, its_extra in CALL.findall(text):
            yield extra or its_extra, package or its_package
        for inside in NEEDS.findall(text):
            yield from ((extra, package) for package, extra in re.findall(r'"(\w+)": "(\w+)"', inside))


def brought_by(extra):
    for requirement in EXTRAS[extra]:
        inner = re.fullmatch(r"mla_numba\[(.*)\]", requirement)
        if inner:
            for name in inner[1].split(","):
                yield from brought_by(name)
        else:
            yield re.match(r"[\w-]+", requirement)[0]


def test_every_extra_that_is_named_brings_the_package():
    found = set(asked_for())
    assert {("hf", "safetensors"), ("torch", "torch"), ("transformers", "torch"), ("tune", "optuna")} <= found
    assert {("plot", "matplotlib"), ("bench", "pytest-benchmark"), ("transformers", "transformers")} <= found
    for extra, package in found:
        assert {*package.split()} <= set(brought_by(extra)), (extra, package)


def test_no_message_of_its_own():
    texts = {path.name: path.read_text() for path in (ROOT / "mla_numba").rglob("*.py")}
    own = [name for name, text in texts.items() if re.search(r"^[^`\n]*\"[^`\n]*pip install", text, re.MULTILINE)]
    assert own == ["extras.py"]


@pytest.mark.parametrize(
    ("records", "command"),
    [
        (["mla_numba/__init__.py,,"], "pip install 'mla_numba[tune]'"),
        ([None, "mla_numba/__init__.py,,"], "pip install 'mla_numba[tune]'"),
        ([None], "pip install optuna"),
        ([], "pip install optuna"),
    ],
)
def test_pip_is_asked_for_what_it_can_find(records, command, monkeypatch):
    """A package that pip has not installed has no RECORD: pip would look for its name in an index."""
    monkeypatch.setattr(extras, "distributions", lambda name: map(Distribution, records))
    assert how_to_install("tune", "optuna") == command


def test_other_errors_of_an_import_pass():
    with pytest.raises(ModuleNotFoundError, match="No module named 'other'"), needs("here", {"torch": "torch"}):
        raise ModuleNotFoundError("No module named 'other'", name="other")


@pytest.mark.parametrize("module", WAYS)
def test_frameworks(module):
    package, code = WAYS[module]
    missing = f"""
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
{code}"""
    done = subprocess.run([sys.executable, "-c", missing], env=python_environment(), capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(rf"ModuleNotFoundError: {module}: expected the package \w+, got none: pip install \S+", last)
