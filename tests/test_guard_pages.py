"""No kernel reads or writes a byte outside its arrays: each lies at an unreadable page, in a process of its own."""

import mmap
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import SCRIPTS
from helpers.guarded import Guarded
from helpers.targets import environment_of

from mla_numba.kernels import CHOICE, ISA, ISAS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the pages are protected through Linux' mprotect")
READ = ("x", "cos", "sin", "cache_index", "down", "up", "uk")
WRITTEN = ("query_nope", "query_rope", "q_norm", "kv_cache", "kr_cache", "k_scale_cache")
TIMEOUT_S = 3600


def run_cases(isa, scope, running):
    """The finished process, and the case that ran last."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPTS / "guard_script.py"), isa, scope, str(running)],
        capture_output=True,
        text=True,
        env=environment_of(isa),
        timeout=TIMEOUT_S,
        check=False,
    )
    return done, running.read_text(encoding="utf-8") if running.exists() else "none"


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.nightly)])
def runs(request, tmp_path_factory):
    """All instruction sets that this machine has, two at a time."""
    folder = tmp_path_factory.mktemp("running")
    with ThreadPoolExecutor(2) as pool:
        yield {isa: pool.submit(run_cases, isa, request.param, folder / isa) for isa in (ISA.name, *CHOICE.others)}


@pytest.mark.parametrize("isa", ISAS)
def test_no_access_outside_an_array(runs, isa, record_property):
    if isa not in runs:
        pytest.skip(f"this CPU has no {isa}")
    done, last = runs[isa].result()
    assert done.returncode == 0, f"exit code {done.returncode} in: {last}\n{done.stdout}\n{done.stderr}"
    n_cases = int(done.stdout)
    record_property("cases", n_cases)
    assert n_cases > 500


@pytest.mark.parametrize("name", READ + WRITTEN)
def test_an_array_that_is_too_short_ends_the_process(name, tmp_path):
    """The pages do what they are for, with each array alone."""
    done, last = run_cases(ISA.name, name, tmp_path / "running")
    assert last == f"{name} is too short", done.stderr
    assert done.returncode == -signal.SIGSEGV, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("n_bytes", [0, 1, 63, 64, 65, mmap.PAGESIZE, mmap.PAGESIZE + 1])
@pytest.mark.parametrize("align", [1, 64])
def test_where_the_bytes_lie(n_bytes, align):
    for side in ("begin", "end"):
        memory = Guarded(n_bytes, side, align)
        start = memory.bytes.__array_interface__["data"][0]
        assert len(memory.bytes) == n_bytes
        memory.bytes[...] = 1
        memory.assert_intact("memory")
        if n_bytes:
            assert start % align == 0
            gap = -(start + n_bytes) % mmap.PAGESIZE if side == "end" else start % mmap.PAGESIZE
            assert gap < (align if side == "end" else 1)


def test_a_byte_written_on_the_other_side_shows():
    memory = Guarded(100, "end")
    memory._inside[memory.start - 1] = 0
    with pytest.raises(AssertionError, match="memory: 1 bytes before it were written"):
        memory.assert_intact("memory")
