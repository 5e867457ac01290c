"""A wheel holds the packages, and a source distribution all that tests, benches and pages need."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, python_environment

NOT_NEEDED = {".gitignore"}


def tracked_files():
    """Paths under version control; skips where there is none, such as in an unpacked source distribution."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository to compare with")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """What is tracked, and what the source distribution and the wheel hold, by paths in them.

    They are made of a copy: building leaves files behind.
    """
    pytest.importorskip("setuptools", minversion="77", reason="setuptools of pyproject.toml is not there")
    folder = tmp_path_factory.mktemp("built")
    names = tracked_files()
    for name in names:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    code = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder / "tree", env=python_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(source) as tar:
        in_source = {str(Path(*Path(member.name).parts[1:])) for member in tar.getmembers() if member.isfile()}
    with zipfile.ZipFile(wheel) as file:
        return names, in_source, set(file.namelist())


def test_everything_is_in_the_source_distribution(archives):
    names, in_source, _ = archives
    assert sorted(names - in_source) == sorted(NOT_NEEDED & names)


def test_nothing_else_is_in_the_source_distribution(archives):
    names, in_source, _ = archives
    made = {name for name in in_source - names if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name}
    assert made == set()


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(archives):
    names, _, in_wheel = archives
    of_packages = {name for name in names if name.split("/")[0] in ("mla_numba", "tiling")}
    assert {"mla_numba/py.typed", "tiling/py.typed", "tiling/choose/costs.json"} <= of_packages
    assert {name for name in in_wheel if ".dist-info/" not in name} == of_packages
