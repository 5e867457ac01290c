"""What README and docs show works: blocks run in the order of the page, in one folder, and say what the page says.

| block                            | what happens to it                                                               |
|----------------------------------|----------------------------------------------------------------------------------|
| ```python                        | runs, with the names of the blocks before it                                     |
| ```python title="name.py"        | is written to a file of this name; so is a block of any language                 |
| ```sh                            | lines that begin with `mla-numba`, or with `python`, `mpiexec` or `torchrun` and |
|                                  | a file of the page or `mla_numba`, run, the last two where they are installed;   |
|                                  | `# exit status 1` behind one says how it ends                                    |
| ```text title="output"           | its lines are in what the block before it printed, in this order                 |
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import HAS_CXX, ROOT, SCRIPTS, python_environment
from helpers.checkpoint_maker import make_checkpoint

from mla_numba import IndexerDims, MlaDims
from mla_numba.call import tuned

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", flags=re.S | re.M)

SHELLS = ("sh", "bash", "console")


class Block(NamedTuple):
    language: str
    title: str
    text: str


# What a rank of torchrun says that has done all its work: see docs/distributed.md.
ABORTED_AT_ITS_END = "terminate called without an active exception"


def blocks(page):
    return [Block(*found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def commands(block, files):
    """Words of each line that is to run, and the exit status that is expected."""
    for line in block.text.splitlines() if block.language in SHELLS else ():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        status = re.search(r"# .*\bexit status (\d+)", line)
        launched = words[:1] in (["python"], ["mpiexec"], ["torchrun"]) and (files | {"mla_numba"}) & set(words)
        if words[:1] == ["mla-numba"] or launched:
            yield [*program(*words[:2]), *map(os.path.expandvars, words[1:])], int(status[1]) if status else 0


def program(name, command=""):
    """What the first word of a command stands for, in the environment of this Python."""
    if (name, command) == ("mla-numba", "tune"):  # which keeps nothing of a busy machine, as this one may be
        return [sys.executable, str(SCRIPTS / "quiet_cli.py")]
    if name == "mla-numba":
        return [sys.executable, "-m", "mla_numba"]
    if name == "python":
        return [sys.executable]
    return [shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}") or name]


def run(command):
    return subprocess.run(command, capture_output=True, text=True, env=python_environment(), timeout=900, check=False)


def run_commands(block, files):
    said = ""
    for command, status in commands(block, files):
        command = [sys.executable if word == "python" else word for word in command]
        done = run(command)
        if done.returncode and ABORTED_AT_ITS_END in done.stderr:
            done = run(command)
        assert done.returncode == status, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    return said


def run_python(block, namespace, page):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(block.text, str(page), "exec"), namespace)
    return said.getvalue()


def expect_output(wanted, said):
    rest = iter([line.rstrip() for line in said.splitlines()])
    for line in filter(None, (line.rstrip() for line in wanted.splitlines())):
        assert line in rest, f"expected the line {line!r}, got\n{said}"


def runs(page):
    found = blocks(page)
    files = {block.title for block in found}
    return any(block.language == "python" or next(iter(commands(block, files)), None) is not None for block in found)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to work in, and $CHECKPOINT, which the pages speak of."""
    dims = MlaDims(260, 3, 130, 68, 33, 34)
    make_checkpoint(tmp_path / "model", dims, indexer=IndexerDims(260, 130, 2, 64, 34))
    monkeypatch.setenv("CHECKPOINT", str(tmp_path / "model"))
    monkeypatch.setenv(tuned.FOLDER_VARIABLE, str(tmp_path / "tuned"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.fullsize
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("page", [p for p in PAGES if runs(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run_in_order(page):
    text = page.read_text(encoding="utf-8")
    for package in ("torch", "transformers", "mpi4py"):  # extras, which README's test command does not install
        if re.search(rf"^(?:import|from) {package}\b", text, flags=re.M):
            pytest.importorskip(package)
    if "torch.compile(" in text and not HAS_CXX:
        pytest.skip("no C++ compiler for what a graph computes beside the prolog")
    namespace, files, said = {"__name__": "__page__"}, set(), ""
    for block in blocks(page):
        if block.title == "output":
            expect_output(block.text, said)
        elif block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
            files.add(block.title)
        elif block.language == "python":
            said = run_python(block, namespace, page)
        elif block.language in SHELLS:
            said = run_commands(block, files)


def test_every_fence_is_read():
    """A block that the pattern does not know would never run."""
    for page in PAGES:
        n_marks = len(re.findall(r"^```", page.read_text(encoding="utf-8"), flags=re.M))
        assert n_marks == 2 * len(blocks(page)), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:tests|bench|tiling|mla_numba)/[\w/]+\.(?:py|json))\b", text)
    named += [f"mla_numba/{name}" for name in re.findall(r"`((?:kernels|interop)/[\w/]+\.py)`", text)]
    named += [f"tests/{name}" for name in re.findall(r"`(test_\w+\.py)`", text)]
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_an_output_that_is_not_the_page_s_is_found():
    expect_output("b\n...\nd\n".replace("...\n", ""), "a\nb  \nc\nd\n")
    for wanted in ("d\nb\n", "e\n"):
        with pytest.raises(AssertionError, match="expected the line"):
            expect_output(wanted, "a\nb\nd\n")


def test_readme_names_the_test_command_that_ci_runs():
    readme, ci = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    assert "python -m pytest" in readme
    assert "python -m pytest" in ci
