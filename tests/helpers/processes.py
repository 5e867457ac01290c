"""Fresh interpreters on this source tree."""

import os
import subprocess
import sys
from pathlib import Path

import mla_numba

ROOT = Path(mla_numba.__file__).parents[1]
TESTS = Path(__file__).parents[1]
SCRIPTS = TESTS / "scripts"


def python_environment(**changes):
    """The environment of a fresh interpreter on this source tree.

    A CPU's name in `changes` chooses the instruction set, whatever `MLA_NUMBA_ISA` says here.
    """
    if "NUMBA_CPU_NAME" in changes:
        changes = {"MLA_NUMBA_ISA": ""} | changes
    paths = [str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | changes


def run_python(*arguments, timeout=900, **environment):
    """A fresh interpreter on this source tree; its standard output. Its failure is the test's, with what it wrote."""
    env = python_environment(**environment)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
