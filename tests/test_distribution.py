"""The source distribution: all that is under version control, so that its tests, benches and pages work from it."""

import shutil
import subprocess
import sys
import tarfile
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
def archive(tmp_path_factory):
    """What the archive holds, by paths in it, made of a copy: building leaves files behind."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools of pyproject.toml is not there")
    folder = tmp_path_factory.mktemp("sdist")
    names = tracked_files()
    for name in names:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(
        command, cwd=folder / "tree", env=python_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as tar:
        found = {str(Path(*Path(member.name).parts[1:])) for member in tar.getmembers() if member.isfile()}
    return names, found


def test_everything_is_in_the_archive(archive):
    names, found = archive
    assert sorted(names - found) == sorted(NOT_NEEDED & names)


def test_nothing_else_is_in_the_archive(archive):
    names, found = archive
    made = {name for name in found - names if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name}
    assert made == set()
