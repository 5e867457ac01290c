"""The command line, in this process and in one of its own."""

import os
import signal
import subprocess
import sys
import time

from click.testing import CliRunner

from mla_numba.cli.main import main

from .processes import ROOT, SCRIPTS, python_environment

QUIET = [sys.executable, str(SCRIPTS / "quiet_cli.py")]


def run_cli(*args, env=None):
    """The command as a process of its own: exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "mla_numba", *map(str, args)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return done.returncode, done.stdout, done.stderr


def invoke(*args):
    """The command in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def one_line_error(*args):
    """The error of a command that is refused: its last line, behind click's usage lines."""
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.output.strip().splitlines()
    assert sum(line.startswith("Error:") for line in lines) == 1
    return lines[-1]


def run_quiet(*command):
    """The command where others take nothing of the machine, whatever they do: status, output, errors."""
    done = subprocess.run(
        [*QUIET, *command], env=python_environment(), capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, done.stdout, done.stderr


def interrupted(command, when):
    """The same with Ctrl-C as soon as `when()` is true: exit status, output, errors."""
    process = subprocess.Popen(
        [*QUIET, *command],
        env=python_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else ignored where the tests run under nohup
    )
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None and not when():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=600)
    return process.returncode, said, err


def n_lines(folder, pattern):
    """Whole lines in the files of a folder whose names match."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))
