"""A file or folder named tiling that stands in the way is named, whatever it is; nothing of it runs."""

import subprocess
import sys

import pytest
from helpers import ROOT, python_environment


def imported(folder, code="import mla_numba; print(mla_numba.CpuTiling(down_mc=3))"):
    """A script in a folder, which stands first on Python's path, as where a user runs it."""
    script = folder / "script.py"
    script.write_text(code)
    env = python_environment(PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["tiling.py", "tiling/__init__.py"])
def test_a_module_or_package_of_that_name_is_named(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("print('run')")
    done = imported(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: tiling: expected the package that comes with mla_numba, {ROOT / 'tiling'}, got {path}, which is "
        "in the way: give it another name, or take its folder off Python's path"
    )


def test_a_script_that_is_called_so_is_named(tmp_path):
    path = tmp_path / "tiling.py"
    path.write_text("import mla_numba")
    done = subprocess.run(
        [sys.executable, str(path)], env=python_environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True
    )
    assert f"got {path}, which is in the way" in done.stderr.strip().splitlines()[-1]


def test_one_that_was_imported_before_is_named(tmp_path):
    code = "import sys, types; sys.modules['tiling'] = types.ModuleType('tiling'); import mla_numba"
    last = imported(tmp_path, code).stderr.strip().splitlines()[-1]
    assert "ImportError: tiling: expected the package that comes with mla_numba" in last
    assert "got none, which is in the way" in last


def test_a_folder_without_a_module_is_in_the_way_only_where_python_takes_it(tmp_path):
    """A namespace package comes after every proper one on the path, but before what an editable installation finds."""
    (tmp_path / "tiling").mkdir()
    done = imported(tmp_path)
    assert (done.returncode, done.stdout) == (0, "down_mc 3\n"), done.stderr
    code = f"""
import importlib.util, sys
sys.path.remove({str(ROOT)!r})
class Finder:  # as that of an editable installation, behind Python's own
    def find_spec(name, path=None, target=None):
        if name in ("mla_numba", "tiling"):
            place = {str(ROOT)!r} + "/" + name
            make = importlib.util.spec_from_file_location
            return make(name, place + "/__init__.py", submodule_search_locations=[place])
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()] + [Finder]
import mla_numba
"""
    last = imported(tmp_path, code).stderr.strip().splitlines()[-1]
    assert f"got {tmp_path / 'tiling'}, which is in the way" in last
