"""Sparse attention on other instruction sets: the same bits, and no byte outside an array. Each in its own process."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import SCRIPTS, python_environment

from mla_numba.kernels import CHOICE, ISA

SCRIPT = str(SCRIPTS / "attention_script.py")
# Vector code without products of pairs, and plain loops; between the others there is nothing that attention sees.
COMPILED = [isa for isa in ("avx2", "neondot", "portable") if isa in CHOICE.others]
READ = ("query_nope", "query_rope", "kv", "kr", "k_scale", "slots", "block_table", "sequences", "limits", "counts")
HELD = ("queries", "scores", "weights", "rows", "panels", "bits", "bases", "sums", "lanes", "words", "latent")


def run(isa, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, isa, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=python_environment(MLA_NUMBA_ISA=isa, **environment),
        timeout=1800,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Calls, and then calls at pages, of each instruction set; two at a time."""
    folder = tmp_path_factory.mktemp("running")

    def both(isa):
        done = {} if isa == ISA.name else {"calls": run(isa, "calls")}
        if sys.platform == "linux":
            done["pages"] = run(isa, "pages", folder / isa)
        last = (folder / isa).read_text(encoding="utf-8") if (folder / isa).exists() else "none"
        return done, last

    with ThreadPoolExecutor(2) as pool:
        yield {isa: pool.submit(both, isa) for isa in (ISA.name, *COMPILED)}


@pytest.mark.parametrize("isa", [ISA.name, *COMPILED])
def test_same_bits_and_no_access_outside_an_array(runs, isa):
    done, last = runs[isa].result()
    for what, process in done.items():
        assert process.returncode == 0, f"{what}: exit code {process.returncode} at {last}\n{process.stderr}"
        assert int(process.stdout) > 30


@pytest.mark.parametrize("isa", [ISA.name, "avx2", "portable"])
def test_plain_python(isa):
    if isa not in (ISA.name, *CHOICE.others):
        pytest.skip(f"this CPU has no {isa}")
    done = run(isa, "plain Python", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8"


@pytest.mark.skipif(sys.platform != "linux", reason="the pages are protected through Linux' mprotect")
def test_an_array_that_is_too_short_ends_the_process():
    """The pages do what they are for, with each array alone."""
    done = run(ISA.name, "short", *READ, *HELD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{name}={signal.SIGSEGV.value}" for name in (*READ, *HELD)]
