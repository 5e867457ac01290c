"""The sources of the kernels: each decides in which folder compiled code is kept, so that none of it can be stale."""

import ast
import shutil

import pytest
from helpers import ROOT

from mla_numba.kernels.jit.folder import source_digest

KERNELS = ROOT / "mla_numba" / "kernels"
SOURCES = sorted(path.relative_to(KERNELS).as_posix() for path in KERNELS.rglob("*.py"))


def copied(folder):
    root = folder / "kernels"
    shutil.copytree(KERNELS, root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize("source", SOURCES)
def test_a_changed_file_is_another_folder(source, tmp_path):
    before, after = copied(tmp_path / "before"), copied(tmp_path / "after")
    with (after / source).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert source_digest(before) == source_digest(KERNELS)
    assert source_digest(after) != source_digest(before)


def test_a_new_file_in_a_new_room_is_another_folder(tmp_path):
    root = copied(tmp_path)
    (root / "micro" / "deeper").mkdir()
    (root / "micro" / "deeper" / "new.py").touch()
    assert source_digest(root) != source_digest(KERNELS)


def test_a_file_that_moves_is_another_folder(tmp_path):
    root = copied(tmp_path)
    (root / "row" / "rope.py").rename(root / "sweeps" / "rope.py")
    assert source_digest(root) != source_digest(KERNELS)


@pytest.mark.parametrize("source", SOURCES)
def test_functions_take_things_not_lists(source):
    tree = ast.parse((KERNELS / source).read_text(encoding="utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        names = [argument.arg for argument in given if argument.arg != "_typingctx"]  # Numba's own, of an intrinsic
        assert len(names) <= 8, function.name
        assert function.end_lineno - function.lineno < 60, function.name
