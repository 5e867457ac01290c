"""Every Python block of README and docs runs, and every `mla-numba` line of their shell blocks works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_maker import make_checkpoint

from mla_numba import MlaDims

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to work in, and $CHECKPOINT, which the pages speak of."""
    make_checkpoint(tmp_path / "model", MlaDims(260, 3, 130, 68, 33, 34))
    monkeypatch.setenv("CHECKPOINT", str(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.fullsize
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_in_order(page):
    namespace = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


def command_lines():
    for page in PAGES:
        for block in blocks(page, "(?:bash|sh|console)"):
            for line in block.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0] == "mla-numba":
                    yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words)}")


@pytest.mark.fullsize
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("arguments", list(command_lines()))
def test_command_lines_work(arguments):
    arguments = map(os.path.expandvars, arguments)
    done = subprocess.run([sys.executable, "-m", "mla_numba", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_readme_names_the_test_command_that_ci_runs():
    readme, ci = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    assert "python -m pytest" in readme
    assert "python -m pytest" in ci
