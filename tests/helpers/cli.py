"""The command line, in this process and in one of its own."""

import os
import subprocess
import sys

from click.testing import CliRunner

from mla_numba.cli.main import main

from .processes import ROOT


def run_cli(*args, env=None):
    """The command as a process of its own: exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "mla_numba", *args],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return done.returncode, done.stdout, done.stderr


def invoke(*args):
    return CliRunner().invoke(main, list(args))


def one_line_error(*args):
    """The error of a command that is refused: its last line, behind click's usage lines."""
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.output.strip().splitlines()
    assert sum(line.startswith("Error:") for line in lines) == 1
    return lines[-1]
